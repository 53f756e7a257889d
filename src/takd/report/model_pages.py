"""A page for each model: links to its scores, curves and generations, and its cards."""

from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markupsafe import Markup

from takd.analysis.result_files import folder_of
from takd.analysis.results import Results
from takd.experiment.labels import full_text
from takd.experiment.lineage import is_given
from takd.report import pages
from takd.runtime.errors import InputError


def model_pages(results: Results, models: Path) -> Iterator[tuple[str, str]]:
    """Yield file and text of each page of a model; `models` is the folder above the lineages."""
    for lineage in results.lineages:
        cards = {}
        for model in results.of(lineage):
            path = folder_of(models, model.node, "card.md")
            if not path.is_file():
                raise InputError(f"{path}: not found; start snakemake with it as the target.")
            cards[model.node.seed] = card_html(path.read_text(encoding="utf-8"))
        file, given = f"models/{lineage}.html", is_given(lineage)
        about = {"name": full_text(lineage), "lineage": lineage, "given": given, "cards": cards}
        yield file, pages.render(file, results, "model.html", **about)


def card_html(card: str) -> Markup:
    """Render a model card, without its front matter; raw HTML in it stays text."""
    body = card.split("\n---\n", 1)[-1] if card.startswith("---\n") else card
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(body))
