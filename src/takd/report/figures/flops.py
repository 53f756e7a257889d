"""Figure: ROUGE-L on dev against the FLOPs spent so far, teachers, starts and teacher caches included."""

from collections.abc import Sequence
from statistics import fmean

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from takd.analysis import costs
from takd.analysis.results import JsonRow, Model, Results
from takd.experiment.labels import full_text, short_number, size_text
from takd.experiment.lineage import split, student_of, supervised
from takd.report.figures.style import (
    STYLE,
    WIDTH,
    Drawing,
    Look,
    Plot,
    handle,
    looks,
    panels,
    to_svg,
)

Points = list[tuple[float, float]]


def curves(results: Results) -> Drawing | None:
    """Draw the dev curve of every chain, a panel for each size of its last model; None where FLOPs were not counted."""
    sizes: dict[int, list[str]] = {}
    for lineage in results.lineages:
        if any(points(results, model) for model in results.of(lineage)) and _drawn(
            results, lineage
        ):
            sizes.setdefault(results.of(lineage)[0].parameters, []).append(lineage)
    if not sizes:
        return None
    broad, narrow = (_draw(results, sizes, columns) for columns in (2, 1))
    return Drawing(broad, numbers(results), narrow, _note(results))


def _drawn(results: Results, lineage: str) -> bool:
    """Whether a lineage is a chain, or the supervised baseline of a student."""
    chains = [chain["lineage"] for chain in results.spec["chains"]]
    last = {supervised(split(chain)[-1].model) for chain in chains}
    return lineage in chains or lineage in last


def _note(results: Results) -> str:
    budget = " The dashed line is the budget of each chain." if costs.budgets(results) else ""
    return (
        "A curve begins where the teachers and starts of its chain are paid, each once and in full. Lines are means"
        f" over training seeds, bands reach from the lowest seed to the highest.{budget}"
    )


PLOT = Plot("flops", "ROUGE-L on dev against FLOPs", curves, "costs.html", "Quality against FLOPs")


def points(results: Results, model: Model) -> Points:
    """Return FLOPs, with all that the model needs, and ROUGE-L at each dev evaluation."""
    whole = costs.spent(results, model.node.lineage)
    if not whole or not model.dev:
        return []
    before = whole[model.node.seed] - model.manifest["flops"]
    return [
        (before + row["flops"], float(row["rougeL"]))
        for row in model.dev
        if row["rougeL"] is not None
    ]


def numbers(results: Results) -> list[JsonRow]:
    """List the points, one row per model and dev evaluation."""
    return [
        {"lineage": lineage, "seed": model.node.seed, "flops": flops, "rougeL": value}
        for lineage in results.lineages
        if _drawn(results, lineage)
        for model in results.of(lineage)
        for flops, value in points(results, model)
    ]


def _draw(results: Results, sizes: dict[int, list[str]], most: int) -> str:
    """Draw panels side by side, at most so many; with one, for a phone."""
    look, budget = looks(results), costs.budgets(results)
    key = {full_text(name): handle(look[name]) for names in sizes.values() for name in names}
    with matplotlib.rc_context(STYLE):
        columns, width = min(len(sizes), most), WIDTH * most / 2
        figure, axes = panels(len(sizes), columns, len(sizes), width, 3.2, key)
        for place, (axis, (size, names)) in enumerate(zip(axes, sizes.items(), strict=True)):
            for name in names:
                _line(axis, [points(results, model) for model in results.of(name)], look[name])
            if budget:
                axis.axvline(fmean(budget.values()), color="#888888", linewidth=1, linestyle="--")
            models = dict.fromkeys(student_of(name) for name in names)
            axis.set_title(
                f"{', '.join(models)} ({size_text(size)})", fontsize=9 if most > 1 else 10.2
            )
            axis.set_xlabel("FLOPs, in total")
            axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
            if place % columns == 0:
                axis.set_ylabel("ROUGE-L on dev")
        return to_svg(figure)


def _line(axis: Axes, runs: Sequence[Points], look: Look) -> None:
    """Draw mean and band of the seeds of a lineage: their first evaluations, and their last."""
    runs = [run for run in runs if run]
    count = min(map(len, runs))
    xy = np.array([[*run[: count - 1], run[-1]] for run in runs])
    x, y, colour = xy[:, :, 0].mean(0), xy[:, :, 1], look.colour
    if len(runs) > 1:
        axis.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.15, linewidth=0)
    axis.plot(
        x, y.mean(0), color=colour, linestyle=look.dashes, marker=look.marker, markersize=3.5,
        markevery=max(1, count // 8), alpha=0.9,
    )  # fmt: skip
