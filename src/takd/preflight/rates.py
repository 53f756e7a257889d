"""Speed of a GPU or CPU: measured from existing runs, else estimated from its peak.

Runs are timed by the closing line of their metrics.jsonl, on a CPU by their CPU time. Their FLOPs are counted as in a
plan, scaled to the tokens that were really read and drawn.
"""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from takd.experiment import lineage
from takd.methods.registry import METHODS
from takd.models import shapes
from takd.models.shapes import Shape
from takd.preflight import flops
from takd.preflight.flops import Conditions, Rows, Work
from takd.preflight.gpus import Gpu, lookup
from takd.preflight.memory import Resources
from takd.preflight.tensors import BYTES
from takd.runtime.files import read_json

# Assumptions, for want of measured runs: shares of a GPU's peaks in operations and in bytes a second, and the time in
# which the dozen kernels of one token's passes through one block run in a captured step, which small models wait for.
PASSES_SHARE = 0.30
READING_SHARE = 0.50
BLOCK_SECONDS = 0.05e-3
# On a CPU: the share of its largest matrix products' rate that models reach, the seconds of a core that an optimizer
# step takes beside its products, and those of a drawn token. Chosen for the runs in docs/preflight.md.
CPU_SHARE = 0.5
STEP_SECONDS = 0.012
TOKEN_SECONDS = 100e-6
# seconds until a stage computes (imports, weights; on a GPU also its queue's polling), and those of a stage that
# computes nothing
START = {"cpu": 4.0, "cuda": 30.0}
PREPARING = 2.0
# ratio of sizes beyond which the speed of one model does not predict that of another
SIMILAR = 4.0
# an input is missing, or from another version of this workflow
UNREADABLE = (OSError, ValueError, LookupError, ZeroDivisionError)


@dataclass(frozen=True)
class Measured:
    """Measured cost of one run.

    Attributes:
        kind: the method, "evaluate" or "likelihoods".
        parameters: of the model that was trained or run.
        seconds: summed over its processes; of a core on a CPU.
    """

    gpu: str
    kind: str
    parameters: int
    operations: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """Seconds of a job, summed over its GPUs, and the source of the estimate."""

    seconds: float
    source: str


def estimate(
    planned: Work, kind: str, parameters: int, gpu: Gpu, precision: str, runs: Iterable[Measured]
) -> Estimate:
    """Estimate the time of a job from runs of its kind on this GPU, nearest in model size, else from assumptions."""

    def apart(run: Measured) -> float:
        return max(run.parameters / parameters, parameters / run.parameters)

    alike = [run for run in runs if (run.gpu, run.kind) == (gpu.name, kind)]
    nearest = min(map(apart, alike), default=SIMILAR + 1)
    if nearest > SIMILAR:
        return Estimate(assumed(planned, gpu, precision), "assumed")
    alike = [run for run in alike if apart(run) == nearest]
    rate = sum(run.operations for run in alike) / sum(run.seconds for run in alike)
    many = f"{len(alike)} run{'s' * (len(alike) > 1)}"
    source = (
        f"{kind} of {parameters:.3g} parameters: {rate / 1e9:.3g} GFLOP/s a process, measured on"
        f" {gpu.name} by {many} of {alike[0].parameters:.3g} parameters"
    )
    return Estimate(planned.operations / rate, source)


def assumed(planned: Work, gpu: Gpu, precision: str) -> float:
    """Seconds by the peak: passes over whole texts by FLOPs, decoding on a GPU by the slowest of three limits."""
    peak = gpu.peak(precision)
    if gpu.on_cpu:
        beside = STEP_SECONDS * planned.steps + TOKEN_SECONDS * planned.drawn
        return planned.operations / (CPU_SHARE * peak) + beside
    return planned.passes / (PASSES_SHARE * peak) + max(
        planned.decoding / (PASSES_SHARE * peak),
        planned.read / (READING_SHARE * 1e9 * gpu.bandwidth),
        planned.block_steps * BLOCK_SECONDS,
    )


def measured(results: Path) -> list[Measured]:
    """List all finished trainings and evaluations below a folder `results`, of any experiment."""
    evaluations, found = "*/evaluations/*/seed*/*", []
    for place, read in (
        ("*/models/*/seed*/manifest.json", _training),
        (f"{evaluations}/scores.json", _evaluation),
        (f"{evaluations}/likelihoods/likelihoods.json", _likelihoods),
    ):
        for path in sorted(results.glob(place)):
            with contextlib.suppress(*UNREADABLE):
                found.append(read(path))
    return [run for run in found if run is not None]


