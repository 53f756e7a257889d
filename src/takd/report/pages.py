"""Pages of the report: self-contained HTML that loads nothing external and suits print and phones."""

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from takd.analysis import comparisons, definitions
from takd.analysis import costs as cost_table
from takd.analysis.costs import Cost
from takd.analysis.cumulative_costs import accumulate, unit
from takd.analysis.results import Results
from takd.analysis.statistics import number
from takd.analysis.text import flat, plain, visible
from takd.experiment import labels
from takd.experiment.lineage import split
from takd.report import hardware, repeat, samples, table
from takd.report.figures import marks
from takd.report.figures.curves import short_text
from takd.report.figures.panels import panels
from takd.report.figures.scope import scoped, stroke
from takd.report.figures.style import looks, size_text

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


def samples_page(results: Results, groups: list[table.Group]) -> str:
    """Render some prompts of each set, with the answer of every model beside the references."""
    return render("samples.html", results, "generations.html", **samples.shown(results, groups))


def learning_page(results: Results) -> str:
    """Render the learning curves of all models, which can be shown and hidden."""
    sizes = marks.by_size(results)
    return render(
        "learning.html",
        results,
        "learning.html",
        panels=panels(results),
        looks=looks(results),
        models={
            marks.name_and_size(model, sizes[model]): [
                lineage for lineage in results.lineages if split(lineage)[-1].model == model
            ]
            for model in sizes
        },
        short_text=short_text,
        inline=inline,
        stroke=stroke,
    )


def costs_page(results: Results, costs: list[Cost], costs_svg: str, quality_svg: str) -> str:
    """Render the costs: minutes and tokens by stage and by lineage, and the accumulated cost of each lineage."""
    return render(
        "costs.html",
        results,
        "costs.html",
        costs=costs,
        stages=cost_table.by_stage(costs, len(results.spec["sets"])),
        judged=sum(cost.judged for cost in costs),
        needs={found.lineage: found for found in accumulate(results)},
        unit=unit(results),
        figure=inline(costs_svg),
        quality=inline(quality_svg),
    )


def provenance_page(results: Results, data_report: dict[str, Any]) -> str:
    """Render the provenance: models, their sources and settings, and the digests that identify them."""
    spec = results.spec
    versions: dict[str, set[str]] = {}
    for model in results.models.values():
        for name, version in (model.manifest.get("versions") or {}).items():
            versions.setdefault(name, set()).add(version or "not installed")
    devices = sorted({cost_table.device_text(model.end) for model in results.models.values()})
    methods = {hop.method for lineage in results.lineages for hop in split(lineage)}
    return render(
        "provenance.html",
        results,
        "provenance.html",
        versions={name: ", ".join(sorted(found)) for name, found in sorted(versions.items())},
        devices=devices,
        training={
            name: flat(values) for name, values in spec["training"].items() if name in methods
        },
        overrides={
            model: {method: flat(values) for method, values in settings.items()}
            for model, settings in (spec["overrides"] or {}).items()
            if settings
        },
        # the two uses share one decoding record; a key that only one has shows as a dash
        decoding_keys=list(dict.fromkeys([*spec["decoding"], *spec["dev_decoding"]])),
        data_report=data_report,
        used=hardware.used(results),
        codes=hardware.codes(results),
        starts={model: hardware.start_text(found) for model, found in spec["weights"].items()},
        tokenizer=hardware.start_text(spec["tokenizer"]),
        whole=repeat.whole(results),
        numbers=repeat.numbers(results),
        digests=repeat.digests(results),
        code=repeat.code(results),
        identity=repeat.identity(results, data_report),
        bibtex=repeat.bibtex(results, data_report),
    )


def comparison_page(first: Results, **values: Any) -> str:
    """Render the comparison of several experiments; `values` are those of `takd.report.compare.page`."""
    return render("comparison.html", first, **values)


def inline(svg: str) -> Markup:
    """Turn an SVG file into an element of a page: scaled to the page's width, with ids unique to the drawing."""
    return Markup(scoped(svg))


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
        "folded": samples.folded,
        "size": size_text,
        "plain": plain,
        "chain": labels.chain_text,
        "label": labels.chain_label,
        "named": table.named,
        "methods": labels.methods_text,
        "number": number,
        "p": comparisons.p_text,
        "definition": definitions.definition,
        "better": definitions.better,
        "hours": hours,
        "title_of": labels.method_title,
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
