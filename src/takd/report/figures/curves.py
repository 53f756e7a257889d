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
from takd.report.figures import style
from takd.report.figures.style import COLOURS, DASHES, Drawing, Look, Plot

NOT_A_CURVE = {"kind", "step", "steps", "seconds", "tokens", "flops", "learning_rate", "n"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class Series(NamedTuple):
    """One line: the trainings of a lineage, one per training seed."""

    name: str
    look: Look
    models: Sequence[Model]


def numbers(results: Results, log: str) -> list[JsonRow]:
    """List the quantities of a log ("train" or "dev") in long form: one row per model, step and quantity."""
    return [
        {"lineage": lineage, "seed": model.node.seed, "step": row["step"]}
        | {"quantity": quantity, "value": float(value)}
        for lineage in results.lineages
        for model in results.of(lineage)
        for row in getattr(model, log)
        for quantity, value in row.items()
        if quantity not in NOT_A_CURVE and isinstance(value, int | float)
    ]


def learning_curves(results: Results) -> Drawing | None:
    """Draw ROUGE-L on dev against the step, a panel for each model; None if none was trained here."""
    look = style.looks(results)
    panels: dict[str, list[Series]] = {}
    for lineage in results.lineages:
        if not is_given(lineage):
            series = Series(full_text(lineage), look[lineage], results.of(lineage))
            panels.setdefault(student_of(lineage), []).append(series)
    if not panels:
        return None
    return Drawing(_draw(panels, min(len(panels), 3)), numbers(results, "dev"))


PLOT = Plot("learning", "learning curves, ROUGE-L on dev", learning_curves)


def experiments(compared: Mapping[str, Results], lineages: Sequence[str]) -> Drawing:
    """Draw ROUGE-L on dev of several experiments, a panel for each lineage that is trained."""
    panels: dict[str, list[Series]] = {}
    points = []
    for lineage in lineages:
        for place, (name, results) in enumerate(compared.items()):
            look = Look(*(kind[place % len(kind)] for kind in (COLOURS, MARKERS, DASHES)))
            series = Series(name, look, results.of(lineage))
            if not is_given(lineage):
                panels.setdefault(full_text(lineage), []).append(series)
            points += [
                {"lineage": lineage, "experiment": name, "seed": model.node.seed, "step": step}
                | {"rougeL": float(value), "kept": step == model.kept_step}
                for model in series.models
                for step, value in _points(model).items()
            ]
    longest = max(map(len, panels), default=0)
    columns = min(len(panels), 3 if longest <= 28 else 2 if longest <= 46 else 1)
    return Drawing(_draw(panels, columns), points)


def _points(model: Model) -> dict[int, float]:
    """Map the steps of a training to ROUGE-L on dev."""
    return {row["step"]: row["rougeL"] for row in model.dev if row.get("rougeL") is not None}


def _draw(panels: Mapping[str, Sequence[Series]], columns: int) -> str:
    """Draw panels with one y axis and one legend; an empty figure without any."""
    if not panels:
        return style.to_svg(Figure(figsize=(style.WIDTH, 0.1)))
    names = {each.name: style.handle(each.look) for found in panels.values() for each in found}
    with matplotlib.rc_context(style.STYLE):
        count, later = len(panels), list[float]()
        figure, axes = style.panels(count, columns, count, 2.3, names, "ROUGE-L on dev")
        for axis, (title, found) in zip(axes, panels.items(), strict=True):
            for series in found:
                later += _line(axis, series)
            axis.set_title(title, fontsize=9)
            axis.set_xlabel("step", labelpad=1)
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if later:
            # random weights (step 0) would press all later values into a line
            edge = 0.05 * ((max(later) - min(later)) or 1)
            axes[0].set_ylim(min(later) - edge, max(later) + edge)
        return style.to_svg(figure)


def _line(axis: Axes, series: Series) -> list[float]:
    """Draw mean, band and rings of one series, at the steps that all of its trainings have.

    Returns the drawn values of single trainings after step 0.
    """
    runs = [(model.kept_step, found) for model in series.models if (found := _points(model))]
    steps = sorted(set.intersection(*(set(run) for _, run in runs))) if runs else []
    if not steps:
        return []
    values = np.array([[run[step] for step in steps] for _, run in runs], dtype=float)
    style.mean_and_band(axis, steps, values, series.look)
    drawn = [run[step] for _, run in runs for step in steps if step > 0]
    for kept, run in runs:
        if kept in run:
            drawn += [run[kept]] if kept else []
            axis.plot(
                kept, run[kept], marker="o", markersize=8, fillstyle="none", markeredgewidth=1.2,
                color=series.look.colour, linestyle="none",
            )  # fmt: skip
    return drawn
