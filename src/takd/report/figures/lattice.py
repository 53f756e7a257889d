"""Figure: all chains in one tree whose levels are the models."""

import textwrap
from dataclasses import dataclass, field

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from takd.analysis.comparisons import analyse
from takd.analysis.results import Results, Row
from takd.analysis.statistics import number
from takd.experiment.labels import chain_label, methods_text
from takd.experiment.lineage import split, supervised, teacher_of
from takd.report.figures.layout import EDGE, Sheet
from takd.report.figures.marks import GREY, by_size, heading
from takd.report.figures.scope import line_id
from takd.report.figures.style import (
    COLOURS,
    DASHES,
    STYLE,
    WIDTH,
    Drawing,
    Look,
    handle,
    size_text,
    to_svg,
)
from takd.report.table import columns

PITCH = 1.45
"""Inches from one path to the next, and the measures of a box."""
LEVEL, BOX, TALL = 1.12, 1.22, 0.62


@dataclass(frozen=True)
class Plan:
    """Positions of all elements, in inches."""

    levels: dict[str, float]
    """Model -> how far down."""
    across: dict[str, float]
    """Lineage -> how far to the right; supervised models that teach none have no box."""
    width: float


@dataclass
class _Places:
    """Allocator of positions from left to right."""

    taken: int = 0
    of: dict[str, float] = field(default_factory=dict)


def lattice(results: Results) -> Drawing:
    """Draw every path that was trained: a level is a model, a box the end of a path, an edge a method.

    Paths with the same beginning share it. A thick box is the best mean among the ends of chains in one model, where
    several chains end there. Supervised students stand at the name of their level.
    """
    plan = _plan(results)
    methods = list(dict.fromkeys(split(x)[-1].method for x in results.lineages if teacher_of(x)))
    names = [_level_text(results, results.spec["sets"][0], m, plan) for m in plan.levels]
    margin = 0.35 + 0.068 * max(len(line) for name in names for line in name.split("\n"))
    width = max(WIDTH, margin + plan.width + EDGE)
    several = False
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        sheet = Sheet(
            width, rows=0, height=LEVEL * (len(plan.levels) - 0.3), below=0.12, margin=margin
        )
        for name in results.spec["sets"]:
            heading(sheet, results, name)
            sheet.add_row()
            axis = sheet.panel(-1, 0, 1)
            axis.set_axis_off()
            room = width - EDGE - margin
            axis.set_xlim(-(room - plan.width) / 2, plan.width + (room - plan.width) / 2)
            axis.set_ylim(LEVEL * (len(plan.levels) - 0.3), 0)
            best = _best(results, name)
            several = several or bool(best)
            for model, down in plan.levels.items():
                axis.axhline(down, color="#E4E4E4", linewidth=5, zorder=0)
                axis.annotate(
                    _level_text(results, name, model, plan), (0, down), (-8, 0), xycoords=("axes fraction", "data"),
                    textcoords="offset points", ha="right", va="center", fontsize=8.5, linespacing=1.35,
                )  # fmt: skip
            for lineage in plan.across:
                _edge(axis, plan, lineage, methods)
            for lineage in plan.across:
                _box(axis, results, plan, name, lineage, thick=lineage in best)
        handles = [_stroke(method, methods) for method in methods]
        texts = list(methods)
        if several:
            handles.append(Line2D([], [], color="black", linewidth=2.6))
            texts.append("thick box: highest mean of the chains that end in this model")
        sheet.key(handles, texts)
        return Drawing(to_svg(sheet.finish()), _numbers(results, plan))


def _plan(results: Results) -> Plan:
    """Place every path: its children side by side below it, the path itself above their middle."""
    sizes = by_size(results)
    depth = {model: place for place, model in enumerate(sizes)}
    below: dict[str, list[str]] = {}
    for lineage in results.lineages:
        if teacher := teacher_of(lineage):
            below.setdefault(teacher, []).append(lineage)
    places = _Places()

    def level(lineage: str) -> int:
        return depth[split(lineage)[-1].model]

    def put(lineage: str) -> float:
        children = sorted(below.get(lineage, []), key=level)
        found = [put(child) for child in children]
        # a box is centred above its children only if all of them are below it
        if found and all(level(child) > level(lineage) for child in children):
            places.of[lineage] = (found[0] + found[-1]) / 2
        else:
            places.of[lineage] = PITCH * (places.taken + 0.5)
            places.taken += 1
        return places.of[lineage]

    for lineage in results.lineages:
        if not teacher_of(lineage) and lineage in below:
            put(lineage)
    across = {lineage: places.of[lineage] for lineage in results.lineages if lineage in places.of}
    downs = {model: LEVEL * (place + 0.32) for model, place in depth.items()}
    return Plan(downs, across, PITCH * places.taken)


