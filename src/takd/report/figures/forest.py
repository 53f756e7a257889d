"""Figure: a forest plot, one line per difference (or score) with its 95 % interval and a tick per training seed."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from takd.analysis import fairness, table
from takd.analysis.comparisons import Pair
from takd.analysis.measures import BY_NAME
from takd.analysis.questions import QUESTIONS
from takd.analysis.results import Results
from takd.analysis.table import DIFFERENCE, SCORE, Number
from takd.analysis.text import listed, p_text
from takd.experiment import controls
from takd.experiment.labels import full_text, size_text
from takd.experiment.lineage import GIVEN, control_of, own, split, student_of
from takd.report.figures.style import GREY, STYLE, Drawing, Look, Plot, looks, to_svg
from takd.report.tables import by_seed


class ForestLine(NamedTuple):
    """One mean with its uncertainty; a hollow marker is a difference that is not significant."""

    label: str
    number: Number
    look: Look
    seeds: Sequence[float] = ()
    """The mean of each training seed."""
    note: str = ""
    """A second, smaller line below the label."""

    @property
    def text(self) -> str:
        """Result of the test: `significant, p = 0.004`; empty without one."""
        number = self.number
        return f"{number.verdict}, {p_text(number.p)}" if number.verdict else ""

    @property
    def hollow(self) -> bool:
        return self.number.kind == DIFFERENCE and not self.number.significant


class Block(NamedTuple):
    """Lines under one heading."""

    title: str
    lines: Sequence[ForestLine]


class Layout(NamedTuple):
    """Measures of one form of the figure, in inches; `above`: labels stand above the lines, not beside them."""

    width: float
    label: float
    said: float
    row: float
    heading: float
    size: float
    wrap: int
    """Letters of a label; a longer one has a second line."""
    above: bool


BROAD = Layout(9.0, 3.05, 3.25, 0.36, 0.42, 9.0, 60, above=False)
NARROW = Layout(4.6, 0.1, 0.1, 0.62, 0.4, 10.4, 40, above=True)
"""So narrow that its text can be read on a phone."""


def differences(results: Results, name: str, measure: str = "rougeL") -> Drawing | None:
    """Draw all differences on one evaluation set, by question; None if there are none."""
    found = blocks(results, name, measure)
    title = f"difference in {BY_NAME[measure].title}"
    return both(found, title, signed=True) if found else None


def blocks(results: Results, name: str, measure: str) -> list[Block]:
    """Lines of the differences on one evaluation set, by question."""
    look = looks(results)
    by_question: dict[str, list[ForestLine]] = {question: [] for question in QUESTIONS}
    for row in table.rows(table.of(results), kind=DIFFERENCE, set=name, measure=measure):
        pair = Pair(row.question, row.lineage, row.other)
        unequal = [one.what for one in fairness.unequal(results, pair) if one.of_data_or_start]
        line = ForestLine(
            pair_text(pair),
            row,
            look[row.lineage],
            list(by_seed(results, row).values()),
            f"arms differ in {listed(unequal)}" if unequal else "",
        )
        by_question[row.question].append(line)
    return [
        Block(QUESTIONS[question].title, lines) for question, lines in by_question.items() if lines
    ]


def scores(results: Results, name: str, measure: str = "rougeL") -> Drawing:
    """Draw the scores of all models on one evaluation set, by model, those of large teachers first."""
    look = looks(results)
    rows = table.rows(table.of(results), kind=SCORE, set=name, measure=measure)
    sizes = {student_of(row.lineage): row.parameters or 0 for row in rows}

    def place(row: Number) -> tuple[bool, list[int]]:
        # SFT first, then large teachers before small ones: a falling column is the capacity gap
        teachers = [-sizes[own(hop.model)] for hop in reversed(split(row.lineage)[:-1])]
        return bool(control_of(row.lineage)), teachers

    lines: dict[str, list[ForestLine]] = {
        model: [] for model in sorted(sizes, key=lambda m: -sizes[m])
    }
    for row in sorted(rows, key=place):
        seeds = list(by_seed(results, row).values())
        entry = ForestLine(full_text(row.lineage), row, look[row.lineage], seeds)
        lines[student_of(row.lineage)].append(entry)
    found = [Block(f"{m}, {size_text(sizes[m])} parameters", of) for m, of in lines.items()]
    return both(found, BY_NAME[measure].title, signed=False)


def both(blocks: Sequence[Block], axis_title: str, signed: bool) -> Drawing:
    """Draw the blocks, beside the texts and, for phones, below them."""
    broad, narrow = (draw(blocks, axis_title, signed, layout) for layout in (BROAD, NARROW))
    return Drawing(broad, narrow=narrow)


DIFFERENCES = Plot(
    "forest",
    "differences of ROUGE-L, the figure above",
    lambda results: differences(results, results.spec["sets"][0]),
)
SCORES = Plot(
    "scores", "ROUGE-L of all models", lambda results: scores(results, results.spec["sets"][0])
)
"""Of the first evaluation set, as is the one above; the page of results has both for each set."""


def pair_text(pair: Pair) -> str:
    """Name a difference: the chain where it is clear from the question what it is compared with, else both sides."""
    if pair.question == "teacher" and (control := controls.of(pair.theirs)):
        return f"{full_text(pair.ours)} − {control.title}"
    if pair.question not in ("method", "given"):
        return full_text(pair.ours)
    ours, theirs = (full_text(lineage).partition(": ") for lineage in (pair.ours, pair.theirs))
    if ours[2] == theirs[2]:
        return f"{ours[0]} − {theirs[0]}: {ours[2]}"
    return f"{''.join(ours)} − {''.join(theirs)}"


def draw(blocks: Sequence[Block], axis_title: str, signed: bool, layout: Layout = BROAD) -> str:
    """Draw the blocks from top to bottom as SVG; `signed` means differences, with a line at zero."""
    rows = sum(len(block.lines) for block in blocks)
    longest = max(len(line.label) for block in blocks for line in block.lines)
    if longest > layout.wrap:
        layout = layout._replace(row=layout.row + 0.2)
    if not layout.above:
        more = max(0, min(longest, layout.wrap) * 0.066 - layout.label)
        layout = layout._replace(label=layout.label + more, width=layout.width + more)
    high = layout.heading * len(blocks) + layout.row * rows
    height = high + 0.55 + (0.55 if layout.above else 0.3)
    with matplotlib.rc_context(STYLE | {"font.size": layout.size}):
        figure = Figure(figsize=(layout.width, height))
        left = layout.label / layout.width
        wide = 1 - left - layout.said / layout.width
        axis = figure.add_axes((left, 1 - (high + 0.05) / height, wide, high / height))
        axis.set_ylim(high, 0)
        low, top = _limits(blocks, signed)
        axis.set_xlim(low, top)
        axis.spines["left"].set_visible(False)
        axis.tick_params(left=False, labelleft=False)
        axis.grid(axis="y", visible=False)
        axis.xaxis.set_major_locator(MaxNLocator(6 if layout.above else 7))
        axis.set_xlabel(axis_title)
        if signed:
            axis.axvline(0, color="black", linewidth=1, zorder=1)
        down = 0.0
        for block in blocks:
            _write(axis, layout, down + 0.62 * layout.heading, block.title, weight="bold")
            down += layout.heading
            for line in block.lines:
                _line(axis, layout, down, line)
                down += layout.row
        _key(figure, layout, blocks, signed)
        return to_svg(figure)


def _limits(blocks: Sequence[Block], signed: bool) -> tuple[float, float]:
    """Ends of the x axis: all means and seeds, and of intervals no more than twice as much again."""
    lines = [line for block in blocks for line in block.lines]
    core = [value for line in lines for value in (line.number.value, *line.seeds)] + [0.0] * signed
    ends = [end for line in lines for end in line.number.interval or ()]
    room = (max(core) - min(core)) or 1.0
    low = max(min([*core, *ends]), min(core) - room)
    high = min(max([*core, *ends]), max(core) + room)
    edge = 0.04 * (high - low) or 0.5
    return low - edge, high + edge


def _line(axis: Axes, layout: Layout, top: float, line: ForestLine) -> None:
    """Draw one line: interval, ticks of the seeds, marker, and its texts."""
    down = top + (0.72 if layout.above else 0.5) * layout.row
    colour = line.look.colour
    low, high = axis.get_xlim()
    if interval := line.number.interval:
        ends = (max(low, interval.low), min(high, interval.high))
        axis.plot(ends, [down, down], color=colour, linewidth=1.5, solid_capstyle="butt", zorder=2)
        for end, reached, arrow in zip((low, high), interval, "<>", strict=True):
            if not low <= reached <= high:
                axis.plot(end, down, marker=arrow, color=colour, markersize=5, clip_on=False)
    if len(line.seeds) > 1:
        axis.plot(
            line.seeds, [down] * len(line.seeds), marker="|", linestyle="none", color=colour,
            markersize=9, markeredgewidth=1.3, zorder=3,
        )  # fmt: skip
    axis.plot(
        line.number.value, down, marker=line.look.marker, color=colour, markersize=6.5, markeredgewidth=1.4,
        markerfacecolor="white" if line.hollow else colour, linestyle="none", zorder=4,
    )  # fmt: skip
    text = "\n".join(textwrap.wrap(line.label, layout.wrap))
    said = line.number.text()
    value = said.partition(" (")[0]
    if layout.above:
        _write(axis, layout, top + 0.27 * layout.row, text)
        short = line.text.partition(",")[0]
        weight = "normal" if line.hollow else "bold"
        _write(axis, layout, top + 0.27 * layout.row, f"{value} {short}", right=True, weight=weight)
        return
    _write(axis, layout, down - 0.075 if line.note else down, text)
    if line.note:
        below = 0.085 + 0.08 * text.count("\n")
        _write(axis, layout, down + below, line.note, size=8.8, color=GREY)
    for words, at in ((said, 6), (line.text, 124)):
        axis.annotate(
            words, (1, down), (at, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
            weight="normal" if line.hollow else "bold", size=8.8,
        )  # fmt: skip


def _write(
    axis: Axes, layout: Layout, down: float, text: str, right: bool = False, **how: Any
) -> None:
    """Write a text at the left edge of the figure, or at its right edge, at a height of the axis."""
    at = (0.05 - layout.label) * 72
    axis.annotate(
        text, (1 if right else 0, down), (0 if right else at, 0), xycoords=("axes fraction", "data"),
        textcoords="offset points", va="center", ha="right" if right else "left", annotation_clip=False,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.3}, **how,
    )  # fmt: skip


def _key(figure: Figure, layout: Layout, blocks: Sequence[Block], signed: bool) -> None:
    """Add the legend: markers of the routes, ticks, and filled against hollow."""
    lines = [line for block in blocks for line in block.lines]
    given = any(line.number.method == GIVEN for line in lines)
    shown = {line.look.marker for line in lines}
    names = {
        "SFT alone, or as given" if given else "SFT alone": ("s", "s" in shown),
        "straight from the teacher": ("o", "o" in shown),
        "through assistants": ("D", "D" in shown),
        "one training seed": ("|", any(len(line.seeds) > 1 for line in lines)),
        "filled: significant": ("o", signed),
        "hollow: n.s.": ("o", signed),
    }
    marks = {
        text: Line2D(
            [], [], color=GREY, marker=marker, markersize=6 if marker != "|" else 9, linestyle="none",
            markerfacecolor="white" if text.startswith("hollow") else GREY,
        )
        for text, (marker, there) in names.items() if there
    }  # fmt: skip
    figure.legend(
        list(marks.values()), list(marks), loc="lower left", bbox_to_anchor=(0.0, 0.0),
        ncols=2 if layout.above else len(marks), fontsize=10.2 if layout.above else 9,
        handletextpad=0.3, columnspacing=1.2, borderaxespad=0.1,
    )  # fmt: skip
