"""Tables of scores, gains and costs: a brief one for the summary, and one with all models for each evaluation set."""

import functools
from collections.abc import Callable, Iterable, Mapping

from takd.analysis import costs, table
from takd.analysis.costs import unit
from takd.analysis.measures import BY_NAME
from takd.analysis.results import Results
from takd.analysis.statistics import number
from takd.analysis.table import DIFFERENCE, Line, Number
from takd.experiment.labels import full_text, size_text
from takd.pages.tables import Cell, Column, Group, Table, TableRow
from takd.report import pages
from takd.report.tables import numbered, score

ROLES = {
    "teacher": "Top teacher",
    "given": "As given, not trained here",
    "baseline": "SFT baselines",
    "student": "Chains",
    "control": "Controls",
    "assistant": "Assistants",
}


def cited(results: Results) -> list[str]:
    """Sources of published scores, each once."""
    return list(dict.fromkeys(target["source"] for target in results.spec["targets"] or []))


def brief_table(results: Results) -> Table:
    """The table of the summary: ROUGE-L on all sets, gains on the first, total cost; teachers, baselines and chains."""
    first, *others = results.spec["sets"]
    columns = {
        Column("ROUGE-L", note=name if others else ""): _score(results, name, "rougeL")
        for name in (first, *others)
    }
    columns |= _gains(results, first, first if others else "") | _cost(results)
    return _of_models(columns, [line for line in table.lines(results) if line.role != "assistant"])


def main_table(results: Results, name: str) -> Table:
    """Scores, gains, published scores and costs of all models on one evaluation set."""
    columns = {Column(BY_NAME[m].title): _score(results, name, m) for m in results.tested(name)}
    columns |= _gains(results, name, "ROUGE-L")
    if any(
        name in scores
        for target in results.spec["targets"] or []
        for scores in target["scores"].values()
    ):
        columns[Column("Published", note="ours − published")] = functools.partial(
            _published, results, name
        )
    columns |= _cost(results)
    columns[Column("Parameters")] = functools.partial(_parameters, results)
    return _of_models(columns, table.lines(results), name)


Cells = dict[Column, Callable[[Line], Cell]]


def _of_models(columns: Cells, lines: Iterable[Line], name: str = "") -> Table:
    """Table of models in groups by role; with the `name` of a set, others link to its rows."""
    groups: dict[str, list[TableRow]] = {}
    for line in lines:
        cells = [model_cell(line.lineage, line.label), *(make(line) for make in columns.values())]
        row = TableRow(cells, f"{name}-{line.lineage}" if name else "", line.lineage)
        groups.setdefault(ROLES[line.role], []).append(row)
    found = [Group(title, rows) for title, rows in groups.items()]
    return Table([Column("Model", "name"), *columns], found, f"scores-{name}" if name else "brief")


def _score(results: Results, name: str, measure: str) -> Callable[[Line], Cell]:
    return lambda line: numbered(results, score(results, name, line.lineage, measure))


def _gains(results: Results, name: str, note: str) -> Cells:
    """Gains in ROUGE-L over SFT and over direct distillation, where there is anything to compare with."""
    columns: Cells = {}
    gains = {"Gain over SFT": ["sft", "control"], "Gain over direct": "direct"}
    for title, question in gains.items():
        wanted = {"kind": DIFFERENCE, "question": question, "measure": "rougeL", "set": name}
        if found := {row.lineage: row for row in table.rows(table.of(results), **wanted)}:
            columns[Column(title, note=note)] = functools.partial(_gain, results, found)
    return columns


def _gain(results: Results, found: Mapping[str, Number], line: Line) -> Cell:
    return numbered(results, found.get(line.lineage))


def _cost(results: Results) -> Cells:
    wanted = {"kind": table.COST, "stage": costs.CUMULATIVE, "measure": "hours"}
    hours = {row.lineage: row.value for row in table.rows(table.of(results), **wanted)}

    def cell(line: Line) -> Cell:
        return Cell(pages.hours(hours[line.lineage]), f"{hours[line.lineage]:.6g}")

    return {Column("Total cost", note=unit(results)): cell}


def _parameters(results: Results, line: Line) -> Cell:
    count = results.of(line.lineage)[0].parameters
    return Cell(size_text(count), count, tip=f"{count:,}")


def _published(results: Results, name: str, line: Line) -> Cell:
    """Published scores of a model beside ours; a star where they lie outside our interval."""
    ours = score(results, name, line.lineage, "rougeL")
    texts, values = [], []
    for target in results.spec["targets"]:
        value = target["scores"].get(line.lineage, {}).get(name)
        if ours and value is not None:
            place = cited(results).index(target["source"]) + 1
            outside = ours.interval and not ours.interval.holds(float(value))
            gap = number(ours.value - float(value), signed=True)
            texts.append(f"{value:.1f} [{place}]: {gap}{'*' if outside else ''}")
            values.append(float(value))
    return Cell(texts[0], values[0], texts[1:]) if texts else Cell("", "")


def model_cell(lineage: str, label: str = "") -> Cell:
    """Name of a model with the label of its chain, linked to its page."""
    return Cell(full_text(lineage), tag=label, href=f"models/{lineage}.html")
