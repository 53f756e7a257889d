"""Results page: scores, differences with their tests and what else differs, all other measures, by evaluation set."""

from collections.abc import Iterable, Sequence
from typing import Any

from takd.analysis import costs, fairness, table
from takd.analysis.comparisons import Pair
from takd.analysis.cumulative_costs import unit
from takd.analysis.measures import BY_NAME, TESTED, Measure, measured
from takd.analysis.results import Results
from takd.analysis.statistics import Interval, number
from takd.analysis.table import DIFFERENCE, EACH, SCORE, Line, Number
from takd.experiment.labels import full_text
from takd.experiment.lineage import split, teacher_of
from takd.report import pages, tables
from takd.report.figures import forest
from takd.report.figures.style import size_text
from takd.report.tables import Cell, Column, Group, Row, Table, by_seed, numbered

BESIDE = 5
"""Models beside one another in the table of all measures: more would be cut on paper."""
TITLES = {
    "direct": "Through assistants − straight from the teacher",
    "sft": "Distilled − SFT baseline",
    "method": "Method − method",
}
ROLES = {
    "teacher": "Top teacher",
    "baseline": "SFT baselines",
    "student": "Chains",
    "assistant": "Assistants",
}


def page(results: Results) -> str:
    """Render the page."""
    sets = results.spec["sets"]
    scores = {name: main_table(results, name) for name in sets}
    return pages.render(
        "results.html",
        results,
        "results.html",
        tables=scores,
        copies={name: copies(found) for name, found in scores.items()},
        forests={name: forest.differences(results, name) for name in sets},
        dots={name: forest.scores(results, name) for name in sets},
        tests={name: tests(results, name) for name in sets},
        strata={name: by_stratum(results, name) for name in sets},
        seeds={name: seeds_table(results, name) for name in sets},
        others={name: other_measures(results, name) for name in sets},
        prompts=pages.prompts(results),
        cited=cited(results),
        several=any(len(results.seeds(lineage)) > 1 for lineage in results.lineages),
        tree=tree(results),
        measures=measured(results),
        inline=pages.inline,
    )


def copies(found: Table) -> dict[str, str]:
    """Texts of a table to copy, by format."""
    return {"LaTeX": tables.latex(found), "Markdown": tables.markdown(found)}


def cited(results: Results) -> list[str]:
    """Sources of published scores, each once."""
    return list(dict.fromkeys(target["source"] for target in results.spec["targets"] or []))


def main_table(results: Results, name: str, brief: bool = False) -> Table:
    """Scores, gains and costs on one evaluation set; `brief` has what the summary shows."""
    lines = [line for line in table.lines(results) if not brief or line.role != "assistant"]
    found = table.of(results)
    scores, gains = [SCORE, "rougeL", ""], [DIFFERENCE, "rougeL"]
    columns = {Column("ROUGE-L"): scores}
    if not brief:
        columns[Column("Exact match")] = [SCORE, "exact_match", ""]
    for question, title in (("sft", "Gain over SFT"), ("direct", "Gain over direct")):
        if table.rows(found, kind=DIFFERENCE, question=question):
            columns[Column(title, note="ROUGE-L")] = [*gains, question]
    published = {} if brief else {line.lineage: _published(results, line, name) for line in lines}
    groups: dict[str, list[Row]] = {}
    for line in lines:
        cells = [model_cell(line.lineage, line.label)]
        for kind, measure, question in columns.values():
            wanted = {"kind": kind, "measure": measure, "question": question, "set": name}
            mean = table.one(found, lineage=line.lineage, **wanted)
            cells.append(numbered(mean, list(by_seed(found, mean).values()) if mean else ()))
        if any(published.values()):
            cells.append(published[line.lineage] or Cell("", ""))
        wanted = {"lineage": line.lineage, "stage": costs.CUMULATIVE, "measure": "hours"}
        hours = table.one(found, kind=table.COST, **wanted)
        cells.append(Cell(pages.hours(hours.value), f"{hours.value:.6g}") if hours else Cell())
        if not brief:
            parameters = results.of(line.lineage)[0].parameters
            cells.append(Cell(size_text(parameters), parameters, tip=f"{parameters:,}"))
        row = Row(cells, "" if brief else f"{name}-{line.lineage}", line.lineage)
        groups.setdefault(ROLES[line.role], []).append(row)
    heads = [Column("Model", "name"), *columns]
    heads += [Column("Published", note="ours − published")] * any(published.values())
    heads.append(Column("Total cost", note=unit(results)))
    heads += [Column("Parameters")] * (not brief)
    return Table(
        heads, [Group(*group) for group in groups.items()], "" if brief else f"scores-{name}"
    )


