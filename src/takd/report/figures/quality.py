"""Figure: ROUGE-L against total cost, which includes teachers and initial SFT."""

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from takd.analysis import costs, exports
from takd.analysis.costs import unit
from takd.analysis.results import JsonRow, Results
from takd.analysis.table import Number
from takd.experiment.labels import full_text, short_number
from takd.experiment.lineage import student_of
from takd.report import tables
from takd.report.figures.style import (
    STYLE,
    WIDTH,
    Drawing,
    Look,
    Plot,
    by_size,
    handle,
    looks,
    n_text,
    panels,
    to_svg,
)
from takd.report.tables import score

FAR = 12
"""Costs that are this many times apart have a logarithmic axis."""


def quality(results: Results) -> Drawing:
    """Draw ROUGE-L against total cost, hours beside tokens (above them for a phone), a row for each set.

    Colour is the method, marker the route, size that of the model; dots are single training seeds.
    """
    broad, narrow = (_draw(results, WIDTH * columns / 2, columns) for columns in (2, 1))
    return Drawing(broad, _numbers(results), narrow, _note(results))


def _note(results: Results) -> str:
    caches = " and the teacher caches that it and they read," if results.teacher_cache else ""
    seeds = (
        ", dots single training seeds; the top teacher is trained once for all seeds and counts in full"
        if len(results.spec["seeds"]) > 1
        else ""
    )
    return (
        f"The total cost of a model includes every teacher of its chain, the SFT that it and they start from,{caches}"
        f" each once. Bars are 95 % confidence intervals{seeds}. Tokens are those trained on and drawn; those that a"
        " teacher only scores do not count. Dev is included, evaluation is not."
    )


PLOT = Plot("quality", "quality against cost", quality, "costs.html", "Quality against total cost")


def _draw(results: Results, width: float, columns: int) -> str:
    look, spent = looks(results), list(costs.cumulative(results))
    sizes = {model: 5 + 2 * place for place, model in enumerate(reversed(by_size(results)))}
    size = {each.lineage: sizes[student_of(each.lineage)] for each in spent}
    small, what = max(fmean(each.hours.values()) for each in spent) < 1, unit(results)
    axes: dict[str, list[Mapping[int, float]]] = {
        what.replace("hours", "minutes") if small else what: [
            {seed: hours * (60 if small else 1) for seed, hours in each.hours.items()}
            for each in spent
        ],
        "tokens trained on and drawn": [each.tokens for each in spent],
    }
    # both x axes are treated alike
    means = [[fmean(by_seed.values()) for by_seed in found] for found in axes.values()]
    log = any(max(paid) / min(paid) > FAR for paid in map(_paid, means) if paid)
    key = {full_text(x): handle(look[x]._replace(dashes="none"), size[x]) for x in results.lineages}
    sets = results.spec["sets"]
    with matplotlib.rc_context(STYLE):
        high = 3.2 if columns > 1 else 2.6
        figure, panels_ = panels(2 * len(sets), columns, 2, width, high, key)
        for place, (name, (title, found)) in enumerate(itertools.product(sets, axes.items())):
            axis = panels_[place]
            for each, by_seed in zip(spent, found, strict=True):
                mean = score(results, name, each.lineage, "rougeL")
                assert mean is not None
                dots = [(by_seed[s], y) for s, y in tables.by_seed(results, mean).items()]
                at = fmean(by_seed.values())
                _point(axis, at, mean, dots, look[each.lineage], size[each.lineage])
            _scale(axis, means[place % 2], log)
            axis.set_xlabel(f"{title}, in total")
            if place % 2 == 0:
                axis.set_title(name if columns == 1 else f"{name}: {n_text(results, name)}")
            if place % columns == 0:
                axis.set_ylabel("ROUGE-L")
        return to_svg(figure)


def _point(
    axis: Axes,
    at: float,
    mean: Number,
    dots: Sequence[tuple[float, float]],
    look: Look,
    size: float,
) -> None:
    """Draw the mean over training seeds with its 95 % confidence interval, and the seeds as dots."""
    colour = look.colour
    if mean.interval:
        axis.plot([at, at], mean.interval, color=colour, linewidth=0.8, alpha=0.55, zorder=2)
    if len(dots) > 1:
        axis.plot(*zip(*dots, strict=True), ".", color=colour, markersize=4, alpha=0.7, zorder=3)
    axis.plot(
        at, mean.value, marker=look.marker, markersize=size, color=colour, linestyle="none",
        markeredgecolor="white", markeredgewidth=0.7, zorder=4,
    )  # fmt: skip


def _paid(values: Sequence[float]) -> list[float]:
    """Costs that are greater than zero: a model that is taken as it is costs nothing."""
    return [value for value in values if value > 0]


def _scale(axis: Axes, values: Sequence[float], log: bool) -> None:
    paid, locator = _paid(values), LogLocator(subs=(1, 2, 5), numticks=8)
    if log and len(paid) == len(values):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_minor_formatter(NullFormatter())
    elif log and paid:  # with zero, left of the logarithmic part
        axis.set_xscale("symlog", linthresh=min(paid), linscale=0.4)
        ticks = [t for t in locator.tick_values(min(paid), max(paid)) if t > min(paid)]
        axis.set_xticks([0, *ticks])
        axis.set_xlim(-0.3 * min(paid), max(paid) * 1.5)
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_xlim(0, (max(values) or 1) * 1.2)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def _numbers(results: Results) -> list[JsonRow]:
    """One row per set and lineage; costs are means over training seeds."""
    rows = []
    for name in results.spec["sets"]:
        for cost in costs.cumulative(results):
            mean = score(results, name, cost.lineage, "rougeL")
            assert mean is not None
            rows.append(
                {
                    "set": name,
                    "lineage": cost.lineage,
                    "chain": mean.chain,
                    "methods": mean.methods,
                    "student": mean.model,
                    "method": mean.method,
                    "n_training_seeds": len(cost.hours),
                    "trainings": cost.trainings,
                    "hours": fmean(cost.hours.values()),
                    "hours_least": min(cost.hours.values()),
                    "hours_most": max(cost.hours.values()),
                    "unit": unit(results),
                    "tokens": fmean(cost.tokens.values()),
                }
                | exports.columns("rougeL", mean)
            )
    return rows
