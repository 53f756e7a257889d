"""Speed of a card: measured from existing runs, else estimated from its data sheet.

Runs are timed by the closing line of their metrics.jsonl. Their FLOPs are counted as in a plan, scaled to the tokens
that were really read and drawn.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from takd.experiment import lineage
from takd.preflight import flops, shapes
from takd.preflight.flops import Rows, Work
from takd.preflight.gpus import Card, find_card, known
from takd.preflight.memory import BYTES, Resources
from takd.runtime.errors import InputError

# Assumptions, for want of measured runs: shares of a card's peaks in operations and in bytes a second, and the time in
# which the passes of one token through one block are started from Python, which small models wait for.
PASSES_SHARE = 0.30
READING_SHARE = 0.50
BLOCK_SECONDS = 0.5e-3
# share of a core's peak while decoding: the demo's models reached 3 to 16 GFLOP/s, those of dolly-tiny 4 to 7
CPU_DECODING_SHARE = 0.06
# ratio of sizes beyond which the speed of one model does not predict that of another
SIMILAR = 4.0


@dataclass(frozen=True)
class Measured:
    """Measured cost of one run.

    Attributes:
        kind: the method, "evaluate" or "likelihoods".
        parameters: of the model that was trained or run.
        seconds: summed over its processes.
    """

    card: str
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
    planned: Work, kind: str, parameters: int, card: Card, precision: str, runs: Iterable[Measured]
) -> Estimate:
    """Estimate the time of a job from runs of its kind on this card, nearest in model size, else from assumptions."""

    def apart(run: Measured) -> float:
        return max(run.parameters / parameters, parameters / run.parameters)

    alike = [run for run in runs if (run.card, run.kind) == (card.name, kind)]
    nearest = min(map(apart, alike), default=SIMILAR + 1)
    alike = [run for run in alike if apart(run) == nearest]
    if nearest <= SIMILAR:
        rate = sum(run.operations for run in alike) / sum(run.seconds for run in alike)
        many = f"{len(alike)} run{'s' * (len(alike) > 1)}"
        source = (
            f"{kind} of {parameters:.3g} parameters: {rate / 1e9:.3g} GFLOP/s a process, measured on"
            f" {card.name} by {many} of {alike[0].parameters:.3g} parameters"
        )
        return Estimate(planned.operations / rate, source)
    return Estimate(assumed(planned, card, precision), "assumed")


def assumed(planned: Work, card: Card, precision: str) -> float:
    """Seconds by the data sheet: passes over whole texts by FLOPs, decoding by the slowest of three limits."""
    peak = card.peak(precision)
    passes = planned.passes / (PASSES_SHARE * peak)
    if card.on_cpu:
        return passes + planned.decoding / (CPU_DECODING_SHARE * peak)
    return passes + max(
        planned.decoding / (PASSES_SHARE * peak),
        planned.read / (READING_SHARE * 1e9 * card.bandwidth),
        planned.block_steps * BLOCK_SECONDS,
    )


def measured(results: Path) -> list[Measured]:
    """List all finished trainings and evaluations below a folder `results`, of any experiment."""
    found: list[Measured] = []
    for manifest in sorted(results.glob("*/models/*/seed*/manifest.json")):
        found += _training(manifest)
    for scores in sorted(results.glob("*/evaluations/*/seed*/*/scores.json")):
        found += _evaluation(scores)
    for read in sorted(results.glob("*/evaluations/*/seed*/*/likelihoods/likelihoods.json")):
        found += _likelihoods(read)
    return found


def rows_of(manifest: Path) -> Rows | None:
    """Rows of a prepared split; None if it is missing or from another version of this workflow."""
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        counts, tokens = found["counts"], found["tokens"]
        if "text" in tokens:
            return Rows(counts["blocks"], 1, tokens["text"] / counts["blocks"] - 1)
        kept = counts["kept"]
        return Rows(kept, tokens["prompt"] / kept, tokens["response"] / kept)
    except (OSError, ValueError, KeyError, ZeroDivisionError):
        return None


def _training(manifest: Path) -> Iterator[Measured]:
    """Yield a finished training, unless an input is missing or from another version."""
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        spec, journal = found["spec"], _journal(manifest.with_name("metrics.jsonl"))
        end = journal[-1]
        name, _, _ = spec["lineage"].rpartition("__")
        data = manifest.parents[3] / "data"
        train, dev = rows_of(data / "train/manifest.json"), rows_of(data / "dev/manifest.json")
        teacher = _model(manifest.parents[2] / name, spec["seed"]) if name else None
        student = shapes.config_of(manifest.parent / "model")
        if train is None or dev is None or end["kind"] != "end":
            return
        given = Resources(processes=end["processes"])
        blocks = rows_of(data / "corpus/manifest.json")
        length = round(blocks.whole) if blocks else 0
        # responses drawn on dev; those before the first step are not representative
        drawn = [line["response_length"] for line in journal if line["kind"] == "dev"][1:]
        longest = spec["max_length"] - spec["max_prompt_length"]
        mean = min(sum(drawn) / len(drawn), longest) if drawn else None
        planned = flops.training(spec, student, teacher, train, dev, given, length, 4, mean)
    except (OSError, ValueError, KeyError, IndexError):
        return
    if planned and planned.tokens and end["seconds"] and (card := _card(end["device"])):
        yield Measured(
            card,
            spec["method"],
            student.parameters,
            planned.operations * end["tokens"] / planned.tokens,
            end["seconds"] * end["processes"],
        )


def _evaluation(scores: Path) -> Iterator[Measured]:
    """Yield a finished evaluation, in the same way as `_training`."""
    folder = scores.parent
    try:
        found = json.loads(scores.read_text(encoding="utf-8"))
        end = _journal(folder / "metrics.jsonl")[-1]
        rows = rows_of(folder.parents[3] / "data" / folder.name / "manifest.json")
        model = _model(folder.parents[3] / "models" / found["lineage"], found["seed"])
        if rows is None or not end["tokens"] or not end["seconds"]:
            return
        seeds = len(found["decoding_seeds"])
        response = end["tokens"] / found["n"] / seeds
        own = Rows(found["n"], rows.prompt, response)
        planned = flops.evaluation(model, own, seeds, Resources(), BYTES["fp32"])
    except (OSError, ValueError, KeyError, IndexError, InputError):
        return
    if planned and (card := _card(end["device"])):
        seconds = end["seconds"] * end["processes"]
        yield Measured(card, "evaluate", model.parameters, planned.operations, seconds)


def _likelihoods(path: Path) -> Iterator[Measured]:
    """Yield a finished likelihood stage, scaled to the tokens that its log counted."""
    results = path.parents[5]
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        end = _journal(path.parent / "metrics.jsonl")[-1]
        rows = rows_of(results / "data" / path.parents[1].name / "manifest.json")
        model = _model(results / "models" / found["lineage"], found["seed"])
        names = dict.fromkeys(map(tuple, found["teachers"].values()))
        teachers = [_model(results / "models" / name, seed) for name, seed in names]
        if rows is None or not end["tokens"] or not end["seconds"]:
            return
        own = replace(rows, count=found["n"])
        planned = flops.likelihoods(model, teachers, own, len(found["decoding_seeds"]))
    except (OSError, ValueError, KeyError, IndexError, InputError):
        return
    if planned and planned.tokens and (card := _card(end["device"])):
        operations = planned.operations * end["tokens"] / planned.tokens
        seconds = end["seconds"] * end["processes"]
        yield Measured(card, "likelihoods", model.parameters, operations, seconds)


def _card(device: str) -> str | None:
    """Name of the card in the table; None if it is not there."""
    return find_card(device).name if known(device) else None


def _model(folder: Path, seed: int) -> shapes.Shape:
    """Shape of a trained model; the head of a chain exists with one seed only."""
    place = folder / f"seed{seed}" / "model"
    if not place.exists() and lineage.teacher_of(folder.name) is None:
        place = next(folder.glob("seed*/model"), place)
    return shapes.config_of(place)


def _journal(path: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