def model_cell(lineage: str, label: str = "") -> Cell:
    """Name of a model with the label of its chain, linked to its page."""
    return Cell(full_text(lineage), tag=label, href=f"models/{lineage}.html")


def _published(results: Results, line: Line, name: str) -> Cell | None:
    """Published scores of a model beside ours; a star where they lie outside our interval."""
    ours = table.one(
        table.of(results), kind=SCORE, measure="rougeL", set=name, lineage=line.lineage
    )
    texts, values = [], []
    for place, source in enumerate(cited(results), 1):
        for target in results.spec["targets"]:
            value = target["scores"].get(line.lineage, {}).get(name)
            if ours and target["source"] == source and value is not None:
                outside = ours.interval and not ours.interval.holds(float(value))
                gap = number(ours.value - float(value), signed=True)
                texts.append(f"{value:.1f} [{place}]: {gap}{'*' if outside else ''}")
                values.append(float(value))
    return Cell(texts[0], values[0], texts[1:]) if texts else None


def tests(results: Results, name: str, stratum: str = "") -> Table | None:
    """All differences of all tested measures, with both tests and what else differs; None if nothing is compared."""
    found = table.of(results)
    chosen = table.rows(found, kind=DIFFERENCE, set=name, stratum=stratum)
    if not chosen:
        return None
    several = any(each.several for each in chosen)
    columns = [Column("Compared", "name pair")]
    for measure in TESTED:
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
            for measure in TESTED:
                cells += _tested(found, of_pair[measure], several)
            rows.append(Row(cells))
        if rows:
            groups.append(Group(f"{TITLES[question]}: a family of {len(rows)}", rows))
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


def _tested(found: Any, each: Number, several: bool) -> list[Cell]:
    """Cells of one difference: its value with those of its seeds, and its tests."""
    values = [number(value, True) for value in by_seed(found, each).values()]
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


def by_stratum(results: Results, name: str) -> dict[str, Table]:
    """Differences within each stratum of the prompts, where the rows name one."""
    rows = table.rows(table.of(results), kind=DIFFERENCE, set=name, stratum=EACH)
    strata = dict.fromkeys(row.stratum for row in rows)
    found = {stratum: tests(results, name, stratum) for stratum in strata}
    return {stratum: each._replace(id="") for stratum, each in found.items() if each}


def seeds_table(results: Results, name: str) -> Table:
    """Every tested measure of every training seed."""
    found, seeds = table.of(results), results.spec["seeds"]
    columns = [Column("Model", "name")]
    columns += [Column(f"{BY_NAME[m].title}, seed {seed}") for m in TESTED for seed in seeds]
    rows = []
    for line in table.lines(results):
        cells = [model_cell(line.lineage, line.label)]
        for measure in TESTED:
            wanted = {"set": name, "lineage": line.lineage, "measure": measure}
            values = {
                row.seed: row.value for row in table.rows(found, kind=SCORE, seed=EACH, **wanted)
            }
            cells += [tables.measured(values.get(seed)) for seed in seeds]
        rows.append(Row(cells, lineage=line.lineage))
    return Table(columns, [Group("", rows)])


def other_measures(results: Results, name: str) -> list[Table]:
    """All other measures, one row each, with the models beside one another."""
    found = table.of(results)
    shown = [measure for measure in measured(results) if measure.name not in TESTED]
    lineages = [line.lineage for line in table.lines(results)]

    def row(measure: Measure, part: Sequence[str]) -> Row:
        wanted = {"kind": SCORE, "set": name, "measure": measure.name}
        means = (table.one(found, lineage=lineage, **wanted) for lineage in part)
        cells = [tables.measured(mean and mean.value, measure.digits) for mean in means]
        arrow = measure.arrow.removesuffix(" better")
        return Row([Cell(f"{measure.title} {arrow}".strip(), tip=measure.definition), *cells])

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
    found, first = table.of(results), results.spec["sets"][0]
    tags = {line.lineage: line.label for line in table.lines(results)}

    def node(lineage: str) -> dict[str, Any]:
        score = table.one(found, kind=SCORE, measure="rougeL", set=first, lineage=lineage)
        taught = [other for other in results.lineages if teacher_of(other) == lineage]
        return {
            "hop": split(lineage)[-1],
            "lineage": lineage,
            "tag": tags[lineage],
            "score": score.text() if score else "",
            "taught": [node(other) for other in taught],
        }

    return [node(lineage) for lineage in results.lineages if teacher_of(lineage) is None]
