"""Style shared by all figures: one look per lineage, and the conversion of a drawing to a file.

Equal results give equal bytes: no date, and a fixed salt for the identifiers. Text stays text, so that it can be
searched and scales. Colours are those of Okabe and Ito; a colour is a method, a marker
a route (labels alone, direct, through assistants).
"""

import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from takd.analysis.exports import to_csv
from takd.analysis.results import JsonRow, Results
from takd.experiment.labels import short_number
from takd.experiment.lineage import GIVEN, SUPERVISED, control_of, split, student_of

# Okabe and Ito without yellow, which is too faint on white; black is kept for supervised models
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
BLACK = "#000000"
GREY = "#555555"
ROUTES = {1: "s", 2: "o", 3: "D"}
"""Marker by the models of a chain: one is trained on labels alone, two are direct, more are through assistants."""
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (8, 3)), (0, (1, 3)))

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "takd",
    # a dollar sign in a label must not start a formula
    "text.parse_math": False,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "errorbar.capsize": 3,
}

WIDTH = 9.0
"""Inches: two thirds of a landscape page, or the whole width of a portrait one when scaled."""


TITLE, BELOW, LEFT, EDGE, LEGEND_LINE = 0.3, 0.55, 0.75, 0.1, 0.22
"""Inches above a panel, below it, to its left, at the edges of a figure, and of a line of a legend."""
Key = Mapping[str, Line2D]


class Look(NamedTuple):
    """Look of a lineage, the same in every figure."""

    colour: str
    marker: str
    dashes: Any


def looks(results: Results) -> dict[str, Look]:
    """Assign one look per lineage: colour by method, grey for controls, marker by route, dashes within a route."""
    methods = list(dict.fromkeys(split(lineage)[-1].method for lineage in results.lineages))
    taught = [method for method in methods if method not in (SUPERVISED, GIVEN)]
    count: Counter[str] = Counter()
    chosen: dict[str, Look] = {}
    for lineage in results.lineages:
        method = split(lineage)[-1].method
        colour = BLACK if method not in taught else COLOURS[taught.index(method) % len(COLOURS)]
        colour = GREY if control_of(lineage) else colour
        marker = ROUTES[min(len(split(lineage)), 3)]
        # in grey, dashes tell methods of one route apart
        order = [DASHES[(count[marker] + step) % len(DASHES)] for step in range(len(DASHES))]
        possible = [Look(colour, marker, dashes) for dashes in order]
        chosen[lineage] = next((x for x in possible if x not in chosen.values()), possible[0])
        count[marker] += 1
    return chosen


def by_size(results: Results) -> dict[str, int]:
    """Parameters of every trained model, the largest first."""
    sizes = {student_of(m.node.lineage): m.parameters for m in results.models.values()}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


class Drawing(NamedTuple):
    """A figure as SVG.

    Attributes:
        numbers: one row for each mark, written as CSV beside the figure; none where another file has them.
        narrow: its form for phones, if it has one.
        note: text below it on its page.
    """

    svg: str
    numbers: Sequence[JsonRow] = ()
    narrow: str = ""
    note: str = ""

    @property
    def csv(self) -> str:
        return to_csv(self.numbers)


class Plot(NamedTuple):
    """A figure of the report, with what the pages have to know of it.

    Attributes:
        name: name of its files, without suffix.
        about: what it shows, said beside its download.
        draw: function that draws it; None if there is nothing to draw.
        page: page that shows it under `title`; empty for one that a template places.
    """

    name: str
    about: str
    draw: Callable[[Results], Drawing | None]
    page: str = ""
    title: str = ""


def handle(look: Look, size: float = 4) -> Line2D:
    """Legend entry of a line, or of a marker alone where the look has no dashes (`none`)."""
    return Line2D(
        [], [], color=look.colour, linestyle=look.dashes, marker=look.marker, markersize=size
    )


def to_svg(figure: Figure) -> str:
    """Convert a figure to the text of an SVG file."""
    file = io.StringIO()
    # no metadata at all: a date would change the bytes, and its schema names are web addresses
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    return file.getvalue()


def panels(
    count: int, columns: int, shared: int, height: float, key: Key, y_title: str
) -> tuple[Figure, list[Axes]]:
    """Lay out panels in rows, with a legend below them. Lengths are in inches.

    Matplotlib's own layout engines differ in the last digits from run to run, but equal results give equal files.

    Args:
        shared: so many panels after one another share a y axis.
        key: texts of the legend and their marks.
        y_title: of the y axes of the first column.
    """
    texts = list(key)
    longest = max(map(len, texts))
    across = 3 if longest <= 34 else 2 if longest <= 56 else 1
    across = max(1, min(len(texts), across))
    legend = LEGEND_LINE * math.ceil(len(texts) / across) + EDGE
    row, cell = TITLE + height + BELOW, (WIDTH - EDGE) / columns
    total = EDGE + row * math.ceil(count / columns) + legend
    figure, axes = Figure(figsize=(WIDTH, total)), list[Axes]()
    for place in range(count):
        down, column = divmod(place, columns)
        left, bottom = LEFT + column * cell, total - EDGE - down * row - TITLE - height
        corner = (left / WIDTH, bottom / total, (cell - LEFT) / WIDTH, height / total)
        share = axes[place - place % shared] if place % shared else None
        axes.append(figure.add_axes(corner, label=str(place), sharey=share))
        axes[-1].set_ylabel("" if column else y_title)
    figure.legend(
        list(key.values()), texts, loc="lower left", bbox_to_anchor=(EDGE / WIDTH, EDGE / total / 2),
        ncols=across, borderaxespad=0, fontsize=9,
    )  # fmt: skip
    return figure, axes


def mean_and_band(axis: Axes, x: Any, values: NDArray[np.float64], look: Look) -> None:
    """Draw the mean over training seeds of values (seeds, points), and a band from the lowest seed to the highest."""
    if len(values) > 1:
        ends = (values.min(0), values.max(0))
        axis.fill_between(x, *ends, color=look.colour, alpha=0.15, linewidth=0)
    axis.plot(
        x, values.mean(0), color=look.colour, linestyle=look.dashes, alpha=0.9, marker=look.marker,
        markersize=3.5, markevery=max(1, len(x) // 8),
    )  # fmt: skip


def round_ticks(axis: Axis) -> None:
    """Label a linear axis by a few round numbers: `2.5G`."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def log_ticks(axis: Axis, most: int, text: Callable[[float], str]) -> LogLocator:
    """Label a logarithmic axis by 1, 2, 5, 10 …, as plain text; returns the locator of the ticks."""
    locator = LogLocator(subs=(1, 2, 5), numticks=most)
    axis.set_major_locator(locator)
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    return locator


_SHAPES = {
    "o": '<circle cx="18" cy="6" r="3.5"/>',
    "s": '<path d="M14.5 2.5h7v7h-7z"/>',
    "D": '<path d="M18 1.5l4.5 4.5-4.5 4.5-4.5-4.5z"/>',
}
_STROKES = dict(zip(DASHES, ("", "6 3", "7 2 1.5 2", "1.5 2", "10 4", "1.5 4"), strict=True))


def stroke(look: Look) -> Markup:
    """Sample of a line, small enough for running text."""
    return Markup(
        f'<svg class="stroke" viewBox="0 0 36 12" aria-hidden="true" fill="{look.colour}" stroke="{look.colour}">'
        f'<path d="M0 6h36" fill="none" stroke-width="2" stroke-dasharray="{_STROKES[look.dashes]}"/>'
        f'<g stroke="none">{_SHAPES[look.marker]}</g></svg>'
    )
