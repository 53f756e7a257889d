"""Figure: a forest plot, one line per difference (or score) with its 95 % interval and a tick per training seed."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from takd.analysis.comparisons import Difference, Pair, analyse, p_text
from takd.analysis.results import Results
from takd.analysis.statistics import Interval, number
from takd.experiment.labels import chain_text, full_text, method_title, methods_text
from takd.experiment.lineage import split
from takd.report.figures.style import STYLE, Look, looks, size_text, to_svg

GREY = "#555555"


class Line(NamedTuple):
    """One mean with its uncertainty. A hollow marker is a difference that is not significant."""

    label: str
    mean: float
    interval: Interval | None
    seeds: Sequence[float]
    """The mean of each training seed."""
    look: Look
    hollow: bool
    text: str
    """Said at the end of the line, after the mean and its interval."""
    note: str = ""
    """A second, smaller line below the label."""


class Block(NamedTuple):
    """Lines under one heading."""

    title: str
    lines: Sequence[Line]


class Shape(NamedTuple):
    """Measures of a form of the figure, in inches; `above`: labels stand above the lines, not beside them."""

    width: float
    label: float
    said: float
    row: float
    heading: float
    size: float
    above: bool


BROAD = Shape(9.0, 3.15, 3.0, 0.33, 0.42, 9.0, above=False)
NARROW = Shape(4.6, 0.1, 0.1, 0.62, 0.4, 10.4, above=True)
"""So narrow that its text can be read on a phone."""


class Forest(NamedTuple):
    """The two forms of the figure as SVG."""

    broad: str
    narrow: str


QUESTIONS = {
    "direct": "Does the assistant help? (through − direct)",
    "sft": "Gain over SFT of the same model",
    "method": "Method against method on one chain",
}
"""Headings, in the order of the blocks."""


def differences(results: Results, name: str) -> Forest | None:
    """Draw all differences of ROUGE-L on one evaluation set, by question; None if there are none."""
    found, look = analyse(results), looks(results)
    blocks = []
    for question, title in QUESTIONS.items():
        lines = [
            Line(
                pair_text(pair),
                difference.mean,
                difference.interval,
                seed_means(results, name, pair),
                look[pair.ours],
                not difference.verdict,
                verdict(difference),
            )
            for pair, difference in found.of(name, question)
        ]
        if lines:
            blocks.append(Block(title, lines))
    return both(blocks, "difference in ROUGE-L", signed=True) if blocks else None


def scores(results: Results, name: str) -> Forest:
    """Draw ROUGE-L of all models on one evaluation set, by model, those of large teachers first."""
    found, look = analyse(results), looks(results)
    sizes = {split(m.node.lineage)[-1].model: m.parameters for m in results.models.values()}
    blocks = []
    for model in sorted(sizes, key=lambda model: -sizes[model]):
        ends = [lineage for lineage in results.lineages if split(lineage)[-1].model == model]
        # labels alone first, then large teachers before small ones: a falling column is the capacity gap
        ends.sort(key=lambda lineage: [-sizes[hop.model] for hop in reversed(split(lineage)[:-1])])
        lines = []
        for lineage in ends:
            score = found.scores[name, lineage, "rougeL"]
            seeds = _by_seed(results, name, lineage)
            lines.append(
                Line(
                    full_text(lineage), score.mean, score.interval, seeds, look[lineage], False, ""
                )
            )
        blocks.append(Block(f"{model}, {size_text(sizes[model])} parameters", lines))
    return both(blocks, "ROUGE-L", signed=False)


def both(blocks: Sequence[Block], axis_title: str, signed: bool) -> Forest:
    return Forest(*(draw(blocks, axis_title, signed, shape) for shape in (BROAD, NARROW)))


def pair_text(pair: Pair) -> str:
    """Name a difference: the chain where it is clear from the question what it is compared with, else both sides."""
    if pair.question != "method":
        return full_text(pair.ours)
    ours, theirs = (methods_text(lineage) for lineage in (pair.ours, pair.theirs))
    if chain_text(pair.ours) == chain_text(pair.theirs):
        titles = (" → ".join(map(method_title, text.split(" → "))) for text in (ours, theirs))
        return f"{' − '.join(titles)}: {chain_text(pair.ours)}"
    return f"{full_text(pair.ours)} − {full_text(pair.theirs)}"


def seed_means(results: Results, name: str, pair: Pair) -> list[float]:
    """Difference of each training seed that both models have."""
    seeds = [seed for seed in results.seeds(pair.ours) if seed in results.seeds(pair.theirs)]
    ours, theirs = (
        results.scores(lineage, name, "rougeL", seeds) for lineage in (pair.ours, pair.theirs)
    )
    return [float(value) for value in (ours - theirs).mean(axis=(1, 2))]


def _by_seed(results: Results, name: str, lineage: str) -> list[float]:
    found = results.scores(lineage, name, "rougeL", results.seeds(lineage))
    return [float(value) for value in found.mean(axis=(1, 2))]


def verdict(difference: Difference) -> str:
    """`significant, p = 0.004` or `n.s., p = 0.31`."""
    if difference.p is None:
        return "no test"
    return f"{'significant' if difference.verdict else 'n.s.'}, {p_text(difference.p)}"


def draw(blocks: Sequence[Block], axis_title: str, signed: bool, shape: Shape = BROAD) -> str:
    """Draw the blocks from top to bottom as SVG; `signed` means differences, with a line at zero."""
    rows = sum(len(block.lines) for block in blocks)
    high = shape.heading * len(blocks) + shape.row * rows
    height = high + 0.55 + (0.55 if shape.above else 0.3)
    with matplotlib.rc_context(STYLE | {"font.size": shape.size}):
        figure = Figure(figsize=(shape.width, height))
        left = shape.label / shape.width
        wide = 1 - left - shape.said / shape.width
        axis = figure.add_axes((left, 1 - (high + 0.05) / height, wide, high / height))
        axis.set_ylim(high, 0)
        low, top = _limits(blocks, signed)
        axis.set_xlim(low, top)
        axis.spines["left"].set_visible(False)
        axis.tick_params(left=False, labelleft=False)
        axis.grid(axis="y", visible=False)
        axis.xaxis.set_major_locator(MaxNLocator(6 if shape.above else 7))
        axis.set_xlabel(axis_title)
        if signed:
            axis.axvline(0, color="black", linewidth=1, zorder=1)
        down = 0.0
        for block in blocks:
            _write(axis, shape, down + 0.62 * shape.heading, block.title, weight="bold")
            down += shape.heading
            for line in block.lines:
                _line(axis, shape, down, line, signed)
                down += shape.row
        _key(figure, shape, blocks, signed)
        return to_svg(figure)


def _limits(blocks: Sequence[Block], signed: bool) -> tuple[float, float]:
    """Ends of the x axis: all means and seeds, and of intervals no more than twice as much again."""
    lines = [line for block in blocks for line in block.lines]
    core = [value for line in lines for value in (line.mean, *line.seeds)] + [0.0] * signed
    ends = [end for line in lines for end in line.interval or ()]
    room = (max(core) - min(core)) or 1.0
    low = max(min([*core, *ends]), min(core) - room)
    high = min(max([*core, *ends]), max(core) + room)
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def _line(axis: Axes, shape: Shape, top: float, line: Line, signed: bool) -> None:
    """Draw one line: interval, ticks of the seeds, marker, and its texts."""
    down = top + (0.72 if shape.above else 0.5) * shape.row
    colour = line.look.colour
    low, high = axis.get_xlim()
    if line.interval:
        ends = (max(low, line.interval.low), min(high, line.interval.high))
        axis.plot(ends, [down, down], color=colour, linewidth=1.5, solid_capstyle="butt", zorder=2)
        for end, beyond, arrow in (
            (low, line.interval.low < low, "<"),
            (high, line.interval.high > high, ">"),
        ):
            if beyond:
                axis.plot(end, down, marker=arrow, color=colour, markersize=5, clip_on=False)
    if len(line.seeds) > 1:
        axis.plot(
            line.seeds, [down] * len(line.seeds), marker="|", linestyle="none", color=colour,
            markersize=9, markeredgewidth=1.3, zorder=3,
        )  # fmt: skip
    axis.plot(
        line.mean, down, marker=line.look.marker, color=colour, markersize=6.5, markeredgewidth=1.4,
        markerfacecolor="white" if line.hollow else colour, linestyle="none", zorder=4,
    )  # fmt: skip
    value = number(line.mean, signed)
    said = f"{value} ({line.interval.text(signed)})" if line.interval else value
    if shape.above:
        _write(axis, shape, top + 0.27 * shape.row, line.label)
        short = line.text.partition(",")[0]
        weight = "normal" if line.hollow else "bold"
        _write(axis, shape, top + 0.27 * shape.row, f"{value} {short}", right=True, weight=weight)
        return
    label = down - 0.075 if line.note else down
    _write(axis, shape, label, line.label)
    if line.note:
        _write(axis, shape, down + 0.085, line.note, size=8, color=GREY)
    for text, at in ((said, 6), (line.text, 112)):
        axis.annotate(
            text, (1, down), (at, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
            weight="normal" if line.hollow else "bold", size=8.5,
        )  # fmt: skip


def _write(
    axis: Axes, shape: Shape, down: float, text: str, right: bool = False, **how: object
) -> None:
    """Write a text at the left edge of the figure, or at its right edge, at a height of the axis."""
    at = (0.05 - shape.label) * 72
    axis.annotate(
        text, (1 if right else 0, down), (0 if right else at, 0), xycoords=("axes fraction", "data"),
        textcoords="offset points", va="center", ha="right" if right else "left", annotation_clip=False,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.3}, **how,
    )  # fmt: skip


def _key(figure: Figure, shape: Shape, blocks: Sequence[Block], signed: bool) -> None:
    """Add the legend: markers of the routes, ticks, and filled against hollow."""
    lines = [line for block in blocks for line in block.lines]
    names = {"s": "labels alone (SFT)", "o": "straight from the teacher", "D": "through assistants"}
    shown = {line.look.marker for line in lines}
    handles = [_mark(marker) for marker in names if marker in shown]
    texts = [text for marker, text in names.items() if marker in shown]
    if any(len(line.seeds) > 1 for line in lines):
        handles.append(_mark("|"))
        texts.append("one training seed")
    if signed:
        handles += [_mark("o", hollow=False), _mark("o", hollow=True)]
        texts += ["filled: significant", "hollow: n.s."]
    figure.legend(
        handles, texts, loc="lower left", bbox_to_anchor=(0.0, 0.0), ncols=2 if shape.above else len(texts),
        fontsize=9, handletextpad=0.3, columnspacing=1.2, borderaxespad=0.1,
    )  # fmt: skip


def _mark(marker: str, hollow: bool = False) -> Line2D:
    return Line2D(
        [], [], color=GREY, marker=marker, markersize=6 if marker != "|" else 9, linestyle="none",
        markerfacecolor="white" if hollow else GREY,
    )  # fmt: skip
