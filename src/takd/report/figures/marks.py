"""Elements shared by the figures of scores: looks of students and methods, bars, headings, an empty figure."""

from collections.abc import Iterable

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from takd.analysis.comparisons import Score
from takd.analysis.results import Results
from takd.experiment.lineage import SUPERVISED, Hop, split
from takd.report.figures.layout import Sheet
from takd.report.figures.style import (
    COLOURS,
    DASHES,
    MARKERS,
    STYLE,
    SUPERVISED_COLOURS,
    WIDTH,
    Look,
    size_text,
    to_svg,
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


def looks_of_students(results: Results) -> dict[Hop, Look]:
    """Assign one look per student and method: colour by student, dashes by method, a marker of its own."""
    hops = dict.fromkeys(split(lineage)[-1] for lineage in results.lineages)
    models = list(dict.fromkeys(hop.model for hop in hops))
    methods = list(dict.fromkeys(hop.method for hop in hops if hop.method != SUPERVISED))
    taught = [hop for hop in hops if hop.method != SUPERVISED]
    students = [model for model in models if any(hop.model == model for hop in taught)]
    found = {}
    for hop in hops:
        if hop.model in students:
            colour = COLOURS[students.index(hop.model) % len(COLOURS)]
        else:
            colour = SUPERVISED_COLOURS[models.index(hop.model) % len(SUPERVISED_COLOURS)]
        if hop.method == SUPERVISED:
            found[hop] = Look(
                colour, MARKERS[models.index(hop.model) % len(MARKERS)], (0, (1, 1.5))
            )
        else:
            dashes = DASHES[methods.index(hop.method) % len(DASHES)]
            found[hop] = Look(colour, MARKERS[taught.index(hop) % len(MARKERS)], dashes)
    return found


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


def nothing(text: str) -> str:
    """Draw a figure with one line of text that explains why it is empty."""
    with matplotlib.rc_context(STYLE):
        sheet = Sheet(WIDTH, rows=0, height=0.5, below=0)
        sheet.write(text, sheet.extend(0.3))
        return to_svg(sheet.finish())


def spread_out(count: int, width: float) -> Iterable[float]:
    """Offsets around zero that place several marks side by side at one position."""
    return ((place - (count - 1) / 2) * width for place in range(count))
