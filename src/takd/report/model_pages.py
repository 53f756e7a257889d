"""One page a model: where it stands in the report, its scores, and its cards."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from markdown_it import MarkdownIt
from markupsafe import Markup

from takd.analysis.results import Results
from takd.experiment.labels import full_text
from takd.report import pages


def model_pages(results: Results, models: Path) -> Mapping[str, Callable[[], str]]:
    """Map each page of a model to the function that renders it; `models` is the folder above the lineages."""
    return {
        f"models/{lineage}.html": functools.partial(_page, results, models, lineage)
        for lineage in results.lineages
    }


def _page(results: Results, models: Path, lineage: str) -> str:
    cards = {
        seed: card_html((models / lineage / f"seed{seed}" / "card.md").read_text(encoding="utf-8"))
        for seed in results.seeds(lineage)
    }
    return pages.render(
        "model.html",
        results,
        f"models/{lineage}.html",
        name=full_text(lineage),
        lineage=lineage,
        cards=cards,
    )


def card_html(card: str) -> Markup:
    """Render a model card, without its front matter; raw HTML in it stays text."""
    _, _, body = (
        card.removeprefix("---\n").partition("\n---\n")
        if card.startswith("---\n")
        else ("", "", card)
    )
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(body))
