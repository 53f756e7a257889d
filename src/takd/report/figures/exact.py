"""Figure: exact reverse KL of the last model of each chain to its head teacher and to the truth, by head teacher."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from takd.analysis import exports
from takd.analysis.results import JsonRow, Results
from takd.analysis.statistics import Interval, number, of_trainings
from takd.experiment.labels import full_text, method_title, size_text
from takd.experiment.lineage import control_of, own, prefixes, split, supervised
from takd.report.figures import style
from takd.report.figures.style import BLACK, DASHES, Drawing, Look, Plot
from takd.report.tables import by_seed, required, score

MEASURES = {
    "exact_first_reverse_kl": "to the head teacher",
    "exact_truth_reverse_kl": "to the truth",
}
FAR = 5
"""Values that are this many times apart have a logarithmic axis."""
Found = dict[tuple[str, str], list[str]]
"""Set and measure -> last models of the chains that have it."""


class Route(NamedTuple):
    """What models of one marker and line have in common: methods of the hops, and assistants."""

    methods: tuple[str, ...]
    assistants: tuple[str, ...]

    @property
    def text(self) -> str:
        """Legend: `KD, direct`, `KD → MiniLLM, through 16`."""
        titles = [method_title(method) for method in self.methods]
        methods = titles[0] if len(set(titles)) == 1 else " → ".join(titles)
        way = f"through {' → '.join(self.assistants)}" if self.assistants else "direct"
        return f"{methods}, {way}"


def exact(results: Results) -> Drawing | None:
    """Draw the divergences, a row for each set and student; None where none is exact."""
    chains = [chain["lineage"] for chain in results.spec["chains"]]
    ends = [chain for chain in chains if len(split(chain)) > 1 and not control_of(chain)]
    found = {
        (name, measure): lineages
        for name in results.spec["sets"]
        for measure in MEASURES
        if (lineages := [each for each in ends if score(results, name, each, measure)])
    }
    if not found:
        return None
    rows = [_row(results, *place, each) for place, lineages in found.items() for each in lineages]
    return Drawing(_draw(results, found), rows, note=_note(rows))


PLOT = Plot("exact", "exact divergences by head teacher and route", exact, "results.html",
            "Exact divergences of whole responses")  # fmt: skip


def _route(lineage: str) -> Route:
    _, *hops = split(lineage)
    return Route(tuple(hop.method for hop in hops), tuple(hop.model for hop in hops[:-1]))


def _student(lineage: str) -> str:
    return split(lineage)[-1].model


def _draw(results: Results, found: Found) -> str:
    ends = list(dict.fromkeys(lineage for lineages in found.values() for lineage in lineages))
    routes = sorted(dict.fromkeys(map(_route, ends)), key=lambda route: len(route.assistants))
    look, known, sizes = {}, style.looks(results), style.by_size(results)
    for place, route in enumerate(routes):
        one = next(known[lineage] for lineage in ends if _route(lineage) == route)
        look[route] = one._replace(dashes=DASHES[place % len(DASHES)])
    key = {route.text: style.handle(look[route]) for route in routes}
    key["SFT"] = style.handle(Look(BLACK, "", ":"))
    places = [
        (name, student, measure, here)
        for name in results.spec["sets"]
        for student in dict.fromkeys(map(_student, ends))
        for measure in MEASURES
        if (here := [x for x in found.get((name, measure), ()) if _student(x) == student])
    ]
    with matplotlib.rc_context(style.STYLE):
        figure, axes = style.panels(len(places), 2, 1, 2.8, key, "reverse KL, nats per response")
        for axis, (name, student, measure, here) in zip(axes, places, strict=True):
            heads = list(dict.fromkeys(split(each)[0].model for each in here))
            heads.sort(key=lambda head: -list(sizes).index(own(head)))
            for place, route in enumerate(routes):
                aside = 0.11 * (place - (len(routes) - 1) / 2)
                marks = [
                    (heads.index(split(each)[0].model) + aside, each)
                    for each in here
                    if _route(each) == route
                ]
                _series(results, axis, sorted(marks), name, measure, look[route])
            if base := score(results, name, supervised(student), measure):
                axis.axhline(base.value, color=BLACK, linestyle=":", linewidth=1, zorder=1)
            low, high = axis.dataLim.intervaly
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            if high > FAR * low > 0:
                axis.set_yscale("log")
                style.log_ticks(axis.yaxis, 10, _short)
            axis.set_xticks(range(len(heads)), [f"{m}\n{size_text(sizes[own(m)])}" for m in heads])
            axis.set_xlim(-0.6, len(heads) - 0.4)
            axis.grid(visible=False, axis="x")
            title = f"{student} ({size_text(sizes[own(student)])}), {MEASURES[measure]}"
            axis.set_title(title if len(results.spec["sets"]) == 1 else f"{name}: {title}")
        return style.to_svg(figure)


def _short(value: float) -> str:
    """Format a label of a logarithmic axis: `0.002`, `5e-4`."""
    return f"{value:g}" if value > 0.0009 else f"{value:.0e}".replace("e-0", "e-")


def _series(
    results: Results,
    axis: Axes,
    marks: Sequence[tuple[float, str]],
    name: str,
    measure: str,
    look: Look,
) -> None:
    """Draw a route: means over training seeds with their 95 % confidence intervals, and the seeds as dots."""
    means = []
    for at, lineage in marks:
        mean = required(results, name, lineage, measure)
        means.append(mean.value)
        seeds = list(by_seed(results, mean).values())
        if len(seeds) > 1 and mean.interval:
            axis.plot([at] * len(seeds), seeds, ".", color=look.colour, markersize=4, alpha=0.7)
            # a divergence is positive, an interval of few seeds may not be
            low = max(mean.interval.low, min(seeds) / 2)
            axis.plot([at, at], [low, mean.interval.high], color=look.colour, linewidth=0.8)
    axis.plot(
        [at for at, _ in marks], means, marker=look.marker, color=look.colour, linestyle=look.dashes,
        linewidth=1, markersize=6, markeredgecolor="white", markeredgewidth=0.7, zorder=4,
    )  # fmt: skip


def _row(results: Results, name: str, measure: str, lineage: str) -> JsonRow:
    """Numbers of a mark, with the difference from direct distillation by the last method."""
    mean = required(results, name, lineage, measure)
    head, *_, last = split(lineage)
    direct = f"{prefixes(lineage)[0]}__{last.model}-{last.method}"
    other = score(results, name, direct, measure) if direct != lineage else None
    difference, interval = None, None
    if other:
        ours, theirs = by_seed(results, mean), by_seed(results, other)
        values = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
        difference, interval = float(values.mean()), of_trainings(values)
    low, high = interval or (None, None)
    about: JsonRow = {"set": name, "measure": measure, "lineage": lineage, "chain": mean.chain}
    about |= {"methods": mean.methods, "head": head.model, "student": last.model}
    about |= {"n_training_seeds": mean.n_training_seeds}
    minus = {"minus_direct": difference, "minus_direct_low": low, "minus_direct_high": high}
    return {**about, **exports.columns("value", mean), **minus}


def _note(rows: Sequence[JsonRow]) -> str:
    start = (
        "KL(student ‖ other) over whole responses, by enumeration of all of them, the mean over prompts. Bars are 95 %"
        " confidence intervals over training seeds, dots single seeds; the dotted line is the student after SFT alone."
    )
    said = []
    for row in rows:
        if row["minus_direct"] is not None:
            text = number(row["minus_direct"], signed=True, digits=4)
            low, high = row["minus_direct_low"], row["minus_direct_high"]
            if low is not None:
                text += f" ({Interval(low, high).text(signed=True, digits=4)})"
            said.append(f"{full_text(row['lineage'])}, {MEASURES[row['measure']]}: {text}.")
    if not said:
        return start
    return f"{start} Through assistants minus direct distillation by the last hop’s method: {' '.join(said)}"