def rows_of(manifest: Path, read: int | None = None) -> Rows | None:
    """Rows of a prepared split; None if it is missing or from another version of this workflow.

    Args:
        read: rows that its source has today; where it had others, as many in proportion are counted.
    """
    with contextlib.suppress(*UNREADABLE):
        return _rows(manifest.parent, read)
    return None


def _rows(split: Path, read: int | None = None) -> Rows:
    found = read_json(split / "manifest.json")
    counts, tokens = found["counts"], found["tokens"]
    if "text" in tokens:
        return Rows(counts["blocks"], 1, tokens["text"] / counts["blocks"] - 1)
    kept = counts["kept"]
    today = kept if read is None else round(kept * read / counts["rows"])
    return Rows(today, tokens["prompt"] / kept, tokens["response"] / kept)


def _training(manifest: Path) -> Measured | None:
    record, journal = read_json(manifest), _journal(manifest.parent)
    spec = record["spec"]
    spec["settings"]["steps"] = record["steps"]  # none in the settings under a budget
    data, method = manifest.parents[3] / "data", spec["method"]
    above, _, _ = spec["lineage"].rpartition("__")
    teacher = None
    if above and METHODS[method].asks_teacher(spec["settings"]):
        teacher = _model(manifest.parents[2] / above, spec["seed"])
    student = shapes.config_of(manifest.parent / "model")
    if journal[-1]["kind"] != "end":
        return None
    given = Resources(processes=journal[-1]["processes"])
    blocks = rows_of(data / "corpus/manifest.json")
    length = round(blocks.whole) if blocks else 0
    # responses drawn on dev; those before the first step are not representative
    drawn = [line["response_length"] for line in journal if line["kind"] == "dev"][1:]
    longest = spec["max_length"] - spec["max_prompt_length"]
    mean = min(sum(drawn) / len(drawn), longest) if drawn else None
    conditions = Conditions(given, BYTES["fp32"], drawn=mean, block_length=length)
    rows = _rows(data / "train"), _rows(data / "dev")
    planned = flops.training(spec, student, teacher, *rows, conditions)
    return _scaled(method, student, planned, journal[-1])


def _evaluation(scores: Path) -> Measured | None:
    found, end = read_json(scores), _journal(scores.parent)[-1]
    experiment, seeds = scores.parents[4], len(found["decoding_seeds"])
    model = _model(experiment / "models" / found["lineage"], found["seed"])
    rows = _rows(experiment / "data" / scores.parent.name)
    own = Rows(found["n"], rows.prompt, end["tokens"] / found["n"] / seeds)
    planned = flops.evaluation(model, own, seeds, Conditions(number=BYTES["fp32"]))
    return _scaled("evaluate", model, planned, end)


def _likelihoods(path: Path) -> Measured | None:
    found, end, experiment = read_json(path), _journal(path.parent)[-1], path.parents[5]
    models = experiment / "models"
    model = _model(models / found["lineage"], found["seed"])
    names = dict.fromkeys(map(tuple, found["teachers"].values()))
    teachers = [_model(models / name, seed) for name, seed in names]
    own = replace(_rows(experiment / "data" / path.parents[1].name), count=found["n"])
    planned = flops.likelihoods(model, teachers, own, len(found["decoding_seeds"]))
    return _scaled("likelihoods", model, planned, end)


def _scaled(kind: str, model: Shape, planned: Work | None, end: Any) -> Measured | None:
    """Scale a run's planned computation to the tokens and seconds in the last line of its log."""
    gpu = lookup(end["device"])
    if not (planned and planned.tokens and end["tokens"] and end["seconds"] and gpu):
        return None
    operations = planned.operations * end["tokens"] / planned.tokens
    # other processes on a CPU make the wall time longer, not the CPU time
    seconds = end.get("cpu_seconds", end["seconds"]) if gpu.on_cpu else end["seconds"]
    return Measured(gpu.name, kind, model.parameters, operations, seconds * end["processes"])


def _model(folder: Path, seed: int) -> Shape:
    """Shape of a trained model; the head of a chain exists with one seed only."""
    place = folder / f"seed{seed}" / "model"
    if not place.exists() and lineage.teacher_of(folder.name) is None:
        place = next(folder.glob("seed*/model"), place)
    return shapes.config_of(place)


def _journal(folder: Path) -> list[Any]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
