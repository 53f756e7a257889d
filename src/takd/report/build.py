"""Build the report: tables, figures and pages from the results of all models.

Outputs, each optional: the names of `takd.experiment.report_files.PARTS`.
"""

from collections.abc import Callable
from pathlib import Path

from takd.analysis import costs, scores_table
from takd.analysis.results import read
from takd.report import pages, table
from takd.report.figures.chains import chains
from takd.report.figures.costs import costs as costs_figure
from takd.report.figures.curves import learning_curves, training_curves
from takd.report.figures.gains import gains
from takd.report.figures.lattice import lattice
from takd.report.figures.quality import quality
from takd.report.figures.teachers import teachers
from takd.runtime.errors import InputError
from takd.runtime.files import read_json, write_text
from takd.runtime.records import REPORT
from takd.runtime.stage import Stage


def run(stage: Stage) -> None:
    """Write the requested outputs.

    Inputs: `models`, `evaluations` and `teachers` (the folders above the lineages), `data_report` and `data_page` (the
    data report as JSON and as a page). Raises InputError for a missing file or an unknown output.
    """
    folders = (stage.input(name) for name in ("models", "evaluations", "teachers"))
    results = read(stage.spec, *folders)
    groups = table.build(results)
    spent = costs.by_lineage(results)
    figures = {
        "chains": chains(results),
        "gains": gains(results),
        "teachers": teachers(results),
        "lattice": lattice(results),
        "learning": learning_curves(results),
        "training": training_curves(results),
        "costs": costs_figure(spent),
        "quality": quality(results),
    }
    data_report = read_json(stage.input("data_report"))
    makers: dict[str, Callable[[], str]] = {
        "overview": lambda: pages.overview_page(
            results, groups, data_report, figures["chains"].svg
        ),
        "results": lambda: pages.results_page(results, groups, figures["chains"].svg),
        "results_csv": lambda: table.to_csv(results, groups),
        "differences_csv": lambda: table.differences_csv(results),
        "learning_page": lambda: pages.learning_page(results),
        "scores_csv": lambda: scores_table.to_csv(results),
        "samples": lambda: pages.samples_page(results, groups),
        "costs_page": lambda: pages.costs_page(
            results, spent, figures["costs"].svg, figures["quality"].svg
        ),
        "data": lambda: stage.input("data_page").read_text(encoding="utf-8"),
        "provenance": lambda: pages.provenance_page(results, data_report),
    }
    texts = {name: drawing.svg for name, drawing in figures.items()}
    texts |= {f"{name}_csv": drawing.csv for name, drawing in figures.items()}
    # written straight to a file: too large to build in memory
    writers: dict[str, Callable[[Path], None]] = {
        "scores_parquet": lambda path: scores_table.write_parquet(
            results, stage.input("evaluations"), path
        ),
    }
    for name, path in stage.outputs.items():
        if name in writers:
            writers[name](path)
        elif name in makers or name in texts:
            write_text(path, texts[name] if name in texts else makers[name]())
        else:
            known = ", ".join([*makers, *texts, *writers])
            raise InputError(f"--output {name}: no such part of the report; there are {known}")
    # no other stage reads it; it lets recipients of a report verify its files
    stage.write_record(next(iter(stage.outputs.values())).parent / REPORT)
    stage.say(
        f"report: {len(results.lineages)} lineages, {len(results.nodes)} models,"
        f" {len(stage.spec['sets'])} evaluation set(s)"
    )
