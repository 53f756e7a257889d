"""Pages of the report: self-contained HTML that loads nothing external and suits print and phones."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from takd.analysis import comparisons, definitions, deviations, measures
from takd.analysis import costs as cost_table
from takd.analysis.costs import Cost
from takd.analysis.cumulative_costs import accumulate, unit
from takd.analysis.results import MEASURES, Results
from takd.analysis.statistics import number
from takd.analysis.text import flat, plain, visible
from takd.experiment import labels
from takd.experiment.lineage import split
from takd.experiment.report_files import PARTS, Part
from takd.report import hardware, overview, repeat, samples, table
from takd.report.figures import marks
from takd.report.figures.curves import short_text
from takd.report.figures.panels import panels
from takd.report.figures.scope import scoped, stroke
from takd.report.figures.style import looks, size_text

TEMPLATES = Path(__file__).parent / "templates"


def overview_page(
    results: Results, groups: list[table.Group], data_report: dict[str, Any], chains_svg: str
) -> str:
    """Render the overview: the sentences, the figure along the chains, and links to the other pages."""
    places: dict[tuple[str, str], list[Part]] = {}
    for part in PARTS.values():
        if part.stem != "overview":
            places.setdefault((part.category, part.about), []).append(part)
    return _render(
        "overview.html",
        results,
        points=overview.points(results, groups, data_report),
        several=len(results.spec["seeds"]) > 1,
        figure=inline(chains_svg),
        places=dict(sorted(places.items())),
        paper=deviations.PAPER,
    )


def results_page(results: Results, groups: list[table.Group], chains_svg: str) -> str:
    """Render the results: title, findings, the figure along the chains, and a sortable table per evaluation set."""
    cited = table.sources(groups)
    shown = {
        name: [
            source
            for source in cited
            if any(
                published.source == source
                for group in groups
                for row in group.rows
                for published in row.cells[name].published
            )
        ]
        for name in results.spec["sets"]
    }
    return _render(
        "results.html",
        results,
        groups=groups,
        prompts={
            name: results.evaluations[results.nodes[0], name].scores["n"]
            for name in results.spec["sets"]
        },
        findings=table.findings(results, groups, results.spec["sets"][0]),
        cited=cited,
        shown=shown,
        questions=comparisons.QUESTIONS,
        analysis=comparisons.analyse(results),
        with_direct=any(pair.question == "direct" for pair in comparisons.pairs(results)),
        several=any(len(results.seeds(lineage)) > 1 for lineage in results.lineages),
        figure=inline(chains_svg),
        measures=[m for m in measures.measured(results) if m.name not in MEASURES],
        measured=measures.mean,
    )


def samples_page(results: Results, groups: list[table.Group]) -> str:
    """Render some prompts of each set, with the answer of every model beside the references."""
    return _render("samples.html", results, **samples.shown(results, groups))


def learning_page(results: Results) -> str:
    """Render the learning curves of all models, which can be shown and hidden."""
    sizes = marks.by_size(results)
    return _render(
        "learning.html",
        results,
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
    return _render(
        "costs.html",
        results,
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
    return _render(
        "provenance.html",
        results,
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
    return _render("comparison.html", first, **values)


def inline(svg: str) -> Markup:
    """Turn an SVG file into an element of a page: scaled to the page's width, with ids unique to the drawing."""
    return Markup(scoped(svg))


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
        "hours": lambda hours: f"{hours:.1f}" if hours >= 10 else f"{hours:.2g}",
        "thousands": lambda number: f"{number:,.0f}".replace(",", "\u202f"),
    }
    return environment


def _render(template: str, results: Results, **values: Any) -> str:
    return (
        _environment().get_template(template).render(spec=results.spec, results=results, **values)
    )
