"""Build the report: one folder of pages, figures and tables from the results of all models.

Output: `site`, a folder whose `index.html` links to all else.
"""

import shutil
from collections.abc import Callable

from takd.analysis import exports
from takd.analysis.results import Results, read
from takd.analysis.shares import controls_csv
from takd.data import page as data_page
from takd.pages.tables import latex, markdown
from takd.report import costs_page, generations, learning, pages, provenance, results_page, summary
from takd.report.figures.curves import numbers
from takd.report.figures.registry import drawn
from takd.report.model_pages import model_pages
from takd.report.score_tables import brief_table
from takd.runtime.files import read_json, write_text
from takd.runtime.records import REPORT
from takd.runtime.stage import Stage

FILES: dict[str, tuple[str, Callable[[Results], str]]] = {
    "summary.tex": ("the table above, as LaTeX", lambda results: latex(brief_table(results))),
    "summary.md": ("the same as Markdown", lambda results: markdown(brief_table(results))),
    "results.csv": ("scores and gains of all models", exports.results_csv),
    "differences.csv": ("all differences with their tests", exports.differences_csv),
    "controls.csv": (
        "gains of methods and of their controls, and the share that needs the teacher",
        controls_csv,
    ),
    "scores.csv": ("every measure in long form, as means", exports.scores_csv),
    "costs.csv": ("minutes and tokens of all models", costs_page.to_csv),
    "training.csv": (
        "what the methods log",
        lambda results: exports.to_csv(numbers(results, "train")),
    ),
}
"""Tables beside the pages: what each holds, and how it is written."""
PARQUET = "scores.parquet"


def run(stage: Stage) -> None:
    """Write the site.

    Inputs: `models`, `evaluations` and `teachers` (the folders above the lineages), and `data_report` (the data report
    as JSON). Raises InputError for a missing or damaged file.
    """
    models, evaluations, teachers = map(stage.input, ("models", "evaluations", "teachers"))
    data_report = read_json(stage.input("data_report"))
    train = data_report["splits"].get("train")
    rows = train["counts"]["kept"] if train else None
    results = read(stage.spec, models, evaluations, teachers, training_rows=rows)
    site = stage.outputs["site"]
    shutil.rmtree(site, ignore_errors=True)
    downloads = {name: about for name, (about, _) in FILES.items()}
    texts = {name: make(results) for name, (_, make) in FILES.items()}
    for plot, found in drawn(results).items():
        texts[f"{plot.name}.svg"], downloads[f"{plot.name}.svg"] = found.svg, plot.about
        if found.numbers:
            texts[f"{plot.name}.csv"] = found.csv
            downloads[f"{plot.name}.csv"] = f"the numbers of {plot.name}.svg"
    downloads[PARQUET] = "scores.csv with the score of every answer"
    for name, text in texts.items():
        write_text(site / name, text)
    # straight to a file: too large to build in memory
    exports.write_parquet(results, evaluations, site / PARQUET)
    write_text(site / "index.html", summary.page(results, data_report, downloads))
    write_text(site / "results.html", results_page.page(results))
    write_text(site / "learning.html", learning.page(results))
    write_text(site / "generations.html", generations.page(results))
    write_text(site / "costs.html", costs_page.page(results))
    data_text = data_page.render(data_report, spec=results.spec, file="data.html", nav=pages.NAV)
    write_text(site / "data.html", data_text)
    write_text(site / "provenance.html", provenance.page(results, data_report))
    for name, text in model_pages(results, models):
        write_text(site / name, text)
    # no other stage reads it; it lets recipients of a report verify its files
    stage.write_record(site / REPORT)
    stage.say(
        f"report: {len(results.lineages)} lineages, {len(results.nodes)} models,"
        f" {len(stage.spec['sets'])} evaluation set(s)"
    )
