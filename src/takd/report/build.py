"""Build the report: tables, figures and pages out of the results of all models.

Outputs, each optional: `results`, `samples`, `costs`, `provenance` (HTML pages), `results_csv`, `costs_csv`,
`chains`, `learning`, `training`, `costs_figure` (SVG), `data` (the data report's page, handed on).
"""

from collections.abc import Callable

from takd.errors import InputError
from takd.report import costs, figures, pages, table
from takd.report.read import read
from takd.stage import Stage, read_json, write_text


def run(stage: Stage) -> None:
    """Write the outputs that were asked for.

    Inputs: `models` and `evaluations` (the folders above the lineages), `data_report` and `data_page` (the data
    report as JSON and as a page). Raises InputError for a missing file or an unknown output.
    """
    results = read(stage.spec, stage.input("models"), stage.input("evaluations"))
    groups = table.build(results)
    spent = costs.by_lineage(results)
    chains = figures.chains(results)
    bars = figures.costs(spent)
    makers: dict[str, Callable[[], str]] = {
        "results": lambda: pages.results_page(results, groups, chains),
        "results_csv": lambda: table.to_csv(results, groups),
        "chains": lambda: chains,
        "learning": lambda: figures.learning_curves(results),
        "training": lambda: figures.training_curves(results),
        "samples": lambda: pages.samples_page(results, groups),
        "costs": lambda: pages.costs_page(results, spent, bars),
        "costs_csv": lambda: costs.to_csv(spent),
        "costs_figure": lambda: bars,
        "data": lambda: stage.input("data_page").read_text(encoding="utf-8"),
        "provenance": lambda: pages.provenance_page(results, read_json(stage.input("data_report"))),
    }
    for name, path in stage.outputs.items():
        if name not in makers:
            raise InputError(
                f"--output {name}: no such part of the report; there are {', '.join(makers)}"
            )
        write_text(path, makers[name]())
    stage.say(
        f"report: {len(results.lineages)} lineages, {len(results.nodes)} models,"
        f" {len(stage.spec['sets'])} evaluation set(s)"
    )
