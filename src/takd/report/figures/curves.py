"""Learning curves: one drawing for dev, for what methods log, and for several experiments side by side.

A line is the mean over the training seeds of a lineage, the band around it reaches from the lowest seed to the highest,
and rings mark the exported steps. The page of learning curves draws the same data itself (`page_data`).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from takd.analysis.results import Model, Results, Row
from takd.experiment.labels import full_text
from takd.experiment.lineage import split
from takd.report.figures.layout import Sheet
from takd.report.figures.style import (
    COLOURS,
    DASHES,
    STYLE,
    WIDTH,
    Drawing,
    Look,
    handle,
    looks,
    to_svg,
)

NOT_A_CURVE = {"kind", "step", "steps", "seconds", "tokens", "learning_rate", "n"}
FIRST = ("loss", "single_step_kl", "reverse_kl", "reward", "response_length")
"""Quantities of the training logs that come before those of single methods."""
MOST = 300
"""Points of a run on the page; longer logs are thinned evenly. The CSV files have all points."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class Series(NamedTuple):
    """One line: the trainings of a lineage, one per training seed."""

    name: str
    look: Look
    models: Sequence[Model]


class Panel(NamedTuple):
    """One pair of axes; `heading` starts a new row of panels below it."""

    title: str
    log: str
    quantity: str
    series: Sequence[Series]
    heading: str = ""


def rows(model: Model, log: str) -> list[Row]:
    """Return the lines of a model's log "train" or "dev"."""
    return model.dev if log == "dev" else model.train


def points(model: Model, log: str, quantity: str) -> dict[int, float]:
    """Map the steps of a training to the values of a quantity, where it has one."""
    return {row["step"]: row[quantity] for row in rows(model, log) if row.get(quantity) is not None}


def quantities(models: Iterable[Model], log: str) -> list[str]:
    """List the numbers in the models' logs: those that many methods share first, then others by name."""
    found = {
        key
        for model in models
        for row in rows(model, log)
        for key, value in row.items()
        if key not in NOT_A_CURVE and isinstance(value, int | float)
    }
    return [key for key in FIRST if key in found] + sorted(found - set(FIRST))


def learning_curves(results: Results) -> Drawing:
    """Draw ROUGE-L on dev against the step, a panel for each model."""
    of_model: dict[str, list[Series]] = {}
    for series, lineage in zip(_series(results), results.lineages, strict=True):
        of_model.setdefault(split(lineage)[-1].model, []).append(series)
    panels = [Panel(model, "dev", "rougeL", found) for model, found in of_model.items()]
    svg = draw(panels, columns=min(len(panels), 3), height=2.4)
    return Drawing(svg, _numbers(results, "dev"))


def training_curves(results: Results) -> Drawing:
    """Draw the quantities that each method logs, a panel for each quantity below the name of the method."""
    of_method: dict[str, list[Series]] = {}
    for series, lineage in zip(_series(results), results.lineages, strict=True):
        of_method.setdefault(split(lineage)[-1].method, []).append(series)
    panels = []
    for method, found in of_method.items():
        names = quantities([model for series in found for model in series.models], "train")
        for place, name in enumerate(names):
            heading = "" if place else method
            panels.append(Panel(name.replace("_", " "), "train", name, found, heading))
    return Drawing(draw(panels, columns=4, height=1.35, share=False), _numbers(results, "train"))


def experiments(compared: Mapping[str, Results], lineages: Sequence[str]) -> Drawing:
    """Draw ROUGE-L on dev of several experiments, a panel for each lineage (at least one)."""
    look = [
        Look(COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)], DASHES[n % len(DASHES)])
        for n in range(len(compared))
    ]
    panels = [
        Panel(
            full_text(lineage),
            "dev",
            "rougeL",
            [
                Series(name, look[place], results.of(lineage))
                for place, (name, results) in enumerate(compared.items())
            ],
        )
        for lineage in lineages
    ]
    longest = max(len(panel.title) for panel in panels)
    columns = min(len(panels), 3 if longest <= 28 else 2 if longest <= 46 else 1)
    numbers = [
        {
            "lineage": lineage,
            "experiment": name,
            "seed": model.node.seed,
            "step": step,
            "rougeL": float(value),
            "kept": step == model.kept_step,
        }
        for lineage in lineages
        for name, results in compared.items()
        for model in results.of(lineage)
        for step, value in points(model, "dev", "rougeL").items()
    ]
    return Drawing(draw(panels, columns, height=2.1 if columns > 1 else 2.6), numbers)


def _series(results: Results) -> list[Series]:
    look = looks(results)
    return [Series(full_text(x), look[x], results.of(x)) for x in results.lineages]


