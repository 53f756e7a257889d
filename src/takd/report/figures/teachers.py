"""Figure: quality of students against the size of their teacher (the capacity gap of TAKD)."""

import math

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from takd.analysis.comparisons import analyse
from takd.analysis.results import Results, Row
from takd.experiment.labels import chain_text, methods_text
from takd.experiment.lineage import SUPERVISED, Hop, split, supervised, teacher_of
from takd.report.figures.layout import Sheet
from takd.report.figures.marks import by_size, looks_of_students, mark, n_text, name_and_size, point
from takd.report.figures.style import STYLE, WIDTH, Drawing, Look, size_text, to_svg
from takd.report.table import columns


def teachers(results: Results) -> Drawing:
    """Draw ROUGE-L of each student against its direct teacher's parameters, a line per student and method.

    A line joins the shortest chains from each teacher to the student. Longer chains, whose teacher was itself distilled
    through more models, are hollow marks beside it. A dotted level shows the student trained on labels alone.
    """
    groups = _groups(results)
    look = looks_of_students(results)
    sets = results.spec["sets"]
    levels = list(dict.fromkeys(hop.model for hop in groups))
    levels = [model for model in levels if supervised(model) in results.lineages]
    sizes = by_size(results)
    longer = any(not shortest for group in groups.values() for shortest in group.values())
    across = min(len(sets), 2)
    deepest = max(map(len, _ticks(results, groups).values()))
    with matplotlib.rc_context(STYLE):
        rows = math.ceil(len(sets) / across)
        sheet = Sheet(WIDTH, rows=rows, height=2.8, below=0.55 + 0.15 * deepest)
        for place, name in enumerate(sets):
            axis = sheet.panel(place // across, place % across, across)
            for number, (hop, group) in enumerate(groups.items()):
                # slightly offset, so that bars at one teacher do not overlap
                shift = 1.035 ** (number - (len(groups) - 1) / 2)
                _line(axis, results, name, group, look[hop], shift)
            for number, model in enumerate(levels):
                level = analyse(results).scores[name, supervised(model), "rougeL"].mean
                _level(axis, model, level, look[Hop(model, SUPERVISED)].colour, number % 2 == 0)
            _finish(axis, results, groups)
            axis.set_title(f"{name}, {n_text(results, name)}", fontsize=9)
            if place % across == 0:
                axis.set_ylabel("ROUGE-L of the student")
        handles = [mark(look[hop], line=True) for hop in groups]
        texts = [f"{name_and_size(hop.model, sizes[hop.model])} by {hop.method}" for hop in groups]
        for model in levels:
            bare = Look(look[Hop(model, SUPERVISED)].colour, "", (0, (2, 2)))
            handles.append(mark(bare, line=True))
            texts.append(f"{model} trained on labels alone")
        if longer:
            handles.append(mark(Look("#555555", "o", "-"), hollow=True))
            texts.append("hollow: through more assistants")
        sheet.key(handles, texts)
        return Drawing(to_svg(sheet.finish()), _numbers(results, groups))


def _groups(results: Results) -> dict[Hop, dict[str, bool]]:
    """Map student and method to its lineages and whether each is the shortest from its teacher; large ones first."""
    sizes = by_size(results)
    found: dict[Hop, dict[str, bool]] = {}
    taught = [lineage for lineage in results.lineages if teacher_of(lineage)]
    for lineage in sorted(taught, key=lambda found: -sizes[split(found)[-1].model]):
        group = found.setdefault(split(lineage)[-1], {})
        teacher = split(lineage)[-2].model
        # lineages are sorted, short ones first
        group[lineage] = all(split(other)[-2].model != teacher for other in group)
    return found


def _size(results: Results, lineage: str) -> int:
    return results.of(teacher_of(lineage) or lineage)[0].parameters


def _line(
    axis: Axes, results: Results, name: str, group: dict[str, bool], look: Look, shift: float
) -> None:
    joined = []
    beside: dict[int, int] = {}
    for lineage, shortest in group.items():
        size = _size(results, lineage)
        score = analyse(results).scores[name, lineage, "rougeL"]
        at = size * shift * 1.07 ** beside.get(size, 0)
        beside[size] = beside.get(size, 0) + 1
        point(axis, at, score, look, hollow=not shortest)
        if shortest:
            joined.append((at, score.mean))
    axis.plot(*zip(*sorted(joined), strict=True), color=look.colour, linestyle=look.dashes)


def _level(axis: Axes, model: str, level: float, colour: str, right: bool) -> None:
    """Draw the level of a student trained on labels alone; names alternate sides, so that close ones do not overlap."""
    axis.axhline(level, color=colour, linestyle=(0, (2, 2)))
    axis.annotate(
        model, (1 if right else 0, level), (-2 if right else 3, 1.5), fontsize=7.5,
        xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="right" if right else "left", va="bottom", color="#333333",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.2},
    )  # fmt: skip


def _ticks(results: Results, groups: dict[Hop, dict[str, bool]]) -> dict[int, list[str]]:
    """Map each size to the names of the teachers of that size."""
    found: dict[int, list[str]] = {}
    for lineage in (lineage for group in groups.values() for lineage in group):
        names = found.setdefault(_size(results, lineage), [])
        if split(lineage)[-2].model not in names:
            names.append(split(lineage)[-2].model)
    return found


def _finish(axis: Axes, results: Results, groups: dict[Hop, dict[str, bool]]) -> None:
    ticks = _ticks(results, groups)
    axis.set_xscale("log")
    texts = ["\n".join([*ticks[size], f"({size_text(size)})"]) for size in ticks]
    axis.set_xticks(list(ticks), texts)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(min(ticks) / 1.6, max(ticks) * 1.6)
    axis.set_xlabel("teacher and its parameters (log)")


def _numbers(results: Results, groups: dict[Hop, dict[str, bool]]) -> list[Row]:
    """One row per set and student; a supervised student has no teacher."""
    students = list(dict.fromkeys(hop.model for hop in groups))
    lineages = [supervised(model) for model in students if supervised(model) in results.lineages]
    joined = {lineage: shortest for group in groups.values() for lineage, shortest in group.items()}
    return [
        {
            "set": name,
            "student": split(lineage)[-1].model,
            "method": split(lineage)[-1].method,
            "teacher": split(lineage)[-2].model if lineage in joined else None,
            "teacher_parameters": _size(results, lineage) if lineage in joined else None,
            "chain": chain_text(lineage),
            "methods": methods_text(lineage),
            "lineage": lineage,
            "on_line": joined.get(lineage),
            "n_training_seeds": len(results.seeds(lineage)),
        }
        | columns("rougeL", analyse(results).scores[name, lineage, "rougeL"])
        for name in results.spec["sets"]
        for lineage in [*lineages, *joined]
    ]
