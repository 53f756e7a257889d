"""Figures: quantities logged during training, against the step."""

import math

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from takd.analysis.results import Model, Results, Row
from takd.experiment.labels import chain_text, full_text, methods_text
from takd.experiment.lineage import split
from takd.report.figures.layout import LINE, Sheet
from takd.report.figures.style import STYLE, WIDTH, Drawing, Look, handle, looks, size_text, to_svg


def learning_curves(results: Results) -> Drawing:
    """Draw ROUGE-L on dev against the step: one panel per model, one line per lineage, a ring at the kept step."""
    models = list(dict.fromkeys(split(lineage)[-1].model for lineage in results.lineages))
    of_model = {m: [x for x in results.lineages if split(x)[-1].model == m] for m in models}
    longest = max(len(short_text(lineage)) for lineage in results.lineages)
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
                    curve(axis, model.dev, "rougeL", look[lineage])
                    ring(axis, model, look[lineage])
            axis.set_title(f"{name} ({size_text(results.of(lineages[0])[0].parameters)})")
            axis.set_xlabel("step", labelpad=1)
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if place % columns == 0:
                axis.set_ylabel("ROUGE-L on dev")
            handles = [handle(look[lineage]) for lineage in lineages]
            texts = [short_text(lineage) for lineage in lineages]
            sheet.legend(
                handles,
                texts,
                sheet.foot(place // columns, 0.45),
                sheet.left(place % columns, columns) - 0.1,
            )
        return Drawing(to_svg(sheet.finish()), _numbers(results, "dev"))


TRAINING = ("loss", "single_step_kl", "reverse_kl", "reward", "response_length")
NOT_A_CURVE = {"kind", "step", "steps", "seconds", "tokens", "learning_rate", "n"}


def training_curves(results: Results) -> Drawing:
    """Draw the quantities that each method logs: rows of panels for a method, one panel per quantity."""
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
                        curve(axis, model.train, quantity, look[lineage], marker=False)
                axis.set_title(quantity.replace("_", " "))
                axis.set_xlabel("step", labelpad=1)
                axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
                axis.yaxis.set_major_locator(MaxNLocator(4))
            handles = [handle(look[lineage], marker=False) for lineage in lineages]
            texts = [chain_text(x) if method == "sft" else full_text(x) for x in lineages]
            sheet.key(handles, texts)
        return Drawing(to_svg(sheet.finish()), _numbers(results, "train"))


def _quantities(results: Results, method: str) -> list[str]:
    """Names of the numbers in a method's log: those common to all methods first, then its own."""
    found: dict[str, None] = {}
    for model in results.models.values():
        if split(model.node.lineage)[-1].method == method:
            for row in model.train:
                numbers = (k for k, v in row.items() if isinstance(v, int | float))
                found.update(dict.fromkeys(k for k in numbers if k not in NOT_A_CURVE))
    first = [name for name in TRAINING if name in found]
    return first + sorted(name for name in found if name not in first)


def curve(
    axis: Axes,
    rows: list[Row],
    quantity: str,
    look: Look,
    marker: bool = True,
    name: str | None = None,
) -> bool:
    """Draw a number against the step, with an identifier; returns whether there was anything to draw."""
    points = [(row["step"], row[quantity]) for row in rows if row.get(quantity) is not None]
    if not points:
        return False
    # marks distinguish lines without colour; about every tenth point has one
    every = max(1, len(points) // 10)
    axis.plot(
        *zip(*points, strict=True), color=look.colour, linestyle=look.dashes, alpha=0.85,
        marker=look.marker if marker or len(points) == 1 else None, markersize=3.5, markevery=every, gid=name,
    )  # fmt: skip
    return True


def ring(axis: Axes, model: Model, look: Look, name: str | None = None) -> None:
    """Mark the step whose weights were kept."""
    kept = [row for row in model.dev if row["step"] == model.kept_step and "rougeL" in row]
    if kept:
        axis.plot(
            kept[0]["step"], kept[0]["rougeL"], marker="o", markersize=9, fillstyle="none",
            markeredgewidth=1.4, color=look.colour, linestyle="none", gid=name,
        )  # fmt: skip


def short_text(lineage: str) -> str:
    """Short name of a lineage, for a panel that already names the student."""
    above = " → ".join(hop.model for hop in split(lineage)[:-1])
    return f"{methods_text(lineage)} from {above}" if above else methods_text(lineage)


def _numbers(results: Results, log: str) -> list[Row]:
    """Long form: one row per model, step and quantity of its log "train" or "dev"."""
    return [
        {"lineage": lineage, "seed": model.node.seed, "step": row["step"]}
        | {"quantity": quantity, "value": float(value)}
        for lineage in results.lineages
        for model in results.of(lineage)
        for row in (model.train if log == "train" else model.dev)
        for quantity, value in row.items()
        if quantity not in NOT_A_CURVE and isinstance(value, int | float)
    ]
