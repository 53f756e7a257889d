"""Figure: ROUGE-L against total cost, which includes teachers and initial SFT."""

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from takd.analysis import costs, exports
from takd.analysis.results import JsonRow, Results
from takd.analysis.table import Number
from takd.analysis.text import counted
from takd.experiment.labels import full_text, short_number
from takd.experiment.lineage import student_of
from takd.report.figures import style
from takd.report.figures.style import Drawing, Plot
from takd.report.tables import by_seed, required

FAR = 12
"""Costs that are this many times apart have a logarithmic axis."""


def quality(results: Results) -> Drawing:
    """Draw ROUGE-L against total cost, hours beside tokens, a row for each set.

    Colour is the method, marker the route, size that of the model; dots are single training seeds.
    """
    caches = " and the teacher caches that it and they read," if results.teacher_cache else ""
    seeds = (
        ", dots single training seeds; the top teacher is trained once for all seeds and counts in full"
        if len(results.spec["seeds"]) > 1
        else ""
    )
    note = (
        f"The total cost of a model includes every teacher of its chain, the SFT that it and they start from,{caches}"
        f" each once. Bars are 95 % confidence intervals{seeds}. Tokens are those trained on and drawn; those that a"
        " teacher only scores do not count. Dev is included, evaluation is not."
    )
    return Drawing(_draw(results), _numbers(results), note=note)


PLOT = Plot("quality", "quality against cost", quality, "costs.html", "Quality against total cost")


def _draw(results: Results) -> str:
    look, spent = style.looks(results), costs.cumulative(results)
    sizes = {m: 5 + 2 * place for place, m in enumerate(reversed(style.by_size(results)))}
    size = {lineage: sizes[student_of(lineage)] for lineage in spent}
    unit, factor = costs.unit(results), 1
    if max(fmean(each["hours"].values()) for each in spent.values()) < 1:
        unit, factor = unit.replace("hours", "minutes"), 60
    axes: dict[str, list[Mapping[int, float]]] = {
        unit: [
            {seed: hours * factor for seed, hours in each["hours"].items()}
            for each in spent.values()
        ],
        "tokens trained on and drawn": [each["tokens"] for each in spent.values()],
    }
    # both x axes are treated alike
    means = [[fmean(seeds.values()) for seeds in found] for found in axes.values()]
    log = any(max(paid) / min(paid) > FAR for paid in map(_paid, means) if paid)
    key = {
        full_text(x): style.handle(look[x]._replace(dashes="none"), size[x])
        for x in results.lineages
    }
    sets = results.spec["sets"]
    draws = counted(len(results.spec["decoding_seeds"]), "decoding seed")
    seeds = counted(len(results.spec["seeds"]), "training seed")
    with matplotlib.rc_context(style.STYLE):
        figure, panels = style.panels(2 * len(sets), 2, 2, 3.2, key, "ROUGE-L")
        for place, (name, (title, found)) in enumerate(itertools.product(sets, axes.items())):
            axis = panels[place]
            for lineage, cost in zip(spent, found, strict=True):
                mean = required(results, name, lineage, "rougeL")
                dots = [(cost[seed], value) for seed, value in by_seed(results, mean).items()]
                how = {"color": look[lineage].colour, "marker": look[lineage].marker}
                _point(axis, fmean(cost.values()), mean, dots, **how, markersize=size[lineage])
            _scale(axis, means[place % 2], log)
            axis.set_xlabel(f"{title}, in total")
            if place % 2 == 0:
                prompts = counted(results.evaluations[results.nodes[0], name].scores["n"], "prompt")
                axis.set_title(f"{name}: {prompts} × {draws}, {seeds}")
        return style.to_svg(figure)


def _point(
    axis: Axes, at: float, mean: Number, dots: Sequence[tuple[float, float]], color: str, **how: Any
) -> None:
    """Draw the mean over training seeds with its 95 % confidence interval, and the seeds as dots."""
    if mean.interval:
        axis.plot([at, at], mean.interval, color=color, linewidth=0.8, alpha=0.55, zorder=2)
    if len(dots) > 1:
        axis.plot(*zip(*dots, strict=True), ".", color=color, markersize=4, alpha=0.7, zorder=3)
    axis.plot(
        at, mean.value, color=color, linestyle="none", markeredgecolor="white", markeredgewidth=0.7,
        zorder=4, **how,
    )  # fmt: skip


def _paid(values: Sequence[float]) -> list[float]:
    """Costs that are greater than zero: a model that is taken as it is costs nothing."""
    return [value for value in values if value > 0]


def _scale(axis: Axes, values: Sequence[float], log: bool) -> None:
    paid = _paid(values)
    if not log or not paid:
        style.round_ticks(axis.xaxis)
        axis.set_xlim(0, (max(values) or 1) * 1.2)
    elif len(paid) == len(values):
        axis.set_xscale("log")
        style.log_ticks(axis.xaxis, 8, short_number)
    else:  # with zero, left of the logarithmic part
        axis.set_xscale("symlog", linthresh=min(paid), linscale=0.4)
        locator = style.log_ticks(axis.xaxis, 8, short_number)
        ticks = [t for t in locator.tick_values(min(paid), max(paid)) if t > min(paid)]
        axis.set_xticks([0, *ticks])
        axis.set_xlim(-0.3 * min(paid), max(paid) * 1.5)


def _numbers(results: Results) -> list[JsonRow]:
    """One row per set and lineage; costs are means over training seeds."""
    rows = []
    for name in results.spec["sets"]:
        for lineage, cost in costs.cumulative(results).items():
            mean, hours = required(results, name, lineage, "rougeL"), cost["hours"].values()
            about = {"set": name, "lineage": lineage, "chain": mean.chain}
            about |= {"methods": mean.methods, "student": mean.model, "method": mean.method}
            spent: JsonRow = {"n_training_seeds": len(hours)}
            spent |= {"trainings": next(iter(cost["trainings"].values()))}
            spent |= {"hours": fmean(hours), "hours_least": min(hours), "hours_most": max(hours)}
            spent |= {"unit": costs.unit(results), "tokens": fmean(cost["tokens"].values())}
            rows.append({**about, **spent, **exports.columns("rougeL", mean)})
    return rows
