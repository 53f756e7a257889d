"""Evaluate one model without an experiment file, by the workflow.

The command writes an experiment in which the model stands alone and is taken as it is, and runs that in its output
folder: what is finished is not run again, and what was cut off resumes.
"""

import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from takd.analysis import exports, table
from takd.analysis.folder import EVALUATED, read_folder
from takd.analysis.measures import measured
from takd.analysis.results import Results
from takd.analysis.table import SCORE
from takd.analysis.text import counted
from takd.commands.one_model import experiment_of
from takd.experiment import experiment as experiments
from takd.experiment.experiment import Experiment
from takd.experiment.schema import HOME
from takd.preflight.text_table import aligned
from takd.runtime.files import write_json, write_text
from takd.runtime.stage_lock import Lock

STDERR = 2  # the console, for what stages say: stdout is for the scores


def evaluate(options: Namespace) -> int:
    """Evaluate the model that the options name, print its scores, and write them.

    Raises:
        InputError: an option is wrong; or a file is missing or damaged.
    """
    settings = experiment_of(options)
    (model,) = settings["models"]
    output = (options.output or Path(f"results/evaluated-{model}")).absolute()
    file = experiments.file_of(output, EVALUATED)
    with Lock(output / "lock", _say):
        write_text(file, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        write_text(output / "config/config.yaml", f"experiment: {EVALUATED}\n")
        experiment = experiments.load(file, output)
        experiment.require_files()
        if status := _run(experiment, options):
            _say(f"Not finished; the same command goes on from what is in {output}.")
            return status
    results = read_folder(output)
    rows = scores(results)
    write_json(output / "results.json", as_json(results, experiment, rows))
    write_text(output / "results.csv", exports.to_csv(rows, digits=None))
    print(json.dumps(rows, indent=1) if options.json else text(results))
    _say(f"{output / 'results.json'} and results.csv hold the same")
    return 0


def _run(experiment: Experiment, options: Namespace) -> int:
    """Run the stages in the folder of the experiment; return Snakemake's exit status."""
    cores, processes = options.processes * options.threads, f"processes={options.processes}"
    stages = ("evaluate", "likelihoods")
    resources = [f"{stage}:{processes}" for stage in stages]
    words = [sys.executable, "-m", "snakemake", "scores", "--snakefile", str(HOME / "Snakefile")]
    words += ["--directory", str(experiment.root), "--cores", str(cores), "--rerun-incomplete"]
    words += ["--profile", "none", "--quiet", "progress", "rules", "host", "reason"]
    words += ["--nolock"]  # the lock here is let go after a crash
    words += ["--set-threads", *(f"{stage}={cores}" for stage in stages)]
    words += ["--set-resources", *resources, f"likelihoods:micro_batch={options.micro_batch}"]
    words += ["--config", f"experiment={experiment.name}"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(words, stdout=STDERR, env=env, process_group=0)
    # Snakemake alone would wait for its jobs, which save what they have when they are asked to end
    before = {
        number: signal.signal(number, lambda number, _: os.killpg(child.pid, number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