def draw(panels: Sequence[Panel], columns: int, height: float, share: bool = True) -> str:
    """Draw panels in rows of `columns`, with one legend below all; `share` gives them one y axis."""
    with matplotlib.rc_context(STYLE if share else STYLE | {"font.size": 9, "axes.titlesize": 9}):
        sheet = Sheet(WIDTH, rows=0, height=height, below=0.5)
        axes: list[Axes] = []
        column = 0
        for panel in panels:
            if panel.heading:
                sheet.write(panel.heading, sheet.extend(0.15))
                column = 0
            if column % columns == 0:
                sheet.add_row()
            axes.append(axis := sheet.panel(-1, column % columns, columns))
            for series in panel.series:
                _line(axis, panel, series)
            axis.set_title(panel.title, fontsize=9)
            axis.set_xlabel("step", labelpad=1)
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if share and column % columns == 0:
                axis.set_ylabel("ROUGE-L on dev")
            column += 1
        for group in [axes] if share else [[axis] for axis in axes]:
            _fit(group)
        names = {series.name: series.look for panel in panels for series in panel.series}
        sheet.key([handle(look) for look in names.values()], list(names))
        return to_svg(sheet.finish())


def _line(axis: Axes, panel: Panel, series: Series) -> None:
    """Draw mean, band and rings of one series."""
    runs = [points(model, panel.log, panel.quantity) for model in series.models]
    runs = [run for run in runs if run]
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
    for model, run in zip(series.models, runs, strict=False):
        if panel.log == "dev" and model.kept_step in run:
            axis.plot(
                model.kept_step, run[model.kept_step], marker="o", markersize=8, fillstyle="none",
                markeredgewidth=1.2, color=colour, linestyle="none",
            )  # fmt: skip


def _fit(axes: Sequence[Axes]) -> None:
    """Fit y axes to the values after step 0: those of random weights would press all later ones into a line."""
    drawn = [np.asarray(line.get_xydata()) for axis in axes for line in axis.get_lines()]
    drawn += [p.vertices for axis in axes for band in axis.collections for p in band.get_paths()]
    values = [value for points in drawn for step, value in points.tolist() if step > 0]
    if values:
        edge = 0.05 * ((max(values) - min(values)) or 1)
        for axis in axes:
            axis.set_ylim(min(values) - edge, max(values) + edge)


def _numbers(results: Results, log: str) -> list[Row]:
    """Long form: one row per model, step and quantity of a log."""
    return [
        {"lineage": lineage, "seed": model.node.seed, "step": row["step"]}
        | {"quantity": quantity, "value": float(value)}
        for lineage in results.lineages
        for model in results.of(lineage)
        for row in rows(model, log)
        for quantity, value in row.items()
        if quantity not in NOT_A_CURVE and isinstance(value, int | float)
    ]


def reverse_kl(model: Model) -> str:
    """Name under which a method logs the reverse KL to its teacher.

    This is the single-step term of MiniLLM (Gu et al., 2024, section 2.2), or the divergence of a method that is set
    to reverse KL.
    """
    settings = model.manifest["spec"].get("settings", {})
    return "divergence" if settings.get("divergence") == "reverse_kl" else "single_step_kl"


class Quantity(NamedTuple):
    """A number on the page: its log "train" or "dev", and its name in a model's log."""

    title: str
    about: str
    log: str
    column: Callable[[Model], str]


SHOWN = (
    Quantity("ROUGE-L", "on dev", "dev", lambda _: "rougeL"),
    Quantity("Loss", "on the references of dev, nats a token", "dev", lambda _: "loss"),
    Quantity("Reverse KL", "to the teacher, training batches, nats a token", "train", reverse_kl),
    Quantity("Response length", "on dev, tokens", "dev", lambda _: "response_length"),
    Quantity("Reward", "a token: log p − log q on training rollouts", "train", lambda _: "reward"),
)
"""Panels that come first on the page; all other quantities of the training logs follow."""


def page_data(results: Results) -> dict[str, Any]:
    """Build the data of the page: quantities that are logged, and their values in each training.

    `runs` have `lineage`, `seed`, `kept` (the exported step) and, by title of the quantity, columns `step`, `tokens`,
    `minutes` and `value`.
    """
    models = list(results.models.values())
    named = {quantity.column(model) for quantity in SHOWN for model in models}
    others = [name for name in quantities(models, "train") if name not in named | {"loss"}]
    every = [*SHOWN, *(_logged(name) for name in ["loss", *others])]
    runs = [
        {
            "lineage": model.node.lineage,
            "seed": model.node.seed,
            "kept": model.kept_step,
            "values": {
                quantity.title: columns
                for quantity in every
                if (columns := _columns(rows(model, quantity.log), quantity.column(model)))
            },
        }
        for model in models
    ]
    logged = {title for run in runs for title in run["values"]}
    return {
        "quantities": [
            {"title": each.title, "about": each.about, "dev": each.log == "dev"}
            for each in every
            if each.title in logged
        ],
        "runs": runs,
    }


def _logged(name: str) -> Quantity:
    title = "Training loss" if name == "loss" else name.replace("_", " ").capitalize()
    return Quantity(title, "on training batches", "train", lambda _: name)


def _columns(log: Sequence[Row], name: str) -> dict[str, list[float]]:
    found = [row for row in log if row.get(name) is not None]
    found = found[:: math.ceil(len(found) / MOST) or 1]
    if not found:
        return {}
    return {
        "step": [row["step"] for row in found],
        "tokens": [row.get("tokens", 0) for row in found],
        "minutes": [round(row.get("seconds", 0) / 60, 3) for row in found],
        "value": [float(f"{row[name]:.5g}") for row in found],
    }
