"""Evaluate one model without an experiment file, by the stages of the workflow.

The command writes an experiment in which the model stands alone and is taken as it is, and runs the stages of that one
by one, below its output folder. Stages that are finished, with the same settings, code and inputs, are not run again;
the last one resumes from what it saved.
"""

import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from takd.analysis import exports, table
from takd.analysis.folder import INNER, read_folder
from takd.analysis.measures import measured
from takd.analysis.results import Results
from takd.analysis.table import SCORE
from takd.analysis.text import counted
from takd.commands.one_model import experiment_of
from takd.experiment import experiment as experiments
from takd.experiment import specs
from takd.experiment.experiment import Experiment
from takd.models.starting_weights import relink
from takd.preflight.text_table import aligned
from takd.runtime.checkpoints import resume_key, sweep
from takd.runtime.code_digest import code_digest
from takd.runtime.digests import canonical_json, without_places
from takd.runtime.files import write_json, write_text
from takd.runtime.stage import Stage
from takd.runtime.stage_lock import Lock

SCRIPTS = Path(__file__).resolve().parents[3] / "workflow/scripts"
MODULES = {
    "tokenizer": ("prepare_tokenizer", "takd.data.tokenizer"),
    "given": ("prepare_base", "takd.models.starting_weights"),
    "data": ("prepare_data", "takd.data.prepare"),
    "evaluate": ("evaluate", "takd.evaluation.evaluate"),
    "likelihoods": ("likelihoods", "takd.evaluation.likelihoods"),
}
"""Script and module of each stage."""
STDERR = 2  # the console, for what stages say: stdout is for the scores
RUNS_A_MODEL = ("evaluate", "likelihoods")


class Step(NamedTuple):
    """One run of a stage: its settings, inputs and outputs; the last output is its record."""

    stage: str
    spec: dict[str, Any]
    inputs: dict[str, Path]
    outputs: dict[str, Path]


