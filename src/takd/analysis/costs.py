"""Costs of the runs of stages, and cumulative costs: those of a model with all that it needs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from takd.analysis.result_files import wall_minutes
from takd.analysis.results import CachedOutput, JsonRow, Results
from takd.experiment.lineage import Node, is_given, prefixes, split, supervised, teacher_seed
from takd.runtime.records import SPENT

TRAINING, CUMULATIVE = "training", "cumulative"
ANSWERS, LIKELIHOODS = "evaluation, answers", "evaluation, likelihoods"
JUDGE = "evaluation, judge"
EVALUATION = (ANSWERS, LIKELIHOODS)
"""Stages of an evaluation that run models here."""


class StageRun(NamedTuple):
    """One run of a stage, over all its restarts; a part of a teacher cache counts as one."""

    stage: str
    lineage: str
    """Of the model that is trained or evaluated, or of the teacher whose cache is computed."""
    seed: int
    end: JsonRow
    """Closing line of its log."""
    set: str = ""
    steps: int | None = None
    skipped: int | None = None
    """Steps whose gradient was not finite."""
    flops: int | None = None
    """Of a training without its dev evaluations, or of a teacher cache; None where they are not counted."""

    @property
    def minutes(self) -> float:
        return wall_minutes(self.end)

    @property
    def tokens(self) -> int:
        return int(self.end.get("tokens", 0))

    @property
    def device(self) -> str:
        return device_text(self.end)

    @property
    def on_cpu(self) -> bool:
        return bool(self.end.get("device", "cpu") == "cpu")

    @property
    def measured(self) -> bool:
        """Whether the hours are measured CPU time."""
        return self.on_cpu and "cpu_seconds" in self.end

    @property
    def hours(self) -> float:
        """Hours of all GPUs; on a CPU the CPU time of the first process, else its wall time, times processes."""
        seconds = self.end["cpu_seconds"] if self.measured else self.end.get("seconds", 0.0)
        return float(seconds) / 3600 * int(self.end.get("processes", 1))


def runs(results: Results) -> Iterator[StageRun]:
    """Yield every run of a stage that the results hold, in the order of the stages."""
    for node, model in results.trained_here.items():
        skipped = int(model.end.get("skipped", 0))
        steps = int(model.manifest["steps"])
        yield StageRun(TRAINING, *node, model.end, "", steps, skipped, model.end.get("flops"))
    for each in sorted(results.teacher_cache, key=cache_stage):
        for place, end in enumerate(each.ends):  # what all parts have spent is known together
            flops = each.flops if place == 0 else None
            yield StageRun(cache_stage(each), *each.teacher, end, flops=flops)
    for stage in EVALUATION:
        for (node, name), evaluation in results.evaluations.items():
            end = evaluation.end if stage == ANSWERS else evaluation.likelihoods_end
            yield StageRun(stage, *node, end, name)


@dataclass(frozen=True)
class Cumulative:
    """Cost of one lineage with all that it needs: teachers, their caches and the initial SFT, by training seed."""

    lineage: str
    hours: dict[int, float]
    """Device hours, as `StageRun.hours`."""
    tokens: dict[int, int]
    """Tokens trained on and sampled, not those that a teacher only scores."""
    trainings: int
    """Trainings needed for one seed."""
    flops: dict[int, int]
    """Of trainings without dev evaluations, and of caches; empty where an earlier version did not count them."""


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


def cumulative(results: Results) -> Iterator[Cumulative]:
    """Yield the cumulative cost of every lineage."""
    for lineage in results.lineages:
        hours, tokens, nodes = {}, {}, list[Node]()
        for seed in results.seeds(lineage):
            nodes = needed(results, lineage, seed)
            # tokens that a teacher only scores do not count: those of outputs come last
            read = sorted(caches(results, nodes), key=lambda each: not each.drawn)
            ahead = [
                (each.drawn, StageRun("", *each.teacher, end)) for each in read for end in each.ends
            ]
            done = [(True, StageRun(TRAINING, *node, results.models[node].end)) for node in nodes]
            tokens[seed] = sum(run.tokens for drawn, run in done + ahead if drawn)
            hours[seed] = sum(run.hours for _, run in done + ahead)
        yield Cumulative(lineage, hours, tokens, len(nodes), spent(results, lineage))


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
