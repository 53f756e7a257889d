"""Figure: ROUGE-L against total cost, which includes teachers and initial SFT."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from takd.analysis import exports, table
from takd.analysis.costs import CUMULATIVE
from takd.analysis.cumulative_costs import unit
from takd.analysis.results import Results, Row
from takd.analysis.table import ANY, COST, SCORE, Number
from takd.experiment.labels import full_text
from takd.report.figures.layout import Sheet
from takd.report.figures.marks import by_size, n_text
from takd.report.figures.style import STYLE, WIDTH, Drawing, Look, looks, to_svg

FAR = 12
"""Costs that are this many times apart have a logarithmic axis."""
BySeed = Mapping[int | None, Number]
"""Numbers by training seed; None is their mean."""


def quality(results: Results) -> Drawing:
    """Draw ROUGE-L against total cost, hours beside tokens, a row for each set.

    Colour is the method, marker the route, size that of the model; dots are single training seeds.
    """
    return Drawing(_draw(results, WIDTH, columns=2), _numbers(results))


def narrow(results: Results) -> str:
    """Draw the same for a phone, hours above tokens."""
    return _draw(results, WIDTH / 2, columns=1)


def _select(results: Results, lineage: str, **wanted: str) -> BySeed:
    rows = table.rows(table.of(results), lineage=lineage, seed=ANY, **wanted)
    return {row.seed: row for row in rows}


def _cost(results: Results, lineage: str, measure: str) -> BySeed:
    return _select(results, lineage, kind=COST, stage=CUMULATIVE, measure=measure)


def _score(results: Results, lineage: str, name: str) -> BySeed:
    return _select(results, lineage, kind=SCORE, set=name, measure="rougeL")


def _draw(results: Results, width: float, columns: int) -> str:
    look, lineages = looks(results), results.lineages
    sizes = {model: 5 + 2 * place for place, model in enumerate(reversed(by_size(results)))}
    spent = {m: [_cost(results, lineage, m) for lineage in lineages] for m in ("hours", "tokens")}
    means = {m: [cost[None].value for cost in costs] for m, costs in spent.items()}
    small, what = max(means["hours"]) < 1, unit(results)
    titles = {"hours": what.replace("hours", "minutes") if small else what}
    titles["tokens"] = "tokens trained on and drawn"
    # both x axes are treated alike
    log = any(min(values) > 0 and max(values) / min(values) > FAR for values in means.values())
    with matplotlib.rc_context(STYLE):
        sheet = Sheet(width, rows=0, height=3.2 if columns > 1 else 2.6, below=0.65)
        for name in results.spec["sets"]:
            heading = name if columns == 1 else f"{name}: {n_text(results, name)}"
            sheet.write(heading, sheet.extend(0.18))
            first: Axes | None = None
            for place, (measure, title) in enumerate(titles.items()):
                if place % columns == 0:
                    sheet.add_row()
                axis = sheet.panel(-1, place % columns, columns, share=first)
                first = first or axis
                factor = 60 if small and measure == "hours" else 1
                for lineage, cost in zip(lineages, spent[measure], strict=True):
                    scores = _score(results, lineage, name)
                    points = {s: (factor * cost[s].value, scores[s].value) for s in cost}
                    _point(axis, points, scores[None], look[lineage], sizes[scores[None].model])
                _scale(axis, [factor * value for value in means[measure]], log)
                axis.set_xlabel(f"{title}, in total")
                if place % columns == 0:
                    axis.set_ylabel("ROUGE-L")
        handles = [_mark(look[x], sizes[results.of(x)[0].manifest["model"]]) for x in lineages]
        sheet.key(handles, [full_text(lineage) for lineage in lineages])
        return to_svg(sheet.finish())


def _point(
    axis: Axes,
    points: Mapping[int | None, tuple[float, float]],
    score: Number,
    look: Look,
    size: float,
) -> None:
    """Draw the mean over training seeds (key None) with its 95 % confidence interval, and the seeds as dots."""
    at, mean = points[None]
    colour = look.colour
    if score.interval:
        axis.plot([at, at], score.interval, color=colour, linewidth=0.8, alpha=0.55, zorder=2)
    if len(points) > 2:
        dots = [point for seed, point in points.items() if seed is not None]
        axis.plot(*zip(*dots, strict=True), ".", color=colour, markersize=4, alpha=0.7, zorder=3)
    axis.plot(
        at, mean, marker=look.marker, markersize=size, color=colour, linestyle="none",
        markeredgecolor="white", markeredgewidth=0.7, zorder=4,
    )  # fmt: skip


def _mark(look: Look, size: float) -> Line2D:
    return Line2D([], [], color=look.colour, marker=look.marker, markersize=size, linestyle="none")


def _scale(axis: Axes, values: Sequence[float], log: bool) -> None:
    if log and min(values) > 0:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_xlim(0, (max(values) or 1) * 1.2)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def short(value: float) -> str:
    """Format a number: `0.5`, `12`, `30k`, `1.2M`."""
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"


def _numbers(results: Results) -> list[Row]:
    """One row per set and lineage; costs are means over training seeds."""
    rows = []
    for name in results.spec["sets"]:
        for lineage in results.lineages:
            score = _score(results, lineage, name)[None]
            hours, tokens, trainings = (
                _cost(results, lineage, measure) for measure in ("hours", "tokens", "trainings")
            )
            by_seed = [number.value for seed, number in hours.items() if seed is not None]
            rows.append(
                {
                    "set": name,
                    "lineage": lineage,
                    "chain": score.chain,
                    "methods": score.methods,
                    "student": score.model,
                    "method": score.method,
                    "n_training_seeds": len(by_seed),
                    "trainings": int(trainings[None].value),
                    "hours": hours[None].value,
                    "hours_least": min(by_seed),
                    "hours_most": max(by_seed),
                    "unit": unit(results),
                    "tokens": tokens[None].value,
                }
                | exports.columns("rougeL", score)
            )
    return rows
