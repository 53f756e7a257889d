"""Elements shared by the figures of scores: looks of students and methods, bars, headings, an empty figure."""

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from takd.analysis.comparisons import Score
from takd.analysis.results import Results
from takd.experiment.lineage import split
from takd.report.figures.layout import Sheet
from takd.report.figures.style import (
    Look,
    size_text,
)

GREY = "#555555"


def n_text(results: Results, name: str) -> str:
    """State how many values a score on an evaluation set averages."""
    prompts = results.evaluations[results.nodes[0], name].scores["n"]
    seeds, draws = len(results.spec["seeds"]), len(results.spec["decoding_seeds"])
    return (
        f"{prompts} prompt{'s' if prompts > 1 else ''}"
        f" × {draws} decoding seed{'s' if draws > 1 else ''},"
        f" {seeds} training seed{'s' if seeds > 1 else ''}"
    )


def heading(sheet: Sheet, results: Results, name: str, what: str = "") -> None:
    """Write the name of an evaluation set above its panels, with n."""
    said = f"{name}{', ' if what else ''}{what}: {n_text(results, name)}"
    sheet.write(said, sheet.extend(0.18))


def by_size(results: Results) -> dict[str, int]:
    """Parameters of every trained model, the largest first."""
    sizes = {split(m.node.lineage)[-1].model: m.parameters for m in results.models.values()}
    return {m: sizes[m] for m in sorted(sizes, key=lambda m: (-sizes[m], list(sizes).index(m)))}


def name_and_size(model: str, parameters: int) -> str:
    """Format `student (150k)`; the name alone where it already gives the size."""
    size = size_text(parameters)
    return model if model == size else f"{model} ({size})"


def point(
    axis: Axes, at: float, score: Score, look: Look, hollow: bool = False, faint: bool = False
) -> None:
    """Draw a mean with its 95 % confidence interval; `faint` where many points are close together."""
    ends = score.interval
    bar = None if ends is None else [[score.mean - ends.low], [ends.high - score.mean]]
    drawn = axis.errorbar(
        at, score.mean, yerr=bar, color=look.colour, marker=look.marker, markersize=6,
        markerfacecolor="white" if hollow else look.colour, markeredgewidth=1.2,
        linestyle="none", elinewidth=0.8 if faint else 1.2, capsize=0 if faint else 3, zorder=3,
    )  # fmt: skip
    for stroke in drawn.lines[2] if faint else ():
        stroke.set_alpha(0.55)


def mark(look: Look, hollow: bool = False, line: bool = False) -> Line2D:
    """Legend entry of a point."""
    return Line2D(
        [], [], color=look.colour, marker=look.marker, markersize=6, markeredgewidth=1.2,
        markerfacecolor="white" if hollow else look.colour,
        linestyle=look.dashes if line else "none",
    )  # fmt: skip
