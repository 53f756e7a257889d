"""Pages of the report: self-contained HTML that loads nothing external and suits print and phones."""

import functools
from typing import Any

from jinja2 import Environment

from takd.analysis.results import Results
from takd.analysis.statistics import number
from takd.experiment.labels import full_text, method_title
from takd.pages.environment import environment
from takd.pages.tables import copies
from takd.report.figures.registry import drawn

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


@functools.cache
def _environment() -> Environment:
    made = environment()
    made.filters |= {"number": number, "method": method_title, "full_text": full_text}
    made.filters["copies"] = copies
    return made


def render(file: str, results: Results, template: str = "", **values: Any) -> str:
    """Render a page.

    Args:
        file: its place in the site; empty for a page that stands alone.
        template: its template, if it does not have the name of the file.
    """
    plots = drawn(results) if file else {}
    return (
        _environment()
        .get_template(template or file)
        .render(
            spec=results.spec,
            results=results,
            file=file,
            nav=NAV,
            root="../" * file.count("/"),
            plots=[each for each in plots.items() if each[0].page == file],
            **values,
        )
    )