def evaluate(options: Namespace) -> int:
    """Evaluate the model that the options name, print its scores, and write them.

    Raises:
        InputError: an option is wrong; or a file is missing or damaged.
    """
    settings = experiment_of(options)
    (model,) = settings["models"]
    output = options.output or Path(f"results/evaluated-{model}")
    file = output / "experiment.yaml"
    with Lock(output / "lock", _say):
        write_text(file, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        experiment = experiments.load(file, Path.cwd())
        experiment.require_files()
        for step in steps(experiment, model, output / INNER):
            if not _done(step) and (status := _run(step, options)):
                _say(f"Not finished; the same command goes on from what is in {output}.")
                return status
        sweep(output / INNER)
    results = read_folder(output)
    rows = scores(results)
    write_json(output / "results.json", as_json(results, experiment, rows))
    write_text(output / "results.csv", exports.to_csv(rows, digits=None))
    print(json.dumps(rows, indent=1) if options.json else text(results))
    _say(f"{output / 'results.json'} and results.csv hold the same")
    return 0


def steps(experiment: Experiment, model: str, results: Path) -> Iterator[Step]:
    """Yield the stages in the order in which they run, with the paths of the workflow."""
    (node,) = experiment.nodes
    of_model = f"{node.lineage}/seed{node.seed}"
    tokenizer = _files(results / "data/tokenizer", "tokenizer", "manifest.json")
    yield Step("tokenizer", specs.tokenizer(experiment), {}, tokenizer)
    inputs = {"tokenizer": tokenizer["manifest"]}
    weights = _files(results / "models" / of_model, "model", "manifest.json")
    yield Step("given", specs.given(experiment, model), inputs, weights)
    for name in experiment.sets:
        data = _files(results / "data" / name, "dataset", "manifest.json")
        yield Step("data", specs.data(experiment, name), inputs, data)
        folder = results / "evaluations" / of_model / name
        read = {"model": weights["manifest"], "data": data["manifest"], **inputs}
        answers = ("generations.jsonl", "answers.jsonl", "metrics.jsonl", "scores.json")
        made = _files(folder, *answers)
        yield Step("evaluate", specs.evaluate(experiment, *node, name), read, made)
        read = {"answers": made["answers"], **read}
        read_back = ("prompts.jsonl", "metrics.jsonl", "likelihoods.json")
        made = _files(folder / "likelihoods", *read_back)
        yield Step("likelihoods", specs.likelihoods(experiment, *node, name), read, made)


def _files(folder: Path, *names: str) -> dict[str, Path]:
    """Files and folders by their names without suffix, which those of inputs and outputs are."""
    return {name.partition(".")[0]: folder / name for name in names}


def _record(step: Step) -> Path:
    return list(step.outputs.values())[-1]


def _mark(step: Step) -> Path:
    """File that says what a finished stage was run with."""
    record = _record(step)
    return record.with_name(f".{record.name}.key")


def _key(step: Step) -> str:
    code = code_digest(MODULES[step.stage][1])
    inputs = {name: [path] for name, path in step.inputs.items()}
    return resume_key(Stage(spec=without_places(step.spec), code=code, inputs=inputs))


def _done(step: Step) -> bool:
    """Return whether a stage is finished, with the same settings, code and inputs."""
    mark = _mark(step)
    if not (_record(step).is_file() and mark.is_file() and mark.read_text() == _key(step)):
        return False
    if step.stage == "given":  # the same weights may lie elsewhere now
        relink(step.outputs["model"], step.spec["weights"])
    return True


def _run(step: Step, options: Namespace) -> int:
    """Run a stage as the workflow does, in a process of its own; return its exit status."""
    script, module = MODULES[step.stage]
    key, mark = _key(step), _mark(step)
    mark.unlink(missing_ok=True)
    words = [sys.executable, str(SCRIPTS / f"{script}.py"), "--spec", canonical_json(step.spec)]
    words += ["--code", code_digest(module), "--threads", str(options.threads)]
    if step.stage in RUNS_A_MODEL:
        words += ["--processes", str(options.processes), "--micro-batch", str(options.micro_batch)]
    for option, paths in (("--input", step.inputs), ("--output", step.outputs)):
        words += [word for name, path in paths.items() for word in (option, f"{name}={path}")]
    mark.parent.mkdir(parents=True, exist_ok=True)
    log = _record(step).with_name(f".{step.stage}.log")
    with open(log, "w", encoding="utf-8") as errors:
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        child = subprocess.Popen(words, stdout=STDERR, stderr=errors, env=env)
        before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        try:
            status = child.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    if status == 0:
        write_text(mark, key)
    else:
        _say(f"{step.stage} failed; its log is {log}")
    return status


def scores(results: Results) -> list[dict[str, Any]]:
    """List every measure on every set, with the interval and standard errors of those that have them."""
    found = table.of(results)
    return [
        {
            "set": name,
            "measure": measure.name,
            **{key: getattr(row, key) for key in ("value", "low", "high")},
            **{key: getattr(row, key) for key in ("se_prompts", "se_decoding_seeds", "n_prompts")},
            "n_decoding_seeds": len(results.spec["decoding_seeds"]),
            "better": measure.better,
        }
        for name in results.spec["sets"]
        for measure in measured(results)
        if (row := table.one(found, kind=SCORE, set=name, measure=measure.name))
    ]


def as_json(results: Results, experiment: Experiment, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores with what they are of: the model, its weights, and how it was asked."""
    ((name, settings),) = experiment.settings["models"].items()
    (model,) = results.models.values()
    return {
        "model": name,
        "folder": settings["weights"]["folder"],
        "parameters": model.parameters,
        "weights": model.weights,
        "template": experiment.settings["data"]["template"],
        "decoding": results.spec["decoding"],
        "decoding_seeds": results.spec["decoding_seeds"],
        "scores": rows,
    }


def text(results: Results) -> str:
    """The scores as a table for a terminal."""
    found, sets = table.of(results), results.spec["sets"]
    lines = [["", *(f"{name} ({_prompts(results, name)})" for name in sets)]]
    for measure in measured(results):
        cells = (table.one(found, kind=SCORE, set=name, measure=measure.name) for name in sets)
        lines.append([measure.title, *(cell.text() if cell else "–" for cell in cells)])
    seeds = ", ".join(map(str, results.spec["decoding_seeds"]))
    rows = aligned(lines, str.ljust)
    return "\n".join([*rows, f"With 95 % intervals over prompts; decoding seeds {seeds}."])


def _prompts(results: Results, name: str) -> str:
    return counted(len(results.evaluations[results.nodes[0], name].ids), "prompt")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
