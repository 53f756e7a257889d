"""Results page: scores, differences with their tests and what else differs, all other measures, by evaluation set."""

from collections.abc import Iterable, Sequence
from typing import Any

from takd.analysis import measures
from takd.analysis.comparisons import Difference, Score, analyse, p_text
from takd.analysis.cumulative_costs import accumulate, unit
from takd.analysis.definitions import better, definition
from takd.analysis.results import MEASURES, Results
from takd.analysis.statistics import Interval, number
from takd.experiment.labels import full_text
from takd.experiment.lineage import split, teacher_of
from takd.report import pages
from takd.report.figures import forest
from takd.report.figures.style import size_text
from takd.report.table import Group as Chains
from takd.report.table import Row as Model
from takd.report.table import labels, sources
from takd.report.tables import Cell, Column, Group, Row, Table, latex, markdown, measured

COLUMNS = 6
"""Models beside one another in the table of all measures: more would be cut on paper."""
TITLES = {
    "direct": "Through assistants − straight from the teacher",
    "sft": "Distilled − SFT baseline",
    "method": "Method − method",
}


def page(results: Results, groups: list[Chains]) -> str:
    """Render the page."""
    tables = {name: main_table(results, groups, name) for name in results.spec["sets"]}
    return pages.render(
        "results.html",
        results,
        "results.html",
        tables=tables,
        copies={name: copies(table) for name, table in tables.items()},
        forests={name: forest.differences(results, name) for name in tables},
        dots={name: forest.scores(results, name) for name in tables},
        tests={name: tests(results, name) for name in tables},
        seeds={name: by_seed(results, name) for name in tables},
        others={name: other_measures(results, name) for name in tables},
        prompts=pages.prompts(results),
        cited=sources(groups),
        several=any(len(results.seeds(lineage)) > 1 for lineage in results.lineages),
        tree=tree(results),
        terms={m.title: (definition(m), m.better) for m in measures.measured(results)},
        inline=pages.inline,
    )


def copies(table: Table) -> dict[str, str]:
    """Texts of a table to copy, by format."""
    return {"LaTeX": latex(table), "Markdown": markdown(table)}


def main_table(results: Results, groups: Iterable[Chains], name: str) -> Table:
    """Scores and gains of all models on one evaluation set, under the chains that they end."""
    cited = sources(list(groups))
    costs = {found.lineage: found for found in accumulate(results)}
    rows = [row for group in groups for row in group.rows]
    with_direct = any(row.cells[name].over_direct for row in rows)
    published = any(row.cells[name].published for row in rows)
    columns = [Column("Model", "name"), Column("ROUGE-L"), Column("Exact match")]
    columns.append(Column("Gain over SFT", note="ROUGE-L"))
    if with_direct:
        columns.append(Column("Gain over direct", note="ROUGE-L"))
    if published:
        columns.append(Column("Published", note="ours − published"))
    columns += [Column("Parameters"), Column("Total cost", note=unit(results))]

    def line(row: Model) -> Row:
        cell = row.cells[name]
        cells = [model_cell(results, row.lineage), score(cell.rougeL), score(cell.exact_match)]
        cells.append(gain(cell.over_sft))
        if with_direct:
            cells.append(gain(cell.over_direct))
        if published:
            cells.append(_published(cell.published, cited))
        hours = costs[row.lineage].mean_hours
        cells.append(Cell(size_text(row.parameters), row.parameters, tip=f"{row.parameters:,}"))
        cells.append(Cell(pages.hours(hours), f"{hours:.6g}"))
        return Row(cells, f"{name}-{row.lineage}", row.lineage)

    found = [Group(group.title, [line(row) for row in group.rows]) for group in groups]
    return Table(columns, found, f"scores-{name}")


def model_cell(results: Results, lineage: str) -> Cell:
    """Name of a model with the label of its chain, linked to its page."""
    tag = labels(results).get(lineage, "")
    return Cell(full_text(lineage), tag=tag, href=f"models/{lineage}.html")


def score(found: Score) -> Cell:
    """Mean with its interval."""
    return measured(found.mean, notes=_interval(found.interval))


def gain(found: Difference | None) -> Cell:
    """Difference with its interval and verdict; empty where there is nothing to compare with."""
    if found is None:
        return Cell("", "")
    said = () if found.p is None else (significance(found.verdict, found.p),)
    kind = "beyond" if found.verdict else ""
    return measured(
        found.mean, signed=True, notes=(*_interval(found.interval, True), *said), kind=kind
    )


def significance(verdict: Any, p: float | None) -> str:
    """`significant, p = 0.004`, `n.s., p = 0.31`, or a dash without a test."""
    return "–" if p is None else f"{'significant' if verdict else 'n.s.'}, {p_text(p)}"


