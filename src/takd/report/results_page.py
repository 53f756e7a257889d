"""Results page: scores, differences with their tests and what else differs, all other measures, by evaluation set."""

import math
from typing import Any

from takd.analysis import fairness, measures, table
from takd.analysis.comparisons import Pair
from takd.analysis.exports import cited
from takd.analysis.measures import BY_NAME, TESTED
from takd.analysis.questions import QUESTIONS
from takd.analysis.results import Results
from takd.analysis.shares import shares
from takd.analysis.statistics import Interval, number
from takd.analysis.table import DIFFERENCE, EACH, Number
from takd.analysis.text import p_text
from takd.experiment.captions import decoding
from takd.experiment.labels import full_text
from takd.experiment.lineage import split, teacher_of
from takd.pages.tables import Cell, Column, Group, Table, TableRow, simple
from takd.report import pages
from takd.report.figures import forest
from takd.report.score_tables import main_table, model_cell
from takd.report.tables import by_seed, measured, numbered, score

BESIDE = 5
"""Models beside one another in the table of all measures: more would be cut on paper."""
ARROWS = {"higher": "↑", "lower": "↓", "": ""}


def page(results: Results) -> str:
    """Render the page."""
    sets = results.spec["sets"]
    return pages.render(
        "results.html",
        results,
        tables={name: main_table(results, name) for name in sets},
        forests={name: forest.differences(results, name) for name in sets},
        dots={name: forest.scores(results, name) for name in sets},
        tests={name: tests(results, name) for name in sets},
        controls={name: controls_table(results, name) for name in sets},
        strata={name: by_stratum(results, name) for name in sets},
        seeds={name: seeds_table(results, name) for name in sets},
        others={name: other_measures(results, name) for name in sets},
        prompts=pages.prompts(results),
        decoding=decoding(results.spec["decoding"]),
        cited=cited(results),
        several=any(len(results.seeds(lineage)) > 1 for lineage in results.lineages),
        given=len(results.trained_here) < len(results.models),
        tree=tree(results),
        measures=measures.measured(results),
    )


def tests(results: Results, name: str, stratum: str = "") -> Table | None:
    """All differences of all tested measures, with both tests and what else differs; None if nothing is compared."""
    found = table.of(results)
    chosen = table.rows(found, kind=DIFFERENCE, set=name, stratum=stratum)
    if not chosen:
        return None
    several = any(each.several for each in chosen)
    columns = [Column("Compared", "name pair")]
    for measure in results.tested(name):
        columns.append(Column(f"{BY_NAME[measure].title}, difference", note="by training seed"))
        columns += [Column("Across training seeds", note="95 %, p (Holm)")] * several
        columns.append(Column("These checkpoints", note="95 %, p (Holm)"))
    by_pair: dict[Pair, dict[str, Number]] = {}
    for each in chosen:
        pair = Pair(each.question, each.lineage, each.other)
        by_pair.setdefault(pair, {})[each.measure] = each
    groups: dict[str, list[TableRow]] = {}
    for pair in sorted(by_pair, key=lambda pair: list(QUESTIONS).index(pair.question)):
        cells = [_compared(results, pair)]
        for measure in results.tested(name):
            cells += _tested(results, by_pair[pair][measure], several)
        title = f"{QUESTIONS[pair.question].title}: a family of {by_pair[pair]['rougeL'].family}"
        groups.setdefault(title, []).append(TableRow(cells))
    return Table(columns, [Group(*each) for each in groups.items()], f"tests-{name}", kind="tests")


def _compared(results: Results, pair: Pair) -> Cell:
    """Both sides of a comparison, and in which settings they differ besides the method: data and start first."""
    first = fairness.warning(results, pair)
    others = [
        f"{one.what} {one.ours} / {one.theirs}"
        for one in fairness.unequal(results, pair)
        if not one.of_data_or_start
    ]
    return Cell(
        full_text(pair.ours),
        notes=[*filter(None, [first]), f"− {full_text(pair.theirs)}"],
        kind="unequal" if first else "",
        fold=("Other settings that differ", "; ".join(others)) if others else None,
    )


