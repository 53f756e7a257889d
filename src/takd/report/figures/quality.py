"""Figure: ROUGE-L against total cost, which includes teachers and initial SFT."""

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from takd.analysis import costs
from takd.analysis import table as numbers
from takd.analysis.costs import Cumulative
from takd.analysis.cumulative_costs import unit
from takd.analysis.results import Results, Row
from takd.analysis.table import EACH, SCORE, Number
from takd.experiment.labels import chain_text, full_text, methods_text
from takd.experiment.lineage import split
from takd.report.figures.layout import Sheet
from takd.report.figures.marks import by_size, n_text
from takd.report.figures.style import STYLE, WIDTH, Drawing, Look, looks, to_svg

FAR = 12
"""Costs that are this many times apart have a logarithmic axis."""
COLUMNS = (
    *("low", "high", "prompts_low", "prompts_high", "se_prompts", "se_training_seeds"),
    "se_decoding_seeds",
)


def quality(results: Results) -> Drawing:
    """Draw ROUGE-L against total cost, hours beside tokens, a row for each set.

    Colour is the method, marker the route, size that of the model; dots are single training seeds.
    """
    spent = list(costs.cumulative(results))
    return Drawing(_draw(results, spent, WIDTH, columns=2), _numbers(results, spent))


def narrow(results: Results) -> str:
    """Draw the same for a phone, hours above tokens."""
    return _draw(results, list(costs.cumulative(results)), WIDTH / 2, columns=1)


def _draw(results: Results, spent: Sequence[Cumulative], width: float, columns: int) -> str:
    found, look = numbers.of(results), looks(results)
    sizes = {model: 5 + 2 * place for place, model in enumerate(reversed(by_size(results)))}
    size = {lineage: sizes[split(lineage)[-1].model] for lineage in results.lineages}
    small = max(value for each in spent for value in each.hours.values()) < 1
    what = unit(results)
    titles = (what.replace("hours", "minutes") if small else what, "tokens trained on and drawn")
    # both x axes are treated alike
    means = [[_mean(_costs(each, place)) for each in spent] for place in (0, 1)]
    log = any(min(values) > 0 and max(values) / min(values) > FAR for values in means)
    with matplotlib.rc_context(STYLE):
        sheet = Sheet(width, rows=0, height=3.2 if columns > 1 else 2.6, below=0.65)
        for name in results.spec["sets"]:
            sheet.write(
                name if columns == 1 else f"{name}: {n_text(results, name)}", sheet.extend(0.18)
            )
            first: Axes | None = None
            for place, title in enumerate(titles):
                if place % columns == 0:
                    sheet.add_row()
                axis = sheet.panel(-1, place % columns, columns, share=first)
                first = first or axis
                by_seed = [_costs(each, place, 60 if small and place == 0 else 1) for each in spent]
                for each, cost in zip(spent, by_seed, strict=True):
                    wanted = {"kind": SCORE, "set": name, "measure": "rougeL"}
                    score = numbers.one(found, lineage=each.lineage, **wanted)
                    seeds = numbers.rows(found, lineage=each.lineage, seed=EACH, **wanted)
                    assert score is not None
                    _point(axis, cost, score, seeds, look[each.lineage], size[each.lineage])
                _scale(axis, [value for cost in by_seed for value in cost.values()], log)
                axis.set_xlabel(f"{title}, in total")
                if place % columns == 0:
                    axis.set_ylabel("ROUGE-L")
        handles = [_handle(look[lineage], size[lineage]) for lineage in results.lineages]
        sheet.key(handles, [full_text(lineage) for lineage in results.lineages])
        return to_svg(sheet.finish())


def _costs(cost: Cumulative, place: int, factor: float = 1) -> dict[int, float]:
    by_seed = (cost.hours, cost.tokens)[place]
    return {seed: value * factor for seed, value in by_seed.items()}


def _mean(by_seed: dict[int, float]) -> float:
    return sum(by_seed.values()) / len(by_seed)


def _point(
    axis: Axes,
    costs: dict[int, float],
    score: Number,
    seeds: Sequence[Number],
    look: Look,
    size: float,
) -> None:
    """Draw the mean over training seeds with its 95 % confidence interval, and the seeds as dots."""
    at = _mean(costs)
    if score.interval:
        axis.plot([at, at], score.interval, color=look.colour, linewidth=0.8, alpha=0.55, zorder=2)
    if len(seeds) > 1:
        dots = [(costs[seed.seed], seed.value) for seed in seeds if seed.seed in costs]
        axis.plot(
            *zip(*dots, strict=True), ".", color=look.colour, markersize=4, alpha=0.7, zorder=3
        )
    axis.plot(
        at, score.value, marker=look.marker, markersize=size, color=look.colour, linestyle="none",
        markeredgecolor="white", markeredgewidth=0.7, zorder=4,
    )  # fmt: skip


def _handle(look: Look, size: float) -> Line2D:
    return Line2D([], [], color=look.colour, marker=look.marker, markersize=size, linestyle="none")


def _scale(axis: Axes, values: Sequence[float], log: bool) -> None:
    if log and min(values) > 0:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_xlim(0, (max(values) or 1) * 1.12)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def short(value: float) -> str:
    """Format a number: `0.5`, `12`, `30k`, `1.2M`."""
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"


def _numbers(results: Results, spent: Sequence[Cumulative]) -> list[Row]:
    """One row per set and lineage; costs are means over training seeds."""
    found, what = numbers.of(results), unit(results)
    rows = []
    for name in results.spec["sets"]:
        for cost in spent:
            score = numbers.one(found, kind=SCORE, set=name, lineage=cost.lineage, measure="rougeL")
            assert score is not None
            hop = split(cost.lineage)[-1]
            rows.append(
                {
                    "set": name,
                    "lineage": cost.lineage,
                    "chain": chain_text(cost.lineage),
                    "methods": methods_text(cost.lineage),
                    "student": hop.model,
                    "method": hop.method,
                    "n_training_seeds": len(cost.hours),
                    "trainings": cost.trainings,
                    "hours": _mean(cost.hours),
                    "hours_least": min(cost.hours.values()),
                    "hours_most": max(cost.hours.values()),
                    "unit": what,
                    "tokens": _mean(cost.tokens),
                    "rougeL": score.value,
                }
                | {f"rougeL_{column}": getattr(score, column) for column in COLUMNS}
            )
    return rows