def _interval(interval: Interval | None, signed: bool = False) -> Sequence[str]:
    return (interval.text(signed),) if interval else ()


def _published(found: Sequence[Any], cited: list[str]) -> Cell:
    if not found:
        return Cell("", "")
    first, *more = (
        f"{each.value:.1f} [{cited.index(each.source) + 1}]:"
        f" {number(each.difference, signed=True)}{'*' if each.held is False else ''}"
        for each in found
    )
    return Cell(first, found[0].value, more, tip="; ".join(each.words for each in found))


def tests(results: Results, name: str) -> Table | None:
    """All differences of ROUGE-L with both tests; None if nothing can be compared."""
    found = analyse(results)
    several = any(d.over_trainings is not None for d in found.differences.values())
    columns = [Column("Compared", "name"), Column("Difference", note="ROUGE-L")]
    columns += [Column("Across training seeds", note="95 % interval, p (Holm)")] * several
    columns.append(Column("These checkpoints", note="95 % interval, p (Holm)"))
    groups = []
    for question in forest.QUESTIONS:
        rows = []
        for pair, difference in found.of(name, question):
            cells = [Cell(full_text(pair.ours), notes=(f"− {full_text(pair.theirs)}",))]
            seeds = ", ".join(number(v, True) for v in forest.seed_means(results, name, pair))
            cells.append(measured(difference.mean, signed=True, notes=(f"seeds {seeds}",)))
            if several:
                cells.append(_test(difference.over_trainings, difference.p_trainings))
            cells.append(_test(difference.over_prompts, difference.p_prompts))
            rows.append(Row(cells))
        if rows:
            groups.append(Group(f"{TITLES[question]}: a family of {len(rows)}", rows))
    return Table(columns, groups, f"tests-{name}") if groups else None


def _test(interval: Interval | None, p: float | None) -> Cell:
    """One test: its verdict, interval and p."""
    if interval is None or p is None:
        return Cell("–", "")
    verdict = p <= 0.05 and not interval.holds(0)
    return Cell(
        "significant" if verdict else "n.s.",
        f"{p:.6f}",
        (interval.text(True), p_text(p)),
        "beyond" if verdict else "",
    )


def by_seed(results: Results, name: str) -> Table:
    """ROUGE-L and exact match of every training seed."""
    seeds = results.spec["seeds"]
    columns = [Column("Model", "name")]
    columns += [Column(f"{what}, seed {seed}") for what in ("ROUGE-L", "Exact") for seed in seeds]
    rows = []
    for lineage in results.lineages:
        known = results.seeds(lineage)
        cells = [model_cell(results, lineage)]
        for measure in MEASURES:
            means = results.scores(lineage, name, measure, known).mean(axis=(1, 2))
            values = dict(zip(known, means, strict=True))
            cells += [measured(values.get(seed)) for seed in seeds]
        rows.append(Row(cells, lineage=lineage))
    return Table(columns, [Group("", rows)], f"seeds-{name}")


def other_measures(results: Results, name: str) -> list[Table]:
    """All measures, one row each, with the models beside one another: those with the same last model together."""
    models = list(dict.fromkeys(split(lineage)[-1].model for lineage in results.lineages))
    shown = [m for m in measures.measured(results) if m.name not in MEASURES]
    tables = []
    for model in models:
        ends = [lineage for lineage in results.lineages if split(lineage)[-1].model == model]
        for start in range(0, len(ends), COLUMNS):
            part = ends[start : start + COLUMNS]
            rows = []
            for measure in shown:
                values = [measures.mean(results, measure, lineage, name) for lineage in part]
                cells = [measured(value, measure.digits) for value in values]
                head = Cell(measure.title, notes=filter(None, [better(measure)]))
                rows.append(Row([head, *cells]))
            columns = [
                Column("Measure", "name"),
                *(Column(full_text(each), "num wrap") for each in part),
            ]
            tables.append(Table(columns, [Group("", rows)], kind="measures"))
    return tables if shown else []


def tree(results: Results) -> list[dict[str, Any]]:
    """All chains as a tree: each trained model with those that it taught."""
    scores, first = analyse(results).scores, results.spec["sets"][0]

    def node(lineage: str) -> dict[str, Any]:
        taught = [other for other in results.lineages if teacher_of(other) == lineage]
        return {
            "hop": split(lineage)[-1],
            "lineage": lineage,
            "tag": labels(results).get(lineage, ""),
            "score": scores[first, lineage, "rougeL"].text(),
            "taught": [node(other) for other in taught],
        }

    return [node(lineage) for lineage in results.lineages if teacher_of(lineage) is None]
