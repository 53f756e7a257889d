"""Figure layout in inches.

Matplotlib's own layout engines differ in the last digits from run to run, but equal results should give identical
files. A sheet grows downwards: rows of panels with headings between them, and a legend below all.
"""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

TITLE = 0.3
EDGE = 0.1
MARGIN = 0.65
HEADING = 0.18
LINE = 0.22
"""Inches: space for the title above a panel, at the edges, left of a panel, for a heading, for a line of the legend."""
LETTERS = 12.6
"""Letters of a legend that fit into an inch, with the space between its columns."""


class Sheet:
    """Rows of panels of equal height. All lengths are inches, positions are from the top."""

    def __init__(self, width: float, columns: int, height: float, below: float) -> None:
        """`height` is that of a panel, `below` the space for text under each row."""
        self.width, self.columns, self.height, self.below = width, columns, height, below
        self._figure = Figure(figsize=(width, height))
        self._end = EDGE
        self._column = 0
        self._panels: list[tuple[Axes, float, float]] = []
        self._headings: list[tuple[str, float]] = []

    @property
    def at_edge(self) -> bool:
        """Whether the last panel is the first of its row."""
        return self._column % self.columns == 1 % self.columns

    def heading(self, text: str) -> None:
        """Write a heading; the next panel starts another row below it."""
        self._headings.append((text, self._end))
        self._end += HEADING
        self._column = 0

    def panel(self, share: Axes | None = None) -> Axes:
        """Add a panel, at the end of the last row or in another one; it may share another panel's y axis."""
        place = self._column % self.columns
        if place == 0:
            self._end += TITLE + self.height + self.below
        self._column += 1
        axis = self._figure.add_axes((0, 0, 1, 1), label=str(len(self._panels)), sharey=share)
        left = MARGIN + place * (self.width - EDGE) / self.columns
        self._panels.append((axis, left, self._end - self.below))
        return axis

    def finish(self, handles: Sequence[Line2D], texts: Sequence[str]) -> Figure:
        """Add the legend in as many columns as its longest text allows, and place everything."""
        columns = max(1, min(len(texts), 3, int(self.width * LETTERS / (max(map(len, texts)) + 4))))
        top, self._end = self._end, self._end + LINE * math.ceil(len(texts) / columns) + EDGE
        self._figure.set_size_inches(self.width, self._end)
        wide = ((self.width - EDGE) / self.columns - MARGIN) / self.width
        for axis, left, foot in self._panels:
            axis.set_position((*self._corner(left, foot), wide, self.height / self._end))
        for text, above in self._headings:
            self._figure.text(*self._corner(EDGE, above), text, weight="bold", size=10, va="top")
        self._figure.legend(
            handles, texts, loc="upper left", bbox_to_anchor=self._corner(EDGE, top), ncols=columns,
            borderaxespad=0,
        )  # fmt: skip
        return self._figure

    def _corner(self, left: float, top: float) -> tuple[float, float]:
        """Convert a position to fractions of the figure, from its lower left corner."""
        return left / self.width, 1 - top / self._end
