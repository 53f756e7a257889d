"""Provenance page: what ran, from manifests and logs, and how to repeat and cite it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from takd.analysis import costs
from takd.analysis.results import Model, Results
from takd.analysis.text import flat, visible
from takd.experiment.labels import full_text, method_title
from takd.experiment.lineage import split
from takd.report import pages, reproduce
from takd.report.results_page import model_cell
from takd.report.tables import Cell, Column, Group, Row, Table

DIGITS = 16
"""Of a digest that are shown; the whole one is in the list below."""
NAME = Column("Model", "name")


def page(results: Results, data_report: dict[str, Any]) -> str:
    """Render the page. `data_report` is the data report's JSON."""
    return pages.render(
        "provenance.html",
        results,
        "provenance.html",
        starts=starts(results),
        trainings=trainings(results, data_report),
        settings=settings(results),
        decoding=decoding(results),
        data=data(data_report),
        hardware=hardware(results),
        versions=versions(results),
        code=code(results),
        weights=weights(results),
        commands=reproduce.whole(results),
        numbers=reproduce.numbers(results),
        digests=reproduce.digests(results),
        code_commands=reproduce.code(results),
        identity=reproduce.identity(results, data_report),
        bibtex=reproduce.bibtex(results, data_report),
    )


def table(id: str, columns: Iterable[Column], rows: Iterable[Iterable[Any]]) -> Table:
    """Build a table in one group; what is no cell becomes one."""
    cells = ([c if isinstance(c, Cell) else Cell(visible(str(c))) for c in row] for row in rows)
    return Table(list(columns), [Group("", [Row(row) for row in cells])], id)


def starts(results: Results) -> Table:
    """List the models with their parameters and the sources of their weights."""
    spec = results.spec
    rows = [
        [model, _thousands(parameters), start_text(spec["weights"][model])]
        for model, parameters in spec["models"].items()
    ]
    rows.append(["tokenizer of all", "", start_text(spec["tokenizer"])])
    return table("starts", [NAME, Column("Parameters"), Column("Starts from", "")], rows)


def start_text(source: Mapping[str, Any]) -> str:
    """Describe a source of weights or a tokenizer, such as `hub openai-community/gpt2, revision 607a…`."""
    words = []
    for key, value in source.items():
        if isinstance(value, dict):
            value = f"({', '.join(f'{name} {each}' for name, each in value.items())})"
        if value is not None:
            words.append(f"{key.replace('_', ' ')} {value}")
    return ", ".join(words)


def trainings(results: Results, data_report: dict[str, Any]) -> Table:
    """Describe the trainings of each lineage: start, rows, how often they were seen, and what ended them."""
    columns = [
        *(NAME, Column("Start", ""), Column("Training rows", note="drawn, passes over them")),
        *(Column("Last step", note="limit"), Column("Exported step", note="best on dev, by seed")),
        Column("Skipped steps"),
    ]
    kept = data_report["splits"]["train"]["counts"]["kept"]
    rows = []
    for lineage in results.lineages:
        models = results.of(lineage)
        ran = _settings(models[0])
        used = min(ran.get("rows") or kept, kept)
        drawn = rows_drawn(ran, models[0].manifest["steps"])
        size = _thousands(used) if used == kept else f"{_thousands(used)} of {_thousands(kept)}"
        seen = [] if drawn is None else [f"{_thousands(drawn)} drawn, {drawn / used:.2g} passes"]
        steps = (
            f"{model.kept_step if model.kept_step is not None else '–'} (seed {model.node.seed})"
            for model in models
        )
        rows.append(
            [
                model_cell(lineage),
                "SFT, same seed" if "init" in models[0].manifest["inputs"] else "starting weights",
                Cell(size, used, seen),
                _last_step(models),
                Cell("", notes=list(steps)),
                _thousands(sum(int(model.end.get("skipped", 0)) for model in models)),
            ]
        )
    return table("trainings", columns, rows)


def rows_drawn(settings: Mapping[str, Any], steps: int) -> int | None:
    """Training rows (or prompts of rollouts) that a training drew, repeated ones too; None if settings are missing."""
    if "batch_size" not in settings:
        return None
    if "rollouts_per_round" not in settings:
        return int(steps * settings["batch_size"])
    a_round = settings["rollouts_per_round"]
    steps_per_round = a_round // settings["batch_size"] * settings["inner_epochs"]
    return int(math.ceil(steps / steps_per_round) * a_round)


def _last_step(models: Iterable[Model]) -> Cell:
    """Last steps of trainings, with the setting that set them; a training that was stopped before is not published."""
    steps = list(dict.fromkeys(model.manifest["steps"] for model in models))
    limits = {
        f"steps {steps[0]}" if ran.get("steps") == steps[0] else f"epochs {ran['epochs']:g}"
        for ran in map(_settings, models)
        if ran.get("steps") or ran.get("epochs")
    }
    return Cell(", ".join(map(_thousands, steps)), steps[0], sorted(limits))


