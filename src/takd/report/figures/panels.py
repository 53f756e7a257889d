"""Panels of the learning-curve page: one drawing per quantity, each line identified by its lineage."""

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from takd.analysis.results import Model, Results, Row
from takd.report.figures.curves import curve, ring
from takd.report.figures.layout import Sheet
from takd.report.figures.scope import line_id
from takd.report.figures.style import STYLE, looks, to_svg

WIDTH, HEIGHT = 4.8, 2.6
"""Inches of a panel; so narrow that its text can be read on a phone."""
PHONE = {"lines.linewidth": 1.3, "font.size": 10.8, "axes.titlesize": 10.8}


@dataclass(frozen=True)
class Quantity:
    """A logged number to draw against the step."""

    title: str
    about: str
    log: str
    """Which log holds it, "train" or "dev"."""
    column: Callable[[Model], str]
    """Its name in a model's log."""


def reverse_kl(model: Model) -> str:
    """Name under which a method logs the reverse KL to its teacher.

    For MiniLLM this is its single-step term (Gu et al., 2024, section 2.2). Other methods use the name for their
    divergence, whichever it is.
    """
    settings = model.manifest["spec"].get("settings", {})
    if settings.get("divergence") == "reverse_kl":
        return "divergence"
    return "single_step_kl"


QUANTITIES = (
    Quantity(
        "ROUGE-L", "on dev; a ring marks the weights that were kept", "dev", lambda _: "rougeL"
    ),
    Quantity("Loss", "on the references of dev, nats a token", "dev", lambda _: "loss"),
    Quantity("Reverse KL", "to the teacher, training batches, nats a token", "train", reverse_kl),
    Quantity("Response length", "on dev, tokens", "dev", lambda _: "response_length"),
    Quantity("Reward", "a token: log p − log q on training rollouts", "train", lambda _: "reward"),
)


@dataclass(frozen=True)
class Panel:
    """One quantity: its drawing, empty if no method logged it, and the lineages that it shows."""

    quantity: Quantity
    svg: str
    lineages: list[str]
    cut: bool = False
    """Whether values of step 0 lie beyond the edge."""


def panels(results: Results) -> list[Panel]:
    """Draw all quantities, one line per training; each line, mark and ring carries its lineage (`scope.line_id`)."""
    return [_panel(results, quantity) for quantity in QUANTITIES]


def _panel(results: Results, quantity: Quantity) -> Panel:
    look = looks(results)
    shown = []
    with matplotlib.rc_context(STYLE | PHONE):
        sheet = Sheet(WIDTH, rows=1, height=HEIGHT, below=0.45, margin=0.6)
        axis = sheet.panel(0, 0, 1)
        for lineage in results.lineages:
            for model in results.of(lineage):
                column = quantity.column(model)
                rows: list[Row] = model.dev if quantity.log == "dev" else model.train
                names = [line_id(lineage, model.node.seed, what) for what in ("line", "ring")]
                if curve(axis, rows, column, look[lineage], name=names[0]):
                    shown.append(lineage)
                    if column == "rougeL":
                        ring(axis, model, look[lineage], name=names[1])
        cut = _fit(axis)
        axis.set_title(quantity.title, weight="bold")
        axis.set_xlabel("step", labelpad=1)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        svg = to_svg(sheet.finish()) if shown else ""
    return Panel(quantity, svg, list(dict.fromkeys(shown)), cut)


def _fit(axis: Axes) -> bool:
    """Fit the axis to the values after step 0; returns whether a value of step 0 lies outside.

    The loss and response length of a model with random weights would compress all later values into a line.
    """
    points: list[tuple[float, float]] = [
        (float(step), float(value))
        for line in axis.get_lines()
        for step, value in np.asarray(line.get_xydata())
    ]
    later = [value for step, value in points if step > 0]
    if not later:
        return False
    edge = 0.05 * ((max(later) - min(later)) or 1)
    low, high = min(later) - edge, max(later) + edge
    axis.set_ylim(low, high)
    return any(not low <= value <= high for _, value in points)
