"""Figure: gain of assistants over distillation directly from the teacher (the question of TAKD)."""

import matplotlib
from matplotlib.lines import Line2D

from takd.analysis.comparisons import Difference, Pair, analyse
from takd.analysis.results import Results, Row
from takd.experiment.labels import methods_text
from takd.experiment.lineage import split
from takd.report.figures.layout import Sheet
from takd.report.figures.marks import (
    GREY,
    by_size,
    heading,
    mark,
    name_and_size,
    nothing,
    point,
    spread_out,
)
from takd.report.figures.style import COLOURS, MARKERS, STYLE, WIDTH, Drawing, Look, to_svg
from takd.report.table import columns

NO_ASSISTANT = "Nothing to compare: no chain of this experiment has an assistant."
NO_DIRECT = "Nothing to compare: no student behind assistants was also taught straight from the head of its chain."
COLUMNS = (
    *("set", "student", "assistants", "assistant_parameters", "methods", "lineage", "direct"),
    *("n_training_seeds", *columns("gain", None), "p", "verdict", "verdict_as_trained"),
)


def gains(results: Results) -> Drawing:
    """Draw the difference in ROUGE-L from the direct chain, one panel per student and set, one column per route.

    A route is the assistants between teacher and student. Filled marks are significant differences (confidence interval
    and corrected p value, `Difference.verdict`).
    """
    found = analyse(results)
    pairs = [pair for pair, _ in found.of(results.spec["sets"][0], "direct")]
    if not pairs:
        none = all(len(split(lineage)) < 3 for lineage in results.lineages)
        return Drawing(nothing(NO_ASSISTANT if none else NO_DIRECT), [], COLUMNS)
    sizes = by_size(results)
    students = [m for m in sizes if any(split(pair.ours)[-1].model == m for pair in pairs)]
    routes = {m: _routes(pairs, m, sizes) for m in students}
    methods = list(dict.fromkeys(methods_text(pair.ours) for pair in pairs))
    look = {
        text: Look(COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], "-")
        for place, text in enumerate(methods)
    }
    across = min(len(students), 2 if max(map(len, routes.values())) <= 4 else 1)
    deepest = max(len(route) for routes_of in routes.values() for route in routes_of)
    with matplotlib.rc_context(STYLE | {"xtick.labelsize": 9}):
        sheet = Sheet(WIDTH, rows=0, height=2.2, below=0.35 + 0.17 * deepest)
        for name in results.spec["sets"]:
            heading(sheet, results, name)
            first = None
            for place, student in enumerate(students):
                if place % across == 0:
                    sheet.add_row()
                axis = sheet.panel(-1, place % across, across, share=first)
                first = first or axis
                for at, route in enumerate(routes[student]):
                    there = _of_route(found.of(name, "direct"), student, route)
                    shifts = spread_out(len(there), min(0.14, 0.7 / len(there)))
                    for shift, (pair, difference) in zip(shifts, there, strict=True):
                        style = look[methods_text(pair.ours)]
                        point(axis, at + shift, difference, style, hollow=not difference.verdict)
                axis.axhline(0, color="black", linewidth=1, zorder=1)
                texts = [_route_text(route, sizes) for route in routes[student]]
                axis.set_xticks(range(len(texts)), texts)
                axis.set_xlim(-0.6, len(texts) - 0.4)
                axis.grid(axis="x", visible=False)
                axis.set_title(f"for {name_and_size(student, sizes[student])}")
                if place % across == 0:
                    axis.set_ylabel("gain in ROUGE-L")
        handles = [mark(look[text]) for text in methods]
        handles += [_grey(True), _grey(False)]
        filled = "filled: above or below zero (interval, p corrected)"
        if len(results.spec["seeds"]) == 1:
            filled += ", as trained here"
        sheet.key(handles, [*methods, filled, "hollow: no difference can be told"])
        return Drawing(to_svg(sheet.finish()), _numbers(results, sizes), COLUMNS)


def _grey(filled: bool) -> Line2D:
    return mark(Look(GREY, "o", "-"), hollow=not filled)


def assistants(lineage: str) -> tuple[str, ...]:
    """Models between the head of a chain and the student."""
    return tuple(hop.model for hop in split(lineage)[1:-1])


def _routes(pairs: list[Pair], student: str, sizes: dict[str, int]) -> list[tuple[str, ...]]:
    """Routes to a student: few assistants before many, large before small."""
    found = {assistants(pair.ours) for pair in pairs if split(pair.ours)[-1].model == student}
    return sorted(found, key=lambda route: (len(route), [-sizes[m] for m in route], route))


def _of_route(
    found: list[tuple[Pair, Difference]], student: str, route: tuple[str, ...]
) -> list[tuple[Pair, Difference]]:
    return [
        (pair, difference)
        for pair, difference in found
        if split(pair.ours)[-1].model == student and assistants(pair.ours) == route
    ]


def _route_text(route: tuple[str, ...], sizes: dict[str, int]) -> str:
    return " →\n".join(name_and_size(model, sizes[model]) for model in route)


def _numbers(results: Results, sizes: dict[str, int]) -> list[Row]:
    """One row per set and chain; `assistant_parameters` is the size of the last assistant, the student's teacher."""
    lines = []
    for name in results.spec["sets"]:
        for pair, difference in analyse(results).of(name, "direct"):
            route = assistants(pair.ours)
            line: Row = {"set": name, "student": split(pair.ours)[-1].model}
            line |= {"assistants": " → ".join(route), "assistant_parameters": sizes[route[-1]]}
            line |= {"methods": methods_text(pair.ours), "lineage": pair.ours}
            line |= {"direct": pair.theirs, "n_training_seeds": difference.trainings}
            line |= columns("gain", difference) | {"p": difference.p}
            line |= {
                "verdict": difference.verdict,
                "verdict_as_trained": difference.of_models,
            }
            lines.append(line)
    return lines