def _settings(model: Model) -> dict[str, Any]:
    """Settings of a training as they were resolved when it ran."""
    ran: dict[str, Any] = dict(model.manifest["spec"].get("settings", {}))
    precision = model.manifest.get("precision") or model.end.get("precision")
    return ran | ({"precision": precision} if precision else {})


def settings(results: Results) -> Table:
    """List the settings that ran, a column a method; where models of one method differ, each value names its models."""
    values: dict[str, dict[str, dict[str, list[str]]]] = {}
    methods = list(dict.fromkeys(split(lineage)[-1].method for lineage in results.lineages))
    for model in results.models.values():
        hop = split(model.node.lineage)[-1]
        for key, value in flat(_settings(model)).items():
            models = values.setdefault(key, {}).setdefault(hop.method, {}).setdefault(value, [])
            if hop.model not in models:
                models.append(hop.model)
    rows = [
        [key, *(_setting(by_method.get(method, {})) for method in methods)]
        for key, by_method in sorted(values.items())
    ]
    columns = [Column("Setting", "name"), *(Column(method_title(m), "") for m in methods)]
    return table("settings", columns, rows)._replace(kind="settings")


def _setting(by_value: Mapping[str, list[str]]) -> Cell:
    if len(by_value) < 2:
        return Cell(visible(next(iter(by_value), "–")))
    return Cell("", notes=[visible(f"{value}: {', '.join(m)}") for value, m in by_value.items()])


def decoding(results: Results) -> Table:
    """List the decoding settings of the evaluation sets and of dev; they have some keys of their own."""
    uses = [results.spec[name] for name in ("decoding", "dev_decoding")]
    keys = dict.fromkeys(key for use in uses for key in use)
    rows = [[key, *(flat(use).get(key, "–") for use in uses)] for key in keys]
    return table(
        "decoding",
        [Column("Setting", "name"), Column("Evaluation sets", ""), Column("Dev", "")],
        rows,
    )


def data(data_report: dict[str, Any]) -> Table:
    """List the splits with their sources, sizes and digests."""
    rows = []
    for name, found in data_report["splits"].items():
        counts = found["counts"]
        size = f"{_thousands(counts.get('blocks', 0))} blocks"
        if "kept" in counts:
            size = f"{_thousands(counts['kept'])} of {_thousands(counts['rows'])} rows"
        rows.append([name, found["source"], size, Cell(found["sha256"], kind="digest long")])
    heads = [
        Column("Split", "name"),
        Column("Source", ""),
        Column("Kept"),
        Column("Rows (sha256)", ""),
    ]
    return table("splits", heads, rows)


def hardware(results: Results) -> Table:
    """List each combination of stage, device and precision, with its runs and their time."""
    found: dict[tuple[str, ...], list[costs.Run]] = {}
    for run in costs.runs(results):
        keys = ("device", "processes", "precision", "host_cpus")
        if run.end:
            place = (run.stage, *(str(run.end.get(key, "–")) for key in keys))
            found.setdefault(place, []).append(run)
    rows = [
        [*place, len(runs), f"{sum(run.minutes for run in runs):.1f}"]
        for place, runs in found.items()
    ]
    heads = [
        Column("Stage", "name"),
        Column("Device", ""),
        Column("Processes"),
        Column("Precision", ""),
    ]
    heads += [Column("CPUs of the host"), Column("Runs"), Column("Minutes", note="wall time")]
    return table("hardware", heads, rows)


def code(results: Results) -> Table:
    """List each combination of stage, commit and digest of the code, with its runs."""
    counts = Counter(
        (run.stage, str(run.end.get("commit") or "–"), str(run.end.get("code") or "–"))
        for run in costs.runs(results)
        if run.end
    )
    rows = [
        [stage, Cell(commit, kind="digest"), Cell(digest, kind="digest"), runs]
        for (stage, commit, digest), runs in counts.items()
    ]
    heads = [Column("Stage", "name"), Column("Commit", ""), Column("Digest of the code", "")]
    return table("code", [*heads, Column("Runs")], rows)


def versions(results: Results) -> Table:
    """List the versions of the packages that the trainings used."""
    found: dict[str, dict[str, None]] = {}
    for model in results.models.values():
        for name, version in (model.manifest.get("versions") or {}).items():
            found.setdefault(name, {})[version or "not installed"] = None
    rows = [[name, ", ".join(sorted(found[name]))] for name in sorted(found)]
    return table("versions", [Column("Package", "name"), Column("Version", "")], rows)


def weights(results: Results) -> Table:
    """List the digests of all models."""
    rows = [
        [
            full_text(node.lineage),
            node.seed,
            Cell(model.manifest["weights"]["model"][:DIGITS], kind="digest"),
            Cell(model.manifest["code"], kind="digest"),
        ]
        for node, model in results.models.items()
    ]
    return table(
        "weights", [NAME, Column("Seed"), Column("Weights (sha256)", ""), Column("Code", "")], rows
    )


def _thousands(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f")