def _tested(results: Results, each: Number, several: bool) -> list[Cell]:
    """Cells of one difference: its value with those of its seeds, and its tests."""
    values = [number(value, True) for value in by_seed(results, each).values()]
    notes = [", ".join(values)] if len(values) > 1 else []
    cells = [measured(each.value, signed=True, notes=notes)]
    if several:
        across = (each.interval, each.p, each.significant) if each.several else (None, None, "")
        cells.append(_test(*across))
    cells.append(_test(each.prompts_interval, each.prompts_p, each.significant_these_checkpoints))
    return cells


def _test(interval: Interval | None, p: float | None, significant: str) -> Cell:
    """One test: whether it is significant, its interval and p."""
    if interval is None or p is None:
        return Cell("–", "")
    said = (interval.text(True), p_text(p))
    text, kind = ("significant", "beyond") if significant else ("n.s.", "")
    return Cell(text, f"{p:.6f}", said, kind)


def controls_table(results: Results, name: str) -> Table | None:
    """Gains of methods and of their controls, and which share of the gain needs the teacher; None without controls."""
    rows = []
    for each in shares(results, name):
        value = "" if each.value is None else f"{each.value:.6g}"
        cells = [
            Cell(each.method),
            Cell(each.control),
            *(numbered(results, n) for n in (each.gain, each.control_gain, each.difference)),
            Cell(each.text(), value, notes=[*filter(None, [each.why])]),
        ]
        rows.append(TableRow(cells, lineage=each.gain.lineage))
    heads: list[Column | str] = [
        "Method",
        Column("Control", "name"),
        "#Gain of the method",
        "#Gain of the control",
    ]
    heads += ["#Method − control", "#Share of the gain that needs the teacher|95 %"]
    return simple(heads, rows) if rows else None


def by_stratum(results: Results, name: str) -> dict[str, Table]:
    """Differences within each stratum of the prompts, where the rows name one."""
    rows = table.rows(table.of(results), kind=DIFFERENCE, set=name, stratum=EACH)
    strata = dict.fromkeys(row.stratum for row in rows)
    found = {stratum: tests(results, name, stratum) for stratum in strata}
    return {stratum: each._replace(id="") for stratum, each in found.items() if each}


def seeds_table(results: Results, name: str) -> Table:
    """Every tested measure of every training seed."""
    seeds, tested = results.spec["seeds"], results.tested(name)
    heads = [f"#{BY_NAME[m].title}, seed {seed}" for m in tested for seed in seeds]
    rows = []
    for line in table.lines(results):
        cells = [model_cell(line.lineage, line.label)]
        for measure in tested:
            mean = score(results, name, line.lineage, measure)
            values = by_seed(results, mean) if mean else {}
            cells += [measured(values.get(seed)) for seed in seeds]
        rows.append(TableRow(cells, lineage=line.lineage))
    return simple(["Model", *heads], rows)


def other_measures(results: Results, name: str) -> list[Table]:
    """All other measures, one row each, with the models beside one another."""
    shown = [measure for measure in measures.measured(results) if measure.name not in TESTED]
    lineages = [line.lineage for line in table.lines(results)]
    # parts of equal size, at most BESIDE
    size = math.ceil(len(lineages) / math.ceil(len(lineages) / BESIDE))
    found = []
    for start in range(0, len(lineages) if shown else 0, size):
        part = lineages[start : start + size]
        rows = []
        for each in shown:
            cells = [Cell(f"{each.title} {ARROWS[each.better]}".strip(), tip=each.definition)]
            for mean in (score(results, name, lineage, each.name) for lineage in part):
                whole = mean is not None and mean.interval is not None
                value = mean and mean.value
                cells.append(numbered(results, mean) if whole else measured(value, each.digits))
            rows.append(TableRow(cells))
        heads = (Column(full_text(lineage), "num wrap") for lineage in part)
        found.append(simple(["Measure", *heads], rows, kind="measures"))
    return found


def tree(results: Results) -> list[dict[str, Any]]:
    """All chains as a tree: each trained model with those that it taught."""
    first = results.spec["sets"][0]
    tags = {line.lineage: line.label for line in table.lines(results)}

    def node(lineage: str) -> dict[str, Any]:
        found = score(results, first, lineage, "rougeL")
        taught = [other for other in results.lineages if teacher_of(other) == lineage]
        return {
            "hop": split(lineage)[-1],
            "lineage": lineage,
            "tag": tags[lineage],
            "score": found.text() if found else "",
            "taught": [node(other) for other in taught],
        }

    return [node(lineage) for lineage in results.lineages if teacher_of(lineage) is None]
