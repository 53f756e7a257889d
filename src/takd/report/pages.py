"""Pages of the report: self-contained HTML that loads nothing external and suits print and phones."""

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from takd.analysis.results import Results
from takd.analysis.statistics import number
from takd.analysis.text import visible
from takd.experiment import labels
from takd.report.figures.scope import scoped

TEMPLATES = Path(__file__).parent / "templates"


NAV = {
    "index.html": "Summary",
    "results.html": "Results",
    "learning.html": "Learning",
    "generations.html": "Generations",
    "costs.html": "Costs",
    "data.html": "Data",
    "provenance.html": "Provenance",
    "index.html#downloads": "Downloads",
}
"""Pages of the site in the order of their links; each page shows these links."""


def prompts(results: Results) -> dict[str, int]:
    """Number of prompts of each evaluation set."""
    first = results.nodes[0]
    return {name: results.evaluations[first, name].scores["n"] for name in results.spec["sets"]}


def hours(value: float) -> str:
    """Format hours: two digits, or one after the point from ten."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def inline(svg: str, name: str = "") -> Markup:
    """Turn an SVG file into an element of a page: scaled to the page's width, with ids unique to drawing and name."""
    return Markup(scoped(svg, name))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": visible,
        "number": number,
        "method": labels.method_title,
        "thousands": lambda number: f"{number:,.0f}".replace(",", "\u202f"),
    }
    return environment


def render(template: str, results: Results, file: str = "", **values: Any) -> str:
    """Render a page; `file` is its place in the site, empty for a page that stands alone."""
    return (
        _environment()
        .get_template(template)
        .render(
            spec=results.spec,
            results=results,
            file=file,
            nav=NAV,
            root="../" * file.count("/"),
            **values,
        )
    )
