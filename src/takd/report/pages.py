"""The pages: self-contained HTML that loads nothing from anywhere, readable on paper and on a phone."""

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from takd.lineage import Node, split
from takd.report import comparisons, table
from takd.report import costs as cost_table
from takd.report.costs import Cost
from takd.report.figures.style import size_text
from takd.report.read import Results
from takd.report.statistics import number

TEMPLATES = Path(__file__).parent / "templates"
LONG = 500
"""Characters of a text that are shown at once; the rest unfolds."""


def results_page(results: Results, groups: list[table.Group], chains_svg: str) -> str:
    """Title, findings, the figure along the chains, and one sortable table an evaluation set."""
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
    )


def samples_page(results: Results, groups: list[table.Group]) -> str:
    """Some prompts of each set, with the answer of every model beside the references."""
    labels = {row.lineage: row.label for group in groups for row in group.rows}
    order = [row.lineage for group in groups for row in group.rows]
    nodes = [Node(lineage, results.seeds(lineage)[0]) for lineage in order]
    return _render(
        "samples.html",
        results,
        samples=results.samples,
        nodes=nodes,
        labels=labels,
        seed=results.spec["decoding_seeds"][0],
        roles={row.lineage: row.role for group in groups for row in group.rows},
    )


def costs_page(results: Results, costs: list[Cost], costs_svg: str) -> str:
    """Minutes and tokens by stage and by lineage."""
    return _render(
        "costs.html",
        results,
        costs=costs,
        stages=cost_table.by_stage(costs, len(results.spec["sets"])),
        figure=inline(costs_svg),
    )


def provenance_page(results: Results, data_report: dict[str, Any]) -> str:
    """What was trained, from what, with which settings, and the digests that identify it."""
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
        # one record for decoding, printed for both uses; a key that only one has shows as a dash
        decoding_keys=list(dict.fromkeys([*spec["decoding"], *spec["dev_decoding"]])),
        data_report=data_report,
    )


def comparison_page(first: Results, **values: Any) -> str:
    """Several experiments side by side; `values` are those of `takd.report.compare.page`."""
    return _render("comparison.html", first, **values)


def inline(svg: str) -> Markup:
    """An SVG file's drawing, to stand inside a page: scaled to the page's width."""
    drawing = svg[svg.index("<svg") :]
    head, _, body = drawing.partition(">")
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    return Markup(f"{head} class='figure'>{body}")


def visible(text: str) -> str:
    """A model's text with what no page may hold made visible: control characters, halves of surrogate pairs."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character in "\n\t":
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    # Cc: other controls; Cs: lone surrogates; Cf holds the marks that turn the direction of writing
    if (
        unicodedata.category(character) in ("Cc", "Cs")
        or character in "\u202a\u202b\u202c\u202d\u202e"
    ):
        return f"⟨U+{code:04X}⟩"
    return character


def flat(settings: dict[str, Any], above: str = "") -> dict[str, str]:
    """Nested settings as one level: `{"a": {"b": 1}}` gives `{"a.b": "1"}`."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = plain(value)
    return found


def plain(value: Any) -> str:
    """A setting's value as it is written in an experiment file."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
        "size": size_text,
        "plain": plain,
        "chain": table.chain_text,
        "label": table.chain_label,
        "named": table.named,
        "methods": table.methods_text,
        "number": number,
        "p": comparisons.p_text,
        "thousands": lambda number: f"{number:,.0f}".replace(",", "\u202f"),
    }
    environment.globals["LONG"] = LONG
    return environment


def _render(template: str, results: Results, **values: Any) -> str:
    return (
        _environment().get_template(template).render(spec=results.spec, results=results, **values)
    )
