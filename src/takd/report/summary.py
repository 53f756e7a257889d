"""Summary: three sentences, the forest plot, one table, limits and downloads. Snakemake's report opens with it."""

from typing import Any

from takd.analysis.comparisons import Difference, analyse
from takd.analysis.cumulative_costs import accumulate, unit
from takd.analysis.deviations import limits
from takd.analysis.results import Results
from takd.analysis.text import counted, listed
from takd.experiment.labels import full_text
from takd.experiment.lineage import split, supervised
from takd.report import pages
from takd.report.figures import forest
from takd.report.figures.style import size_text
from takd.report.results_page import copies, gain, model_cell, score
from takd.report.table import Group as Chains
from takd.report.table import Row as Model
from takd.report.tables import Cell, Column, Group, Row, Table

WHAT = {
    "direct": "through assistants against straight from the teacher",
    "sft": "against the SFT baseline",
    "method": "method against method",
}


def page(
    results: Results, groups: list[Chains], data_report: dict[str, Any], downloads: dict[str, str]
) -> str:
    """Render the page; `downloads` maps files of the site to what they hold."""
    first = results.spec["sets"][0]
    table = small_table(results, groups, first)
    return pages.render(
        "summary.html",
        results,
        "index.html",
        sentences=[trained(results), found(results, first), best(results, groups, first)],
        forest=forest.differences(results, first),
        scores=forest.scores(results, first),
        several=len(results.spec["seeds"]) > 1,
        table=table,
        copies=copies(table),
        limits=limits(results, data_report),
        downloads=downloads,
        inline=pages.inline,
    )


def trained(results: Results) -> str:
    """Say what was trained and on what it was evaluated."""
    spec = results.spec
    chains = [split(chain["lineage"]) for chain in spec["chains"]]
    sizes = {split(m.node.lineage)[-1].model: m.parameters for m in results.models.values()}
    heads, ends = (
        listed(f"{model} ({size_text(sizes[model])})" for model in dict.fromkeys(models))
        for models in ([chain[0].model for chain in chains], [chain[-1].model for chain in chains])
    )
    prompts = listed(f"{name} ({n})" for name, n in pages.prompts(results).items())
    return (
        f"{counted(len(chains), 'chain')} from {heads} to {ends}: {counted(len(results.lineages), 'model')},"
        f" {counted(len(results.nodes), 'training')} with"
        f" training seed{'s' if len(spec['seeds']) > 1 else ''} {listed(spec['seeds'])},"
        f" evaluated on the prompts of {prompts}."
    )


def found(results: Results, name: str) -> str:
    """Count the significant differences of each question."""
    analysis, parts = analyse(results), []
    for question, what in WHAT.items():
        if differences := [difference for _, difference in analysis.of(name, question)]:
            parts.append(f"{what}, {tally(differences, question)}")
    if not parts:
        return "No two of the models can be compared."
    over = (
        "across training seeds" if len(results.spec["seeds"]) > 1 else "for these checkpoints alone"
    )
    return f"Significant differences in ROUGE-L on {name}, {over}: {'; '.join(parts)}."


def tally(differences: list[Difference], question: str) -> str:
    """Count: `2 of 4 (1 higher, 1 lower)`; which of two methods stands first means nothing, so no direction there."""
    up, down = (
        sum(d.verdict == direction for d in differences) for direction in ("higher", "lower")
    )
    text = f"{up + down} of {len(differences)}"
    if question == "method" or not up + down:
        return text
    return f"{text} ({listed(f'{n} {way}' for n, way in ((up, 'higher'), (down, 'lower')) if n)})"


def best(results: Results, groups: list[Chains], name: str) -> str:
    """Name the top teacher and, of each student size, the chain with the highest mean."""
    rows = [row for group in groups for row in group.rows]
    parts = [
        f"the top teacher {row.model} has ROUGE-L {row.cells[name].rougeL.text()}"
        for row in rows
        if row.role == "teacher"
    ]
    students = [row for row in rows if row.role == "student"]
    for model in dict.fromkeys(row.model for row in sorted(students, key=lambda r: -r.parameters)):
        top = max(
            (row for row in students if row.model == model),
            key=lambda row: row.cells[name].rougeL.mean,
        )
        parts.append(
            f"the highest mean of {model} is {top.cells[name].rougeL.text()} ({full_text(top.lineage)})"
        )
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def small_table(results: Results, groups: list[Chains], name: str) -> Table:
    """Teachers, chains, and the SFT baselines of their students: score, gains, total cost."""
    costs = {each.lineage: each for each in accumulate(results)}
    rows = [row for group in groups for row in group.rows]
    students = [row for row in rows if row.role == "student"]
    baselines = {supervised(row.model) for row in students}
    shown = {
        "Top teacher": [row for row in rows if row.role == "teacher"],
        "Chains": students,
        "SFT baselines": [row for row in rows if row.lineage in baselines],
    }
    columns = [
        Column("Model", "name"), Column("ROUGE-L"), Column("Gain over SFT"), Column("Gain over direct"),
        Column("Total cost", note=unit(results)),
    ]  # fmt: skip

    def line(row: Model) -> Row:
        cell, hours = row.cells[name], costs[row.lineage].mean_hours
        gains = [gain(cell.over_sft), gain(cell.over_direct)]
        cost = Cell(pages.hours(hours), f"{hours:.6g}")
        return Row(
            [model_cell(results, row.lineage), score(cell.rougeL), *gains, cost],
            lineage=row.lineage,
        )

    found = [Group(title, [line(row) for row in of]) for title, of in shown.items() if of]
    return Table(columns, found, "summary")
