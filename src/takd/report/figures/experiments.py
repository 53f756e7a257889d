"""Figure: learning curves of the models that several experiments share, in the same axes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from takd.analysis.results import Results, Row
from takd.experiment.labels import full_text
from takd.report.figures.layout import Sheet
from takd.report.figures.style import (
    COLOURS,
    DASHES,
    MARKERS,
    STYLE,
    WIDTH,
    Drawing,
    Look,
    handle,
    to_svg,
)


class Curves(NamedTuple):
    """Name and results of an experiment."""

    name: str
    results: Results


def learning(experiments: Sequence[Curves], lineages: Sequence[str]) -> Drawing:
    """Draw ROUGE-L on dev against the step: one panel per lineage, one look per experiment, one line per seed.

    A ring marks the step that was kept. `lineages` must not be empty.
    """
    looks = [_look(place) for place in range(len(experiments))]
    longest = max(len(full_text(lineage)) for lineage in lineages)
    columns = min(len(lineages), 3 if longest <= 28 else 2 if longest <= 46 else 1)
    # a dollar sign in a name must not start a formula
    with matplotlib.rc_context(STYLE | {"text.parse_math": False}):
        rows = math.ceil(len(lineages) / columns)
        sheet = Sheet(WIDTH, rows, height=2.1 if columns > 1 else 2.6, below=0.55)
        first: Axes | None = None
        for place, lineage in enumerate(lineages):
            axis = sheet.panel(place // columns, place % columns, columns, share=first)
            first = first or axis
            for experiment, look in zip(experiments, looks, strict=True):
                _draw(axis, experiment.results, lineage, look)
            axis.set_title(full_text(lineage), fontsize=9)
            axis.set_xlabel("step", labelpad=1)
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if place % columns == 0:
                axis.set_ylabel("ROUGE-L on dev")
        sheet.key([handle(look) for look in looks], [each.name for each in experiments])
        return Drawing(to_svg(sheet.finish()), _numbers(experiments, lineages))


def _look(place: int) -> Look:
    """Look of an experiment: colour, marker and dashes all differ."""
    return Look(
        COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], DASHES[place % len(DASHES)]
    )


def _draw(axis: Axes, results: Results, lineage: str, look: Look) -> None:
    for model in results.of(lineage):
        points = [(row["step"], row["rougeL"]) for row in _dev(model.dev)]
        if not points:
            continue
        axis.plot(
            *zip(*points, strict=True), color=look.colour, linestyle=look.dashes, alpha=0.85,
            marker=look.marker, markersize=3.5, markevery=max(1, len(points) // 10),
        )  # fmt: skip
        for step, value in points:
            if step == model.kept_step:
                axis.plot(
                    step, value, marker="o", markersize=9, fillstyle="none",
                    markeredgewidth=1.4, color=look.colour, linestyle="none",
                )  # fmt: skip


def _dev(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("rougeL") is not None]


def _numbers(experiments: Sequence[Curves], lineages: Sequence[str]) -> list[Row]:
    """One row per point."""
    return [
        {
            "lineage": lineage,
            "experiment": experiment.name,
            "seed": model.node.seed,
            "step": row["step"],
            "rougeL": float(row["rougeL"]),
            "kept": row["step"] == model.kept_step,
        }
        for lineage in lineages
        for experiment in experiments
        for model in experiment.results.of(lineage)
        for row in _dev(model.dev)
    ]
