"""Figure: exact reverse KL of the last model of each chain to its head teacher and to the truth, by head teacher."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from takd.analysis import exports
from takd.analysis.results import JsonRow, Results
from takd.analysis.statistics import Interval, number, of_trainings
from takd.analysis.table import Number
from takd.experiment.labels import full_text, method_title, size_text
from takd.experiment.lineage import control_of, own, prefixes, split, supervised
from takd.report import tables
from takd.report.figures.style import (
    BLACK,
    DASHES,
    STYLE,
    WIDTH,
    Drawing,
    Look,
    Plot,
    by_size,
    handle,
    looks,
    panels,
    to_svg,
)
from takd.report.tables import score

MEASURES = {
    "exact_first_reverse_kl": "to the head teacher",
    "exact_truth_reverse_kl": "to the truth",
}


FAR = 5
"""Values that are this many times apart have a logarithmic axis."""


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
    found = {
        (name, measure): lineages
        for name in results.spec["sets"]
        for measure in MEASURES
        if (lineages := [e for e in _ends(results) if score(results, name, e, measure)])
    }
    if not found:
        return None
    broad, narrow = (_draw(results, found, WIDTH * columns / 2, columns) for columns in (2, 1))
    rows = list(_numbers(results, found))
    return Drawing(broad, rows, narrow, _note(rows))


PLOT = Plot("exact", "exact divergences by head teacher and route", exact, "results.html",
            "Exact divergences of whole responses")  # fmt: skip


def _ends(results: Results) -> list[str]:
    """Last models of all chains that have a teacher, without controls."""
    return [
        chain["lineage"]
        for chain in results.spec["chains"]
        if len(split(chain["lineage"])) > 1 and not control_of(chain["lineage"])
    ]


def _route(lineage: str) -> Route:
    _, *hops = split(lineage)
    return Route(tuple(hop.method for hop in hops), tuple(hop.model for hop in hops[:-1]))


Found = dict[tuple[str, str], list[str]]


def _draw(results: Results, found: Found, width: float, columns: int) -> str:
    ends = list(dict.fromkeys(lineage for lineages in found.values() for lineage in lineages))
    routes = sorted(dict.fromkeys(map(_route, ends)), key=lambda route: len(route.assistants))
    look, known, sizes = {}, looks(results), by_size(results)
    for place, route in enumerate(routes):
        one = next(known[lineage] for lineage in ends if _route(lineage) == route)
        look[route] = one._replace(dashes=DASHES[place % len(DASHES)])
    key = {route.text: handle(look[route]) for route in routes}
    key["SFT"] = handle(Look(BLACK, "", ":"))
    places = [
        (name, student, measure)
        for name in results.spec["sets"]
        for student in dict.fromkeys(split(lineage)[-1].model for lineage in ends)
        for measure in MEASURES
        if any(split(lineage)[-1].model == student for lineage in found.get((name, measure), ()))
    ]
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(len(places), columns, 1, width, 2.8, key)
        for panel, (axis, (name, student, measure)) in enumerate(zip(axes, places, strict=True)):
            here = [each for each in found[name, measure] if split(each)[-1].model == student]
            heads = list(dict.fromkeys(split(each)[0].model for each in here))
            heads.sort(key=lambda head: -list(sizes).index(own(head)))
            for place, route in enumerate(routes):
                marks = [
                    (
                        heads.index(split(each)[0].model) + 0.11 * (place - (len(routes) - 1) / 2),
                        each,
                    )
                    for each in here
                    if _route(each) == route
                ]
                _series(results, axis, sorted(marks), name, measure, look[route])
            if base := score(results, name, supervised(student), measure):
                axis.axhline(base.value, color=BLACK, linestyle=":", linewidth=1, zorder=1)
            _scale(axis)
            axis.set_xticks(range(len(heads)), [f"{m}\n{size_text(sizes[own(m)])}" for m in heads])
            axis.set_xlim(-0.6, len(heads) - 0.4)
            axis.grid(visible=False, axis="x")
            title = f"{student} ({size_text(sizes[own(student)])}), {MEASURES[measure]}"
            axis.set_title(title if len(results.spec["sets"]) == 1 else f"{name}: {title}")
            if panel % columns == 0:
                axis.set_ylabel("reverse KL, nats per response")
        return to_svg(figure)


def _scale(axis: Axes) -> None:
    """Set a logarithmic axis where values are far apart; its labels are plain numbers, as all text of a figure."""
    low, high = axis.dataLim.intervaly
    if high > FAR * low > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=10))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


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
        mean = score(results, name, lineage, measure)
        assert mean is not None
        means.append(mean.value)
        seeds = list(tables.by_seed(results, mean).values())
        if len(seeds) > 1:
            axis.plot([at] * len(seeds), seeds, ".", color=look.colour, markersize=4, alpha=0.7)
            assert mean.interval is not None
            # a divergence is positive, an interval of few seeds may not be
            low = max(mean.interval.low, min(seeds) / 2)
            axis.plot([at, at], [low, mean.interval.high], color=look.colour, linewidth=0.8)
    axis.plot(
        [at for at, _ in marks], means, marker=look.marker, color=look.colour, linestyle=look.dashes,
        linewidth=1, markersize=6, markeredgecolor="white", markeredgewidth=0.7, zorder=4,
    )  # fmt: skip


def _numbers(results: Results, found: Found) -> Iterator[JsonRow]:
    """One row per set, measure and lineage, with its difference from direct distillation by the last method."""
    for (name, measure), lineages in found.items():
        for lineage in lineages:
            mean = score(results, name, lineage, measure)
            assert mean is not None
            head, *_, last = split(lineage)
            direct = f"{prefixes(lineage)[0]}__{last.model}-{last.method}"
            other = score(results, name, direct, measure) if direct != lineage else None
            difference, interval = _minus(results, mean, other)
            yield {
                "set": name,
                "measure": measure,
                "lineage": lineage,
                "chain": mean.chain,
                "methods": mean.methods,
                "head": head.model,
                "student": last.model,
                "n_training_seeds": mean.n_training_seeds,
                **exports.columns("value", mean),
                "minus_direct": difference,
                "minus_direct_low": interval and interval.low,
                "minus_direct_high": interval and interval.high,
            }


def _minus(
    results: Results, mean: Number, other: Number | None
) -> tuple[float | None, Interval | None]:
    """Mean difference of two models over the training seeds that both have, and its interval."""
    if other is None:
        return None, None
    ours, theirs = tables.by_seed(results, mean), tables.by_seed(results, other)
    values = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    return float(values.mean()), of_trainings(values)


def _note(rows: Sequence[JsonRow]) -> str:
    said = []
    for row in rows:
        if row["minus_direct"] is None:
            continue
        text = number(row["minus_direct"], signed=True, digits=4)
        low, high = row["minus_direct_low"], row["minus_direct_high"]
        if low is not None:
            text += f" ({Interval(low, high).text(signed=True, digits=4)})"
        said.append(f"{full_text(row['lineage'])}, {MEASURES[row['measure']]}: {text}.")
    start = (
        "KL(student ‖ other) over whole responses, by enumeration of all of them, the mean over prompts. Bars are 95 %"
        " confidence intervals over training seeds, dots single seeds; the dotted line is the student after SFT alone."
    )
    if not said:
        return start
    return f"{start} Through assistants minus direct distillation by the last hop’s method: {' '.join(said)}"
