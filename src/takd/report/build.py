"""Build the report: one folder of pages, figures and tables from the results of all models.

Output: `site`, a folder whose `index.html` links to all else.
"""

import shutil
from collections.abc import Callable

from takd.analysis import exports
from takd.analysis.results import read
from takd.data import page as data_page
from takd.report import (
    costs_page,
    generations,
    learning,
    pages,
    provenance,
    results_page,
    score_tables,
    summary,
    tables,
)
from takd.report.figures import forest
from takd.report.figures.curves import learning_curves, numbers
from takd.report.figures.quality import quality
from takd.report.model_pages import model_pages
from takd.runtime.files import read_json, write_text
from takd.runtime.records import REPORT
from takd.runtime.stage import Stage

DOWNLOADS = {
    "summary.tex": "the table above, as LaTeX",
    "summary.md": "the same as Markdown",
    "results.csv": "scores and gains of all models",
    "differences.csv": "all differences with their tests",
    "scores.csv": "every measure in long form, as means",
    "scores.parquet": "the same with the score of every answer",
    "forest.svg": "the figure above",
    "scores.svg": "ROUGE-L of all models",
    "quality.svg": "quality against cost",
    "quality.csv": "its numbers",
    "costs.csv": "minutes and tokens of all models",
    "learning.svg": "learning curves",
    "learning.csv": "what was measured on dev while training",
    "training.csv": "what the methods log",
}
"""Files beside the pages."""


def run(stage: Stage) -> None:
    """Write the site.

    Inputs: `models`, `evaluations` and `teachers` (the folders above the lineages), and `data_report` (the data report
    as JSON). Raises InputError for a missing or damaged file.
    """
    models, evaluations, teachers = (
        stage.input(name) for name in ("models", "evaluations", "teachers")
    )
    results = read(stage.spec, models, evaluations, teachers)
    data_report = read_json(stage.input("data_report"))
    site = stage.outputs["site"]
    figures = {
        "learning": learning_curves(results),
        "quality": quality(results),
    }
    shutil.rmtree(site, ignore_errors=True)
    for name, drawing in figures.items():
        write_text(site / f"{name}.svg", drawing.svg)
        write_text(site / f"{name}.csv", drawing.csv)
    first = results.spec["sets"][0]
    for name, draw in (("forest", forest.differences), ("scores", forest.scores)):
        if drawn := draw(results, first):
            write_text(site / f"{name}.svg", drawn.broad)
    brief = score_tables.brief_table(results)
    write_text(site / "summary.tex", tables.latex(brief))
    write_text(site / "summary.md", tables.markdown(brief))
    write_text(site / "results.csv", exports.results_csv(results))
    write_text(site / "differences.csv", exports.differences_csv(results))
    write_text(site / "training.csv", exports.to_csv(numbers(results, "train")))
    write_text(site / "costs.csv", costs_page.to_csv(results))
    write_text(site / "scores.csv", exports.scores_csv(results))
    # straight to a file: too large to build in memory
    exports.write_parquet(results, evaluations, site / "scores.parquet")
    downloads = {file: about for file, about in DOWNLOADS.items() if (site / file).exists()}
    site_pages: dict[str, Callable[[], str]] = {
        "index.html": lambda: summary.page(results, brief, data_report, downloads),
        "results.html": lambda: results_page.page(results),
        "learning.html": lambda: learning.page(results),
        "generations.html": lambda: generations.page(results),
        "costs.html": lambda: costs_page.page(results, figures["quality"].svg),
        "data.html": lambda: data_page.render(
            data_report, spec=results.spec, file="data.html", nav=pages.NAV
        ),
        "provenance.html": lambda: provenance.page(results, data_report),
        **model_pages(results, models),
    }
    for name, make in site_pages.items():
        write_text(site / name, make())
    # no other stage reads it; it lets recipients of a report verify its files
    stage.write_record(site / REPORT)
    stage.say(
        f"report: {len(results.lineages)} lineages, {len(results.nodes)} models,"
        f" {len(stage.spec['sets'])} evaluation set(s)"
    )