def _best(results: Results, name: str) -> set[str]:
    """For each model in which several chains end, the ends with the highest mean."""
    scores = analyse(results).scores
    ends: dict[str, list[str]] = {}
    for end in dict.fromkeys(chain["lineage"] for chain in results.spec["chains"]):
        ends.setdefault(split(end)[-1].model, []).append(end)
    return {
        end
        for found in ends.values()
        for end in found
        if len(found) > 1
        and scores[name, end, "rougeL"].mean
        == max(scores[name, other, "rougeL"].mean for other in found)
    }


def _level_text(results: Results, name: str, model: str, plan: Plan) -> str:
    """Name and size of a model, and its score when trained on labels alone."""
    size = size_text(by_size(results)[model])
    lines = [model] if model == size else [model, f"{size} parameters"]
    alone = supervised(model)
    if alone in results.lineages and alone not in plan.across:
        score = analyse(results).scores[name, alone, "rougeL"]
        lines += ["labels alone:", number(score.mean)]
        if score.interval:
            lines[-1] += f" ({score.interval.text()})"
    return "\n".join(lines)


def _box(axis: Axes, results: Results, plan: Plan, name: str, lineage: str, thick: bool) -> None:
    place = results.spec["sets"].index(name)
    at, down = plan.across[lineage], plan.levels[split(lineage)[-1].model]
    score = analyse(results).scores[name, lineage, "rougeL"]
    labels = {chain["lineage"]: chain_label(chain) for chain in reversed(results.spec["chains"])}
    axis.add_patch(
        Rectangle(
            (at - BOX / 2, down - TALL / 2), BOX, TALL, facecolor="white", edgecolor="black" if thick else GREY,
            linewidth=2.6 if thick else 0.8, zorder=3, gid=line_id(lineage, 0, f"box{place}"),
        )
    )  # fmt: skip
    texts = [(number(score.mean), 10.5, "bold")]
    if score.interval:
        texts.append((score.interval.text(), 8, "normal"))
    if label := labels.get(lineage):
        texts.append((textwrap.shorten(label, 19, placeholder="…") or label[:18], 8, "normal"))
    for line, (text, size, weight) in enumerate(texts):
        shift = (line - (len(texts) - 1) / 2) * 0.185
        style = "italic" if line == 2 else "normal"
        axis.text(
            at, down + shift, text, fontsize=size, weight=weight, style=style, ha="center", va="center", zorder=4,
        )  # fmt: skip


def _edge(axis: Axes, plan: Plan, lineage: str, methods: list[str]) -> None:
    """Draw an edge: down from the teacher, across, and into the student's box, at a height of its own per method."""
    teacher = teacher_of(lineage)
    if teacher is None:
        return
    method = split(lineage)[-1].method
    above, at = plan.across[teacher], plan.across[lineage]
    start = plan.levels[split(teacher)[-1].model] + TALL / 2
    down = plan.levels[split(lineage)[-1].model]
    end = down - TALL / 2 if down - TALL / 2 > start else down + TALL / 2
    turn = start + 0.12 + 0.09 * (methods.index(method) % 3)
    stroke = _stroke(method, methods)
    axis.plot(
        [above, above, at, at], [start, turn, turn, end], color=stroke.get_color(), linestyle=stroke.get_linestyle(),
        linewidth=1.8, zorder=2,
    )  # fmt: skip
    axis.text(at + 0.05, end - 0.06, method, fontsize=7.5, va="center", color=GREY, zorder=4)


def _stroke(method: str, methods: list[str]) -> Line2D:
    place = methods.index(method)
    look = Look(COLOURS[place % len(COLOURS)], "o", DASHES[place % len(DASHES)])
    return handle(look, marker=False)


def _numbers(results: Results, plan: Plan) -> list[Row]:
    """One row per set and path."""
    labels = {chain["lineage"]: chain_label(chain) for chain in reversed(results.spec["chains"])}
    return [
        {
            "set": name,
            "lineage": lineage,
            "model": split(lineage)[-1].model,
            "parameters": results.of(lineage)[0].parameters,
            "teacher": teacher_of(lineage),
            "methods": methods_text(lineage),
            "label": labels.get(lineage, ""),
            "end_of_chain": lineage in labels,
            "best_of_ends": lineage in _best(results, name),
            "n_training_seeds": len(results.seeds(lineage)),
        }
        | columns("rougeL", analyse(results).scores[name, lineage, "rougeL"])
        for name in results.spec["sets"]
        for lineage in results.lineages
    ]
