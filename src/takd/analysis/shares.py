"""Which share of a method's gain needs the teacher: (gain − gain of a control) / gain, with an interval.

Both gains are over the SFT baseline, so that their difference is the method less its control. Method, control and
baseline are paired by prompt, draw and training seed.
"""

from typing import Any, NamedTuple

from takd.analysis import comparisons, looks, statistics, table
from takd.analysis.exports import columns, tests, to_csv
from takd.analysis.results import Results
from takd.analysis.statistics import Interval, number
from takd.analysis.table import DIFFERENCE, Number
from takd.experiment.controls import of
from takd.experiment.labels import full_text
from takd.experiment.lineage import split, supervised


class Share(NamedTuple):
    """A method with one of its controls, on one evaluation set.

    Attributes:
        gain: gain of the method over the SFT baseline.
        control_gain: gain of the control.
        difference: the method less the control.
        value: share of the gain that needs the teacher; None where it is not defined.
        interval: 95 %: across training seeds where there are several, else over prompts.
        why: why it is not defined.
    """

    gain: Number
    control_gain: Number
    difference: Number
    value: float | None = None
    interval: Interval | None = None
    why: str = ""

    @property
    def control(self) -> str:
        """Title of the control."""
        kind = of(self.control_gain.lineage)
        return kind.title if kind else ""

    @property
    def method(self) -> str:
        """Name of the method's model."""
        return full_text(self.gain.lineage)

    def text(self) -> str:
        """Format as `83 % (60 to 104)`."""
        if self.value is None or self.interval is None:
            return "not defined"
        value, *ends = (number(100 * x, digits=0) for x in (self.value, *self.interval))
        return f"{value} % ({ends[0]} to {ends[1]})"


def shares(results: Results, name: str, measure: str = "rougeL") -> list[Share]:
    """List the shares on one evaluation set, method by method.

    A share is defined where the method gains, significantly after Holm's correction, and the interval of the ratio is
    bounded: the share of a gain that may be none could be any number.
    """
    found = table.of(results)

    wanted: dict[str, Any] = {"kind": DIFFERENCE, "set": name, "measure": measure}
    made = []
    for row in table.rows(found, question="teacher", **wanted):
        gain = table.one(found, question="sft", lineage=row.lineage, **wanted)
        control_gain = table.one(found, question="control", lineage=row.other, **wanted)
        if gain is not None and control_gain is not None:
            made.append(_share(results, gain, control_gain, row))
    order = [line.lineage for line in table.lines(results)].index
    return sorted(made, key=lambda x: (order(x.gain.lineage), order(x.control_gain.lineage)))


def controls_csv(results: Results) -> str:
    """Write one line per method, control, evaluation set and measure."""
    lines = []
    for name in results.spec["sets"]:
        for measure in results.tested(name):
            for each in shares(results, name, measure):
                about: dict[str, Any] = {"set": name, "measure": measure}
                about |= {"lineage": each.gain.lineage, "control": each.control_gain.lineage}
                about |= {"n_training_seeds": each.difference.n_training_seeds}
                for key in ("gain", "control_gain", "difference"):
                    about |= columns(key, getattr(each, key))
                    about |= tests(getattr(each, key), f"{key}_")
                low, high = each.interval or (None, None)
                about |= {"share": each.value, "share_low": low, "share_high": high}
                lines.append(about | {"why_not_defined": each.why})
    return to_csv(lines) if lines else to_csv([], ("set", "measure", "lineage", "control"))


def _share(results: Results, gain: Number, control_gain: Number, difference: Number) -> Share:
    about = Share(gain, control_gain, difference)
    if gain.significant != "higher":
        less = "is a loss" if gain.significant else "is not significant"
        return about._replace(why=f"the gain of the method {less}")
    ours, theirs = difference.lineage, difference.other
    base = supervised(split(ours)[-1].model)
    both = comparisons.shared(results, comparisons.Pair("teacher", ours, theirs))
    seeds = [seed for seed in both if seed in results.seeds(base)]
    method, control, baseline = (
        results.scores(lineage, gain.set, gain.measure, seeds).mean(axis=2)
        for lineage in (ours, theirs, base)
    )
    level = looks.level(results.spec.get("until"), len(seeds))
    interval = statistics.ratio(method - control, method - baseline, level)
    if interval is None:
        return about._replace(why="the gain of the method may be none, by the interval of t")
    value = float((method - control).mean() / (method - baseline).mean())
    return about._replace(value=value, interval=interval)
