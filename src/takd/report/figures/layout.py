"""Figure layout in inches.

Matplotlib's own layout engines differ in the last digits from run to run, but equal results should give identical
files. A sheet grows downwards: rows of panels, headings, legends.
"""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

TITLE = 0.3
EDGE = 0.1
WIDE = 9.0
"""Inches of a figure whose legend has three columns of 34 characters, or two of 56."""
LINE = 0.22
"""Inches that a line of a legend takes."""


class Sheet:
    """Rows of panels of equal height, one below the other. All lengths are inches, positions are from the top."""

    def __init__(
        self, width: float, rows: int, height: float, below: float, margin: float = 0.65
    ) -> None:
        """`below` is the space for text under each row, `margin` that to the left of a panel."""
        self.width = width
        self.height = height
        self.below = below
        self.margin = margin
        self._figure = Figure(figsize=(width, height))
        self._end = EDGE
        self._tops: list[float] = []
        self._panels: list[tuple[Axes, float, float, float]] = []
        self._headings: list[tuple[str, float]] = []
        self._legends: list[tuple[Sequence[Line2D], Sequence[str], float, int]] = []
        for _ in range(rows):
            self.add_row()

    def extend(self, height: float) -> float:
        """Add space at the bottom; returns the position where it starts."""
        start = self._end
        self._end += height
        return start

    def add_row(self) -> None:
        """Start another row of panels, with space for their titles."""
        self._tops.append(self.extend(TITLE + self.height + self.below) + TITLE)

    def panel(self, row: int, column: int, columns: int, share: Axes | None = None) -> Axes:
        """Add a panel to a row of `columns`; it may share another panel's y axis."""
        axis = self._figure.add_axes((0, 0, 1, 1), label=str(len(self._panels)), sharey=share)
        width = (self.width - EDGE) / columns - self.margin
        left = self.margin + column * (self.width - EDGE) / columns
        self._panels.append((axis, left, self._tops[row], width))
        return axis

    def write(self, text: str, top: float) -> None:
        """Write a heading at the left edge."""
        self._headings.append((text, top))

    def key(self, handles: Sequence[Line2D], texts: Sequence[str]) -> None:
        """Add a legend at the bottom over the whole width, with as many columns as its longest text allows."""
        longest = max(map(len, texts))
        room = self.width / WIDE
        columns = min(len(texts), 3 if longest <= 34 * room else 2 if longest <= 56 * room else 1)
        top = self.extend(LINE * math.ceil(len(texts) / columns) + EDGE)
        self._legends.append((handles, texts, top, columns))

    def finish(self) -> Figure:
        """Place all elements, now that the height is known."""
        self._figure.set_size_inches(self.width, self._end)
        for axis, left, top, width in self._panels:
            size = (width / self.width, self.height / self._end)
            axis.set_position((*self._corner(left, top + self.height), *size))
        for text, top in self._headings:
            self._figure.text(*self._corner(EDGE, top), text, weight="bold", size=10, va="top")
        for handles, texts, top, columns in self._legends:
            self._figure.legend(
                handles,
                texts,
                loc="upper left",
                bbox_to_anchor=self._corner(EDGE, top),
                ncols=columns,
                borderaxespad=0,
            )
        return self._figure

    def _corner(self, left: float, top: float) -> tuple[float, float]:
        """Convert a position to fractions of the figure, from its lower left corner."""
        return left / self.width, 1 - top / self._end
