"""Provenance page: what ran, from manifests and logs, and how to reproduce and cite it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from takd.analysis import costs
from takd.analysis.results import Model, Results
from takd.analysis.text import flat
from takd.experiment.labels import method_title
from takd.experiment.lineage import is_given, split
from takd.pages.environment import thousands, visible
from takd.pages.tables import Cell, Table, simple
from takd.report import pages, reproduce
from takd.report.results_page import model_cell


def page(results: Results, data_report: dict[str, Any]) -> str:
    """Render the page. `data_report` is the data report's JSON."""
    return pages.render(
        "provenance.html",
        results,
        tables={
            "Models": starts(results),
            "Trainings": trainings(results, data_report),
            "Settings": settings(results),
            "Data": data(data_report),
            "Decoding": decoding(results),
            "Hardware": hardware(results),
            "Versions": versions(results),
            "Code": code(results),
        },
        commands=reproduce.whole(results),
        numbers=reproduce.numbers(results),
        digests=reproduce.digests(results),
        code_commands=reproduce.code(results),
        identity=reproduce.identity(results, data_report),
        bibtex=reproduce.bibtex(results, data_report),
    )


def starts(results: Results) -> Table:
    """List the models with their parameters and the sources of their weights."""
    spec = results.spec
    rows = [
        [model, thousands(parameters), start_text(spec["weights"][model])]
        for model, parameters in spec["models"].items()
    ]
    rows.append(["tokenizer of all", "", start_text(spec["tokenizer"])])
    return simple(["Model", "#Parameters", "Starts from"], rows)


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
    """Describe the trainings of each lineage: start, rows and how often they were drawn, last and exported steps."""
    kept = data_report["splits"].get("train", {"counts": {"kept": 0}})["counts"]["kept"]
    rows = []
    for lineage in results.lineages:
        models = results.of(lineage)
        if is_given(lineage):
            rows.append([model_cell(lineage), *origin_cells(models[0])])
            continue
        ran = _settings(models[0])
        used = min(ran.get("rows") or kept, kept)
        drawn = rows_drawn(ran, models[0].manifest["steps"])
        size = thousands(used) if used == kept else f"{thousands(used)} of {thousands(kept)}"
        seen = [] if drawn is None else [f"{thousands(drawn)} drawn, {drawn / used:.2g} passes"]
        kept_steps = [f"{m.kept_step or '–'} (seed {m.node.seed})" for m in models]
        start = "SFT, same seed" if "init" in models[0].manifest["inputs"] else "starting weights"
        skipped = thousands(sum(int(m.end.get("skipped", 0)) for m in models))
        cells = [Cell(size, used, seen), _last_step(models), Cell("", notes=kept_steps), skipped]
        rows.append([model_cell(lineage), start, *cells])
    heads = ["Model", "Start", "#Training rows", "#Last step", "#Exported step", "#Skipped steps"]
    return simple(heads, rows)


def origin_cells(model: Model) -> list[Any]:
    """Cells of a model that is taken as it is: no training here, and which training made it where that is recorded."""
    made = model.manifest.get("origin")
    notes = [f"trained before as {made['lineage']}, seed {made['seed']}"] if made else []
    return [Cell("as given", notes=notes), *[Cell("–", "")] * 4]


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
    limits |= {"budget" for model in models if "budget" in model.manifest["spec"]}
    return Cell(", ".join(map(thousands, steps)), steps[0], sorted(limits))


def _settings(model: Model) -> dict[str, Any]:
    """Settings of a training as they were resolved when it ran."""
    ran: dict[str, Any] = dict(model.manifest["spec"].get("settings", {}))
    precision = model.manifest.get("precision") or model.end.get("precision")
    return ran | ({"precision": precision} if precision else {})


def settings(results: Results) -> Table:
    """List the settings that ran, a column a method; where models of one method differ, each value names its models."""
    trained = [lineage for lineage in results.lineages if not is_given(lineage)]
    methods = dict.fromkeys(split(lineage)[-1].method for lineage in trained)
    values: dict[tuple[str, str], dict[str, dict[str, None]]] = {}
    for model in results.trained_here.values():
        hop = split(model.node.lineage)[-1]
        for key, value in flat(_settings(model)).items():
            of_value = values.setdefault((key, hop.method), {}).setdefault(value, {})
            of_value[hop.model] = None

    def cell(by_value: Mapping[str, Iterable[str]]) -> Cell:
        if len(by_value) < 2:
            return Cell(visible(next(iter(by_value), "–")))
        return Cell(notes=[visible(f"{value}: {', '.join(m)}") for value, m in by_value.items()])

    rows = [
        [key, *(cell(values.get((key, method), {})) for method in methods)]
        for key in sorted({key for key, _ in values})
    ]
    return simple(["Setting", *map(method_title, methods)], rows, kind="settings")


def decoding(results: Results) -> Table:
    """List the decoding settings of the evaluation sets and of dev; each may have some that the other lacks."""
    uses = [flat(results.spec[name]) for name in ("decoding", "dev_decoding")]
    keys = dict.fromkeys(key for use in uses for key in use)
    rows = [[key, *(use.get(key, "–") for use in uses)] for key in keys]
    return simple(["Setting", "Evaluation sets", "Dev"], rows)


def data(data_report: dict[str, Any]) -> Table:
    """List the splits with their sources, sizes and digests."""
    rows = []
    for name, found in data_report["splits"].items():
        counts = found["counts"]
        size = f"{thousands(counts.get('blocks', 0))} blocks"
        if "kept" in counts:
            size = f"{thousands(counts['kept'])} of {thousands(counts['rows'])} rows"
        rows.append([name, found["source"], size, Cell(found["sha256"], kind="digest")])
    return simple(["Split", "Source", "#Kept", "Rows (sha256)"], rows)


def hardware(results: Results) -> Table:
    """List each combination of stage, device and precision, with its runs and their wall time."""
    minutes: dict[tuple[str, ...], list[float]] = {}
    for run in filter(lambda run: run.end, costs.runs(results).itertuples()):
        keys = ("device", "processes", "precision", "host_cpus")
        place = (run.stage, *(str(run.end.get(key, "–")) for key in keys))
        minutes.setdefault(place, []).append(run.minutes)
    rows = [[*place, len(found), f"{sum(found):.1f}"] for place, found in minutes.items()]
    heads = ["Stage", "Device", "#Processes", "Precision", "#CPUs of the host", "#Runs", "#Minutes"]
    return simple(heads, rows)


def code(results: Results) -> Table:
    """List each combination of stage, commit and digest of the code, with its runs."""
    found = Counter(
        (run.stage, *(Cell(run.end.get(key) or "–", kind="digest") for key in ("commit", "code")))
        for run in costs.runs(results).itertuples()
        if run.end
    )
    rows = [[*place, runs] for place, runs in found.items()]
    return simple(["Stage", "Commit", "Digest of the code", "#Runs"], rows)


def versions(results: Results) -> Table:
    """List the versions of the packages that the trainings used."""
    found: dict[str, set[str]] = {}
    for model in results.models.values():
        for name, version in (model.manifest.get("versions") or {}).items():
            found.setdefault(name, set()).add(version or "not installed")
    rows = [[name, ", ".join(sorted(versions))] for name, versions in sorted(found.items())]
    return simple(["Package", "Version"], rows)
