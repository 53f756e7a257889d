"""Tables of scores, gains and costs: a brief one for the summary, and one with all models for each evaluation set."""

from collections.abc import Iterable, Mapping

from takd.analysis import costs, exports, table
from takd.analysis.measures import BY_NAME
from takd.analysis.results import Results
from takd.analysis.statistics import number
from takd.analysis.table import DIFFERENCE, Line
from takd.experiment.labels import full_text, size_text
from takd.pages.tables import Cell, Column, Group, Table, TableRow
from takd.report import pages
from takd.report.tables import numbered, required, score

ROLES = {
    "teacher": "Top teacher",
    "given": "As given, not trained here",
    "baseline": "SFT baselines",
    "student": "Chains",
    "control": "Controls",
    "assistant": "Assistants",
}
EMPTY = Cell("", "")
Columns = dict[Column, Mapping[str, Cell]]
"""Cells of each column by lineage; those that are missing stay empty."""


def brief_table(results: Results) -> Table:
    """The table of the summary: ROUGE-L on all sets, gains on the first, total cost; teachers, baselines and chains."""
    first, *others = results.spec["sets"]
    columns = {
        Column("ROUGE-L", note=name if others else ""): _scores(results, name, "rougeL")
        for name in (first, *others)
    }
    columns |= _gains(results, first, first if others else "") | _cost(results)
    return _of_models(columns, [line for line in table.lines(results) if line.role != "assistant"])


def main_table(results: Results, name: str) -> Table:
    """Scores, gains, published scores and costs of all models on one evaluation set."""
    columns = {Column(BY_NAME[m].title): _scores(results, name, m) for m in results.tested(name)}
    columns |= _gains(results, name, "ROUGE-L")
    targets = [target["scores"].values() for target in results.spec["targets"] or []]
    if any(name in scores for of_target in targets for scores in of_target):
        published = {x: _published(results, name, x) for x in results.lineages}
        columns[Column("Published", note="ours − published")] = published
    sizes = {x: results.of(x)[0].parameters for x in results.lineages}
    columns |= _cost(results)
    columns[Column("Parameters")] = {
        x: Cell(size_text(count), count, tip=f"{count:,}") for x, count in sizes.items()
    }
    return _of_models(columns, table.lines(results), name)


def _of_models(columns: Columns, lines: Iterable[Line], name: str = "") -> Table:
    """Table of models in groups by role; with the `name` of a set, others link to its rows."""
    groups: dict[str, list[TableRow]] = {}
    for line in lines:
        cells = [found.get(line.lineage, EMPTY) for found in columns.values()]
        id = f"{name}-{line.lineage}" if name else ""
        row = TableRow([model_cell(line.lineage, line.label), *cells], id, line.lineage)
        groups.setdefault(ROLES[line.role], []).append(row)
    found = [Group(title, rows) for title, rows in groups.items()]
    return Table([Column("Model", "name"), *columns], found, f"scores-{name}" if name else "brief")


def _scores(results: Results, name: str, measure: str) -> Mapping[str, Cell]:
    return {x: numbered(results, score(results, name, x, measure)) for x in results.lineages}


def _gains(results: Results, name: str, note: str) -> Columns:
    """Gains in ROUGE-L over SFT and over direct distillation, where there is anything to compare with."""
    columns: Columns = {}
    gains = {"Gain over SFT": ["sft", "control"], "Gain over direct": "direct"}
    for title, question in gains.items():
        wanted = {"kind": DIFFERENCE, "question": question, "measure": "rougeL", "set": name}
        if rows := table.rows(table.of(results), **wanted):
            cells = {row.lineage: numbered(results, row) for row in rows}
            columns[Column(title, note=note)] = cells
    return columns


def _cost(results: Results) -> Columns:
    wanted = {"kind": table.COST, "stage": costs.CUMULATIVE, "measure": "hours"}
    hours = {row.lineage: row.value for row in table.rows(table.of(results), **wanted)}
    cells = {x: Cell(pages.hours(value), f"{value:.6g}") for x, value in hours.items()}
    return {Column("Total cost", note=costs.unit(results)): cells}


def _published(results: Results, name: str, lineage: str) -> Cell:
    """Published scores of a model beside ours; a star where they lie outside our interval."""
    ours = required(results, name, lineage, "rougeL")
    texts, values = [], exports.published(results, ours)
    for source, value in values.items():
        place = exports.cited(results).index(source) + 1
        outside = ours.interval and not ours.interval.holds(value)
        gap = number(ours.value - value, signed=True)
        texts.append(f"{value:.1f} [{place}]: {gap}{'*' if outside else ''}")
    return Cell(texts[0], next(iter(values.values())), texts[1:]) if texts else EMPTY


def model_cell(lineage: str, label: str = "") -> Cell:
    """Name of a model with the label of its chain, linked to its page."""
    return Cell(full_text(lineage), tag=label, href=f"models/{lineage}.html")
