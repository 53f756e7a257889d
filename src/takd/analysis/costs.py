"""Costs of the runs of stages, and cumulative costs: those of a model with all that it needs."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from takd.analysis.result_files import wall_minutes
from takd.analysis.results import CachedOutput, JsonRow, Results
from takd.experiment.lineage import Node, is_given, prefixes, split, supervised, teacher_seed
from takd.runtime.records import SPENT

TRAINING, CUMULATIVE = "training", "cumulative"
ANSWERS, LIKELIHOODS = "evaluation, answers", "evaluation, likelihoods"
JUDGE = "evaluation, judge"
EVALUATION = (ANSWERS, LIKELIHOODS)
"""Stages of an evaluation that run models here."""


def of_log(end: JsonRow) -> dict[str, Any]:
    """Return what a run has cost, over all its restarts, by the closing line of its log.

    Hours are those of all GPUs; on a CPU the CPU time of the first process, else its wall time, times processes.
    """
    on_cpu = end.get("device", "cpu") == "cpu"
    measured = on_cpu and "cpu_seconds" in end
    seconds = float(end["cpu_seconds"] if measured else end.get("seconds", 0.0))
    return {
        "minutes": wall_minutes(end),
        "hours": seconds / 3600 * int(end.get("processes", 1)),
        "tokens": int(end.get("tokens", 0)),
        "device": device_text(end),
        "on_cpu": on_cpu,
        "measured": measured,
        "end": end,
    }


def runs(results: Results) -> pd.DataFrame:
    """List every run of a stage, one a row, in the order of the stages; a part of a teacher cache counts as one.

    Columns are those of `of_log` and: `lineage` and `seed` of the model that is trained or evaluated, or of the teacher
    whose cache is computed; `set`; and, missing where they are not counted, `steps`, `skipped` (steps whose gradient
    was not finite) and `flops` (of a training without its dev evaluations, or of a teacher cache).
    """
    found: list[dict[str, Any]] = []

    def add(stage: str, node: Node, end: JsonRow, **more: Any) -> None:
        blank = {"set": "", "steps": None, "skipped": None, "flops": None}
        found.append({"stage": stage, **node._asdict(), **blank, **of_log(end), **more})

    for node, model in results.trained_here.items():
        steps, skipped = int(model.manifest["steps"]), int(model.end.get("skipped", 0))
        flops = model.end.get("flops")
        add(TRAINING, node, model.end, steps=steps, skipped=skipped, flops=flops)
    for each in sorted(results.teacher_cache, key=cache_stage):
        for place, end in enumerate(each.ends):  # what all parts have spent is known together
            add(cache_stage(each), each.teacher, end, flops=None if place else each.flops)
    for stage in EVALUATION:
        for (node, name), evaluation in results.evaluations.items():
            end = evaluation.end if stage == ANSWERS else evaluation.likelihoods_end
            add(stage, node, end, set=name)
    counts = dict.fromkeys(("tokens", "steps", "skipped", "flops"), "Int64")
    # as objects first: FLOPs beside missing ones would become floats
    return pd.DataFrame(found, dtype=object).astype({"minutes": float, "hours": float, **counts})


def needed(results: Results, lineage: str, seed: int) -> list[Node]:
    """List the trainings that a model depends on, itself included, each once.

    These are the trainings of its chain (the head is trained with the first seed, for all seeds) and, where a training
    started from fine-tuned weights, the supervised training that made them. Several models may share such a start.
    What is taken as it is costs nothing here.
    """
    found: dict[Node, None] = {}
    for prefix in prefixes(lineage):
        own = seed
        if prefix != lineage:
            own = teacher_seed(prefix, seed, results.spec["seeds"], lineage)
        node = Node(prefix, own)
        if "init" in results.models[node].manifest["inputs"]:
            found[Node(supervised(split(prefix)[-1].model), own)] = None
        found[node] = None
    return [node for node in found if node in results.trained_here]


def caches(results: Results, nodes: Sequence[Node]) -> list[CachedOutput]:
    """List the teacher caches that these trainings read (by their manifests), each once."""
    inputs = [results.models[node].manifest["inputs"].values() for node in nodes]
    digests = {digest for of_node in inputs for found in of_node for digest in found}
    return [written for written in results.teacher_cache if written.digest in digests]


def cumulative(results: Results) -> dict[str, dict[str, dict[int, float]]]:
    """Return the cost of each lineage with all that it needs, by measure and training seed.

    That is with teachers, their caches and the initial SFT. `hours` are those of devices, as in `of_log`; `tokens`
    those trained on and sampled, not those that a teacher only scores; `flops` those of trainings without dev
    evaluations and of caches, empty where an earlier version did not count them.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    for lineage in results.lineages:
        cost = found[lineage] = {"hours": {}, "tokens": {}, "trainings": {}}
        for seed in results.seeds(lineage):
            nodes = needed(results, lineage, seed)
            # tokens that a teacher only scores do not count: those of outputs come last
            read = sorted(caches(results, nodes), key=lambda each: not each.drawn)
            ahead = [(each.drawn, of_log(end)) for each in read for end in each.ends]
            done = [(True, of_log(results.models[node].end)) for node in nodes]
            cost["tokens"][seed] = sum(run["tokens"] for drawn, run in done + ahead if drawn)
            cost["hours"][seed] = sum(run["hours"] for _, run in done + ahead)
            cost["trainings"][seed] = len(nodes)
        cost["flops"] = dict(spent(results, lineage))
    return found


def spent(results: Results, lineage: str) -> dict[int, int]:
    """Return the FLOPs of a model with all that it needs, by training seed; empty where they were not counted."""
    found = {model.node.seed: model.manifest.get(SPENT) for model in results.of(lineage)}
    if is_given(lineage):
        return dict.fromkeys(found, 0)
    known = {seed: sum(parts.values()) for seed, parts in found.items() if parts is not None}
    return known if len(known) == len(found) else {}


def budgets(results: Results) -> dict[int, float]:
    """Return what each chain of an experiment of equal cost may spend, by training seed; empty if it is none."""
    given = results.spec.get("equal_cost")
    if given is None:
        return {}
    seeds: list[int] = results.spec["seeds"]
    if given["reference"] is None:
        return dict.fromkeys(seeds, given["flops"])
    whole = spent(results, given["reference"])
    return {seed: whole.get(seed, whole[min(whole)]) for seed in seeds}


def unit(results: Results) -> str:
    """Name the unit of cost: `GPU hours`, or `CPU hours` if no training and no teacher cache used a GPU."""
    ends = [model.end for model in results.trained_here.values()]
    ends += [end for written in results.teacher_cache for end in written.ends]
    cpu = {end.get("device", "cpu") == "cpu" for end in ends}
    return {(True,): "CPU hours", (False,): "GPU hours"}.get(tuple(cpu), "hours of CPU or GPU")


def cache_stage(cached: CachedOutput) -> str:
    """Name the stage that computed a teacher cache."""
    return "teacher, answers" if cached.drawn else "teacher, outputs"


def device_text(end: dict[str, Any]) -> str:
    """Format the device of a run: `2 × cuda, fp16`."""
    count = end.get("processes", 1)
    device = str(end.get("device", "unknown"))
    many = f"{count} × {device}" if count > 1 else device
    return f"{many}, {end['precision']}" if "precision" in end else many
