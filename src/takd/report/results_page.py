"""Results page: scores, differences with their tests and what else differs, all other measures, by evaluation set."""

from collections.abc import Iterable, Sequence
from typing import Any

from takd.analysis import fairness, table
from takd.analysis.comparisons import Pair
from takd.analysis.measures import BY_NAME, TESTED, Measure, measured
from takd.analysis.results import Results
from takd.analysis.shares import shares
from takd.analysis.statistics import Interval, number
from takd.analysis.table import DIFFERENCE, EACH, Number
from takd.experiment.captions import decoding
from takd.experiment.labels import full_text
from takd.experiment.lineage import split, teacher_of
from takd.pages.tables import Cell, Column, Group, Table, TableRow, copies
from takd.report import pages, tables
from takd.report.figures import forest
from takd.report.score_tables import cited, main_table, model_cell
from takd.report.tables import by_seed, score

BESIDE = 5
"""Models beside one another in the table of all measures: more would be cut on paper."""
TITLES = {
    "direct": "Through assistants − straight from the teacher",
    "sft": "Distilled − SFT baseline",
    "method": "Method − method",
    "given": "Trained − as given",
    "teacher": "Method − its control",
    "control": "Control − SFT baseline",
}


def page(results: Results) -> str:
    """Render the page."""
    sets = results.spec["sets"]
    scores = {name: main_table(results, name) for name in sets}
    return pages.render(
        "results.html",
        results,
        tables=scores,
        copies={name: copies(found) for name, found in scores.items()},
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
        measures=measured(results),
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
    groups = []
    for question in forest.QUESTIONS:
        by_pair: dict[Pair, dict[str, Number]] = {}
        for each in chosen:
            if each.question == question:
                pair = Pair(question, each.lineage, each.other)
                by_pair.setdefault(pair, {})[each.measure] = each
        rows = []
        for pair, of_pair in by_pair.items():
            cells = [_compared(results, pair)]
            for measure in results.tested(name):
                cells += _tested(results, of_pair[measure], several)
            rows.append(TableRow(cells))
            title = f"{TITLES[question]}: a family of {of_pair['rougeL'].family}"
        if rows:
            groups.append(Group(title, rows))
    return Table(columns, groups, f"tests-{name}", kind="tests")


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
    cells = [tables.measured(each.value, signed=True, notes=notes)]
    if several:
        across = (each.interval, each.p, each.significant) if each.several else (None, None, "")
        cells.append(_test(*across))
    cells.append(_test(each.prompts_interval, each.prompts_p, each.significant_these_checkpoints))
    return cells


def _test(interval: Interval | None, p: float | None, significant: str) -> Cell:
    """One test: whether it is significant, its interval and p."""
    if interval is None or p is None:
        return Cell("–", "")
    said = (interval.text(True), forest.p_text(p))
    return Cell(
        "significant" if significant else "n.s.", f"{p:.6f}", said, "beyond" if significant else ""
    )


def controls_table(results: Results, name: str) -> Table | None:
    """Gains of methods and of their controls, and which share of the gain needs the teacher; None without controls."""
    rows = []
    for each in shares(results, name):
        gains = (each.gain, each.control_gain, each.difference)
        share = Cell(each.text(), "" if each.value is None else f"{each.value:.6g}")
        if each.why:
            share = share._replace(notes=[each.why])
        cells = [
            Cell(each.method),
            Cell(each.control),
            *(tables.numbered(results, n) for n in gains),
        ]
        rows.append(TableRow([*cells, share], lineage=each.gain.lineage))
    columns = [
        Column("Method", "name"),
        Column("Control", "name"),
        Column("Gain of the method"),
        Column("Gain of the control"),
        Column("Method − control"),
        Column("Share of the gain that needs the teacher", note="95 %"),
    ]
    return Table(columns, [Group("", rows)]) if rows else None


def by_stratum(results: Results, name: str) -> dict[str, Table]:
    """Differences within each stratum of the prompts, where the rows name one."""
    rows = table.rows(table.of(results), kind=DIFFERENCE, set=name, stratum=EACH)
    strata = dict.fromkeys(row.stratum for row in rows)
    found = {stratum: tests(results, name, stratum) for stratum in strata}
    return {stratum: each._replace(id="") for stratum, each in found.items() if each}


def seeds_table(results: Results, name: str) -> Table:
    """Every tested measure of every training seed."""
    seeds = results.spec["seeds"]
    columns = [Column("Model", "name")]
    columns += [
        Column(f"{BY_NAME[m].title}, seed {seed}") for m in results.tested(name) for seed in seeds
    ]
    rows = []
    for line in table.lines(results):
        cells = [model_cell(line.lineage, line.label)]
        for measure in results.tested(name):
            mean = score(results, name, line.lineage, measure)
            values = by_seed(results, mean) if mean else {}
            cells += [tables.measured(values.get(seed)) for seed in seeds]
        rows.append(TableRow(cells, lineage=line.lineage))
    return Table(columns, [Group("", rows)])


def other_measures(results: Results, name: str) -> list[Table]:
    """All other measures, one row each, with the models beside one another."""
    shown = [measure for measure in measured(results) if measure.name not in TESTED]
    lineages = [line.lineage for line in table.lines(results)]

    def row(measure: Measure, part: Sequence[str]) -> TableRow:
        means = [score(results, name, lineage, measure.name) for lineage in part]
        cells = [
            tables.numbered(results, mean)
            if mean and mean.interval
            else tables.measured(mean and mean.value, measure.digits)
            for mean in means
        ]
        arrow = measure.arrow.removesuffix(" better")
        return TableRow([Cell(f"{measure.title} {arrow}".strip(), tip=measure.definition), *cells])

    return [
        Table(
            [Column("Measure", "name"), *(Column(full_text(each), "num wrap") for each in part)],
            [Group("", [row(measure, part) for measure in shown])],
            kind="measures",
        )
        for part in _parts(lineages)
        if shown
    ]


def _parts(lineages: Sequence[str]) -> Iterable[Sequence[str]]:
    """Divide the models into parts of equal size, at most `BESIDE`."""
    count = -(-len(lineages) // BESIDE)
    size = -(-len(lineages) // count)
    return (lineages[start : start + size] for start in range(0, len(lineages), size))


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
