"""Learning curves, of the models of one experiment or of several experiments.

A line is the mean over the training seeds of a lineage, the band around it reaches from the lowest seed to the highest,
and rings mark the exported steps. The page of learning curves draws by itself (`takd.report.learning`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from takd.analysis.results import JsonRow, Model, Results
from takd.experiment.labels import full_text
from takd.experiment.lineage import is_given, student_of
from takd.report.figures.style import (
    COLOURS,
    DASHES,
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

NOT_A_CURVE = {"kind", "step", "steps", "seconds", "tokens", "flops", "learning_rate", "n"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class Series(NamedTuple):
    """One line: the trainings of a lineage, one per training seed."""

    name: str
    look: Look
    models: Sequence[Model]


def logged(model: Model, log: str) -> list[JsonRow]:
    """Return the lines of a model's log "train" or "dev"."""
    return model.dev if log == "dev" else model.train


def numbers(results: Results, log: str) -> list[JsonRow]:
    """List the quantities of a log in long form: one row per model, step and quantity."""
    return [
        {"lineage": lineage, "seed": model.node.seed, "step": row["step"]}
        | {"quantity": quantity, "value": float(value)}
        for lineage in results.lineages
        for model in results.of(lineage)
        for row in logged(model, log)
        for quantity, value in row.items()
        if quantity not in NOT_A_CURVE and isinstance(value, int | float)
    ]


def learning_curves(results: Results) -> Drawing | None:
    """Draw ROUGE-L on dev against the step, a panel for each model; None if none was trained here."""
    look = looks(results)
    panels: dict[str, list[Series]] = {}
    for lineage in results.lineages:
        if is_given(lineage):
            continue
        series = Series(full_text(lineage), look[lineage], results.of(lineage))
        panels.setdefault(student_of(lineage), []).append(series)
    if not panels:
        return None
    return Drawing(_draw(panels, min(len(panels), 3)), numbers(results, "dev"))


PLOT = Plot("learning", "learning curves, ROUGE-L on dev", learning_curves)


def experiments(compared: Mapping[str, Results], lineages: Sequence[str]) -> Drawing:
    """Draw ROUGE-L on dev of several experiments, a panel for each lineage that is trained."""
    look = [
        Look(COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)], DASHES[n % len(DASHES)])
        for n in range(len(compared))
    ]
    panels = {
        full_text(lineage): [
            Series(name, look[place], results.of(lineage))
            for place, (name, results) in enumerate(compared.items())
        ]
        for lineage in lineages
        if not is_given(lineage)
    }
    longest = max(map(len, panels), default=0)
    columns = min(len(panels), 3 if longest <= 28 else 2 if longest <= 46 else 1)
    points = [
        {"lineage": lineage, "experiment": name, "seed": model.node.seed, "step": step}
        | {"rougeL": float(value), "kept": step == model.kept_step}
        for lineage in lineages
        for name, results in compared.items()
        for model in results.of(lineage)
        for step, value in _points(model).items()
    ]
    return Drawing(_draw(panels, columns), points)


def _points(model: Model) -> dict[int, float]:
    """Map the steps of a training to ROUGE-L on dev."""
    return {row["step"]: row["rougeL"] for row in model.dev if row.get("rougeL") is not None}


def _draw(panels_: Mapping[str, Sequence[Series]], columns: int) -> str:
    """Draw panels with one y axis and one legend; an empty figure without any."""
    if not panels_:
        return to_svg(Figure(figsize=(WIDTH, 0.1)))
    names = {series.name: handle(series.look) for found in panels_.values() for series in found}
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(len(panels_), columns, len(panels_), WIDTH, 2.3, names)
        for place, (axis, (title, found)) in enumerate(zip(axes, panels_.items(), strict=True)):
            for series in found:
                _line(axis, series)
            axis.set_title(title, fontsize=9)
            axis.set_xlabel("step", labelpad=1)
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if place % columns == 0:
                axis.set_ylabel("ROUGE-L on dev")
        _fit(axes)
        return to_svg(figure)


def _line(axis: Axes, series: Series) -> None:
    """Draw mean, band and rings of one series, at the steps that all of its trainings have."""
    models = [model for model in series.models if _points(model)]
    runs = [_points(model) for model in models]
    steps = sorted(set.intersection(*map(set, runs))) if runs else []
    if not steps:
        return
    values = np.array([[run[step] for step in steps] for run in runs], dtype=float)
    colour = series.look.colour
    if len(runs) > 1:
        axis.fill_between(
            steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0
        )
    axis.plot(
        steps, values.mean(0), color=colour, linestyle=series.look.dashes, alpha=0.9,
        marker=series.look.marker, markersize=3.5, markevery=max(1, len(steps) // 8),
    )  # fmt: skip
    for model, run in zip(models, runs, strict=True):
        if model.kept_step in run:
            axis.plot(
                model.kept_step, run[model.kept_step], marker="o", markersize=8, fillstyle="none",
                markeredgewidth=1.2, color=colour, linestyle="none",
            )  # fmt: skip


def _fit(axes: Sequence[Axes]) -> None:
    """Fit the y axis to the values after step 0: those of random weights would press all later ones into a line."""
    drawn = [np.asarray(line.get_xydata()) for axis in axes for line in axis.get_lines()]
    drawn += [
        np.asarray(p.vertices)
        for axis in axes
        for band in axis.collections
        for p in band.get_paths()
    ]
    values = [value for points in drawn for step, value in points.tolist() if step > 0]
    if values:
        edge = 0.05 * ((max(values) - min(values)) or 1)
        axes[0].set_ylim(min(values) - edge, max(values) + edge)
