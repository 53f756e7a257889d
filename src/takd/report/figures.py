"""The figures, as SVG: scores along the chains, learning curves, training curves, costs.

The same results give the same bytes: no date, a fixed salt for the identifiers. Text stays text, so that it can
be searched and scales. Colours are those of Okabe and Ito, and every line differs in marker or dashes too.
"""

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from takd.lineage import prefixes, split, supervised
from takd.report.costs import Cost
from takd.report.read import Model, Results, Row
from takd.report.sheet import LINE, Sheet
from takd.report.statistics import estimate
from takd.report.table import chain_label, chain_text, full_text, methods_text

# Okabe and Ito without yellow, which is too faint on white; black is kept for supervised models
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
SUPERVISED_COLOURS = ("#000000", "#666666", "#999999")

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "takd",
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


class Look(NamedTuple):
    """How a lineage is drawn in every figure."""

    colour: str
    marker: str
    dashes: Any


def looks(results: Results) -> dict[str, Look]:
    """One look a lineage: supervised ones grey, distilled ones coloured, ends of chains first."""
    ends = {chain["lineage"] for chain in results.spec["chains"]}
    chosen: dict[str, Look] = {}
    plain = coloured = 0
    for lineage in sorted(results.lineages, key=lambda found: found not in ends):
        if len(split(lineage)) == 1:
            colour = SUPERVISED_COLOURS[plain % len(SUPERVISED_COLOURS)]
            chosen[lineage] = Look(colour, MARKERS[plain % len(MARKERS)], DASHES[plain // 3 % 4])
            plain += 1
        else:
            colour = COLOURS[coloured % len(COLOURS)]
            dashes = DASHES[coloured // len(COLOURS) % len(DASHES)]
            chosen[lineage] = Look(colour, MARKERS[coloured % len(MARKERS)], dashes)
            coloured += 1
    return chosen


def size_text(parameters: float) -> str:
    """`1.3M`, `14M`, `760M`, `1.5B`."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            value = parameters / unit
            return f"{value:.0f}{name}" if value >= 9.95 else f"{value:.1f}{name}"
    return str(int(parameters))


def chains(results: Results) -> str:
    """ROUGE-L along each chain, one panel an evaluation set; bars: standard deviation over training seeds."""
    sizes = {split(m.node.lineage)[-1].model: m.parameters for m in results.models.values()}
    order = sorted(sizes, key=lambda model: (-sizes[model], list(sizes).index(model)))
    ends = list(dict.fromkeys(chain["lineage"] for chain in results.spec["chains"]))
    labels = {chain["lineage"]: chain_label(chain) for chain in reversed(results.spec["chains"])}
    look = looks(results)
    sets = results.spec["sets"]
    with matplotlib.rc_context(STYLE):
        sheet = Sheet(WIDTH, rows=math.ceil(len(sets) / 2), height=2.7, below=0.55)
        axes = [sheet.panel(place // 2, place % 2, min(len(sets), 2)) for place in range(len(sets))]
        for axis, name in zip(axes, sets, strict=True):
            for place, model in enumerate(order):
                _point(axis, results, supervised(model), name, place, "#555555", "_")
            for number, end in enumerate(ends):
                # lines lie apart by a little, so that their bars do not cover each other
                shift = 0.06 * (number - (len(ends) - 1) / 2) * min(1, 9 / len(ends))
                points = []
                for lineage in prefixes(end):
                    head = len(split(lineage)) == 1
                    at = order.index(split(lineage)[-1].model) + (0 if head else shift)
                    marker = None if head else look[end].marker
                    points.append(
                        (at, _point(axis, results, lineage, name, at, look[end].colour, marker))
                    )
                axis.plot(
                    *zip(*points, strict=True),
                    color=look[end].colour,
                    linestyle=look[end].dashes,
                    zorder=2,
                )
            axis.set_xticks(range(len(order)), [f"{m}\n{size_text(sizes[m])}" for m in order])
            axis.set_xlim(-0.4, len(order) - 0.6)
            axis.set_ylabel("ROUGE-L")
            axis.grid(axis="x", visible=False)
            axis.set_title(f"{name}, {_n_text(results, name)}", fontsize=9)
        handles = [_handle(look[end], size=6) for end in ends]
        texts = [" ".join(filter(None, [labels[end], full_text(end)])) for end in ends]
        handles.append(Line2D([], [], color="#555555", marker="_", markersize=12, linestyle="none"))
        texts.append("trained on labels alone (sft)")
        sheet.key(handles, texts)
        return _svg(sheet.finish())


def _point(
    axis: Axes,
    results: Results,
    lineage: str,
    name: str,
    at: float,
    colour: str,
    marker: str | None,
) -> float | None:
    """Draw the mean score of a lineage with its bar; returns the mean, None if the lineage was not trained."""
    if lineage not in results.lineages:
        return None
    found = estimate(results.by_seed(lineage, name, "rougeL").values())
    assert found is not None
    size = 14 if marker == "_" else 6
    axis.errorbar(
        at, found.mean, yerr=found.sd, color=colour, marker=marker, markersize=size,
        markeredgewidth=2 if marker == "_" else 0.5, linestyle="none", elinewidth=1.2, zorder=3,
    )  # fmt: skip
    return found.mean


def _n_text(results: Results, name: str) -> str:
    prompts = results.evaluations[results.nodes[0], name].scores["n"]
    seeds = len(results.spec["seeds"])
    return (
        f"{prompts} prompts × {len(results.spec['decoding_seeds'])} decoding seeds,"
        f" {seeds} training seed{'s' if seeds > 1 else ''}"
    )


def learning_curves(results: Results) -> str:
    """ROUGE-L on dev against the step: one panel a model, one line a lineage; the kept step is ringed."""
    models = list(dict.fromkeys(split(lineage)[-1].model for lineage in results.lineages))
    of_model = {m: [x for x in results.lineages if split(x)[-1].model == m] for m in models}
    longest = max(len(_short_text(lineage)) for lineage in results.lineages)
    columns = min(len(models), 3 if longest <= 32 else 2 if longest <= 52 else 1)
    most = max(map(len, of_model.values()))
    look = looks(results)
    with matplotlib.rc_context(STYLE):
        rows = math.ceil(len(models) / columns)
        sheet = Sheet(WIDTH, rows, height=2.4, below=0.5 + LINE * most)
        first: Axes | None = None
        for place, (name, lineages) in enumerate(of_model.items()):
            axis = sheet.panel(place // columns, place % columns, columns, share=first)
            first = first or axis
            for lineage in lineages:
                for model in results.of(lineage):
                    _curve(axis, model.dev, "rougeL", look[lineage])
                    _ring(axis, model, look[lineage])
            axis.set_title(f"{name} ({size_text(results.of(lineages[0])[0].parameters)})")
            axis.set_xlabel("step", labelpad=1)
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if place % columns == 0:
                axis.set_ylabel("ROUGE-L on dev")
            handles = [_handle(look[lineage]) for lineage in lineages]
            texts = [_short_text(lineage) for lineage in lineages]
            sheet.legend(
                handles,
                texts,
                sheet.foot(place // columns, 0.45),
                sheet.left(place % columns, columns) - 0.1,
            )
        return _svg(sheet.finish())


TRAINING = ("loss", "reverse_kl", "reward", "response_length")
NOT_A_CURVE = {"kind", "step", "steps", "seconds", "tokens", "learning_rate", "n"}


def training_curves(results: Results) -> str:
    """What each method logs while it trains: rows of panels for a method, one panel a quantity."""
    methods = list(dict.fromkeys(split(lineage)[-1].method for lineage in results.lineages))
    columns = 4
    look = looks(results)
    with matplotlib.rc_context(
        STYLE | {"font.size": 9, "axes.titlesize": 9, "lines.linewidth": 1.1}
    ):
        sheet = Sheet(WIDTH + 1, rows=0, height=1.35, below=0.45)
        for method in methods:
            lineages = [x for x in results.lineages if split(x)[-1].method == method]
            names = _quantities(results, method)
            heading = sheet.extend(0.15)
            sheet.write(method, heading)
            for place, quantity in enumerate(names):
                if place % columns == 0:
                    sheet.add_row()
                axis = sheet.panel(-1, place % columns, columns)
                for lineage in lineages:
                    for model in results.of(lineage):
                        _curve(axis, model.train, quantity, look[lineage], marker=False)
                axis.set_title(quantity.replace("_", " "))
                axis.set_xlabel("step", labelpad=1)
                axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
                axis.yaxis.set_major_locator(MaxNLocator(4))
            handles = [_handle(look[lineage], marker=False) for lineage in lineages]
            texts = [chain_text(x) if method == "sft" else full_text(x) for x in lineages]
            sheet.key(handles, texts)
        return _svg(sheet.finish())


def _quantities(results: Results, method: str) -> list[str]:
    """Names of the numbers that a method's log holds: the well-known first, then its own."""
    found: dict[str, None] = {}
    for model in results.models.values():
        if split(model.node.lineage)[-1].method == method:
            for row in model.train:
                numbers = (k for k, v in row.items() if isinstance(v, int | float))
                found.update(dict.fromkeys(k for k in numbers if k not in NOT_A_CURVE))
    first = [name for name in TRAINING if name in found]
    return first + sorted(name for name in found if name not in first)


def costs(found: Sequence[Cost]) -> str:
    """Minutes of training and evaluation of each lineage, over all its seeds."""
    names = [full_text(cost.lineage) for cost in found]
    training = [cost.training_minutes for cost in found]
    evaluation = [cost.evaluation_minutes for cost in found]
    with matplotlib.rc_context(STYLE):
        margin = min(0.3 + 0.078 * max(map(len, names)), 0.6 * WIDTH)
        sheet = Sheet(WIDTH, rows=1, height=0.3 + 0.3 * len(found), below=0.5, margin=margin)
        axis = sheet.panel(0, 0, 1)
        axis.barh(names, training, color="#0072B2", label="training")
        axis.barh(
            names, evaluation, left=training, color="#F3B95F", edgecolor="#7A5200", hatch="////",
            linewidth=0.5, label="evaluation",
        )  # fmt: skip
        for place, total in enumerate(map(sum, zip(training, evaluation, strict=True))):
            axis.annotate(
                f"{total:.1f}",
                (total, place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axis.invert_yaxis()
        axis.set_xlabel("minutes, all training seeds together")
        axis.margins(x=0.08)
        axis.grid(axis="y", visible=False)
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
        return _svg(sheet.finish())


def _curve(axis: Axes, rows: list[Row], quantity: str, look: Look, marker: bool = True) -> None:
    points = [(row["step"], row[quantity]) for row in rows if row.get(quantity) is not None]
    if not points:
        return
    # a mark at about every tenth point tells lines apart where colour cannot
    every = max(1, len(points) // 10)
    axis.plot(
        *zip(*points, strict=True), color=look.colour, linestyle=look.dashes, alpha=0.85,
        marker=look.marker if marker or len(points) == 1 else None, markersize=3.5, markevery=every,
    )  # fmt: skip


def _ring(axis: Axes, model: Model, look: Look) -> None:
    kept = [row for row in model.dev if row["step"] == model.kept_step and "rougeL" in row]
    if kept:
        axis.plot(
            kept[0]["step"], kept[0]["rougeL"], marker="o", markersize=9, fillstyle="none",
            markeredgewidth=1.4, color=look.colour, linestyle="none",
        )  # fmt: skip


def _handle(look: Look, marker: bool = True, size: float = 4) -> Line2D:
    shape = look.marker if marker else None
    return Line2D([], [], color=look.colour, linestyle=look.dashes, marker=shape, markersize=size)


def _short_text(lineage: str) -> str:
    """Name of a lineage in a panel that already names the student."""
    above = " → ".join(hop.model for hop in split(lineage)[:-1])
    return f"{methods_text(lineage)} from {above}" if above else methods_text(lineage)


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    # no metadata at all: a date would change the bytes, and its schema names are web addresses
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    return file.getvalue()
