"""Cost of the models: minutes of training, of precomputing teacher outputs and of evaluation; tokens, devices."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from takd.analysis.results import CachedOutput, Results, Row
from takd.experiment.labels import chain_text, methods_text
from takd.experiment.lineage import Node, prefixes, split, supervised, teacher_seed

TRAINING, CUMULATIVE = "training", "cumulative"
JUDGE = "evaluation, judge"
ANSWERS, LIKELIHOODS = "evaluation, answers", "evaluation, likelihoods"
EVALUATION = {ANSWERS: "answering", LIKELIHOODS: "reading"}
"""Stages of an evaluation that run models here, and how their numbers are called."""


class Run(NamedTuple):
    """One run of a stage, over all its restarts; a part of a teacher cache counts as one."""

    stage: str
    lineage: str
    """Of the model that is trained or evaluated, or of the teacher whose cache is computed."""
    seed: int
    end: Row
    """Closing line of its log."""
    set: str = ""
    steps: int | None = None
    skipped: int | None = None
    """Steps whose gradient was not finite."""

    @property
    def minutes(self) -> float:
        return float(self.end.get("seconds", 0.0)) / 60

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
        """Hours of all GPUs; on a CPU the measured time of all its threads, else wall time times processes."""
        if self.measured:
            return float(self.end["cpu_seconds"]) / 3600
        return float(self.end.get("seconds", 0.0)) / 3600 * int(self.end.get("processes", 1))


def runs(results: Results) -> Iterator[Run]:
    """Yield every run of a stage that the results hold, in the order of the stages."""
    for node, model in results.models.items():
        skipped = int(model.end.get("skipped", 0))
        steps = int(model.manifest["steps"])
        yield Run(TRAINING, *node, model.end, steps=steps, skipped=skipped)
    for each in sorted(results.teacher_cache, key=writing_stage):
        yield from (Run(writing_stage(each), *each.teacher, end) for end in each.ends)
    for stage in EVALUATION:
        for (node, name), evaluation in results.evaluations.items():
            end = evaluation.end if stage == ANSWERS else evaluation.likelihoods_end
            yield Run(stage, *node, end, name)


@dataclass(frozen=True)
class Cumulative:
    """Cost of one lineage with all that it needs: teachers, their caches and the initial SFT, by training seed.

    Attributes:
        hours: device hours, as `Run.hours`.
        tokens: tokens trained on and sampled. Tokens that a teacher only scores are not counted.
        trainings: trainings needed for one seed.
    """

    lineage: str
    hours: dict[int, float]
    tokens: dict[int, int]
    trainings: int


def needed(results: Results, lineage: str, seed: int) -> list[Node]:
    """List the trainings that a model depends on, itself included, each once.

    These are the trainings of its chain (the head is trained with the first seed, for all seeds) and, where a training
    started from fine-tuned weights, the supervised training that made them. Several models may share such a start.
    """
    found: dict[Node, None] = {}
    for prefix in prefixes(lineage):
        own = seed if prefix == lineage else teacher_seed(prefix, seed, results.spec["seeds"])
        node = Node(prefix, own)
        if "init" in results.models[node].manifest["inputs"]:
            found[Node(supervised(split(prefix)[-1].model), own)] = None
        found[node] = None
    return list(found)


def caches(results: Results, nodes: Sequence[Node]) -> list[CachedOutput]:
    """List the teacher caches that these trainings read (by their manifests), each once."""
    inputs = {
        digest
        for node in nodes
        for digests in results.models[node].manifest["inputs"].values()
        for digest in digests
    }
    return [written for written in results.teacher_cache if written.digest in inputs]


def cumulative(results: Results) -> Iterator[Cumulative]:
    """Yield the cumulative cost of every lineage."""
    for lineage in results.lineages:
        hours, tokens, trainings = {}, {}, 0
        for seed in results.seeds(lineage):
            nodes = needed(results, lineage, seed)
            trainings = len(nodes)
            read = caches(results, nodes)
            done = [Run(TRAINING, *node, results.models[node].end) for node in nodes]
            ahead = [(each, Run("", *each.teacher, end)) for each in read for end in each.ends]
            done += [run for each, run in ahead if each.drawn]
            tokens[seed] = sum(run.tokens for run in done)
            done += [run for each, run in ahead if not each.drawn]
            hours[seed] = sum(run.hours for run in done)
        yield Cumulative(lineage, hours, tokens, trainings)


def writing_stage(written: CachedOutput) -> str:
    """Name the stage that precomputed teacher generations or outputs."""
    return "teacher, answers" if written.drawn else "teacher, outputs"


@dataclass(frozen=True)
class Writes:
    """Cost of one lineage's generations or outputs computed ahead for its students, over its training seeds.

    Attributes:
        runs: number of jobs; each part counts as one.
    """

    stage: str
    seeds: int
    runs: int
    minutes: float
    tokens: int
    device: str


@dataclass(frozen=True)
class Cost:
    """Cost of all runs of one lineage, over its training seeds.

    Attributes:
        skipped: steps skipped because the gradient was not finite.
        judged: answers that the experiment's judge rated; the endpoint's time and tokens are not known here.
        writes: by stage; empty where no student reads precomputed generations or outputs.
    """

    lineage: str
    method: str
    seeds: int
    training_minutes: float
    answering_minutes: float
    reading_minutes: float
    steps: int
    skipped: int
    tokens: int
    answering_tokens: int
    reading_tokens: int
    judged: int
    device: str
    writes: Sequence[Writes]

    @property
    def writing_minutes(self) -> float:
        """Minutes of computing generations and outputs ahead for its students."""
        return sum(each.minutes for each in self.writes)

    @property
    def writing_tokens(self) -> int:
        return sum(each.tokens for each in self.writes)

    @property
    def evaluation_minutes(self) -> float:
        """Minutes of answering the prompts and of computing likelihoods."""
        return self.answering_minutes + self.reading_minutes

    @property
    def evaluation_tokens(self) -> int:
        return self.answering_tokens + self.reading_tokens

    @property
    def chain(self) -> str:
        return chain_text(self.lineage)

    @property
    def methods(self) -> str:
        return methods_text(self.lineage)

    @property
    def speed(self) -> float | None:
        """Training tokens per second."""
        return self.tokens / self.training_minutes / 60 if self.training_minutes else None


@dataclass(frozen=True)
class StageCost:
    """Cost of all runs of one stage."""

    stage: str
    runs: int
    minutes: float | None
    """None where no time is recorded."""
    tokens: int | None


def by_lineage(results: Results) -> list[Cost]:
    """Compute the cost of each lineage, in the order of training."""
    costs = []
    for lineage in results.lineages:
        models = results.of(lineage)
        scored = [e for (node, _), e in results.evaluations.items() if node.lineage == lineage]
        costs.append(
            Cost(
                lineage=lineage,
                method=split(lineage)[-1].method,
                seeds=len(models),
                training_minutes=sum(model.minutes for model in models),
                answering_minutes=_minutes(each.end for each in scored),
                reading_minutes=_minutes(each.likelihoods_end for each in scored),
                steps=sum(model.manifest["steps"] for model in models),
                skipped=sum(int(model.end.get("skipped", 0)) for model in models),
                tokens=sum(int(model.end.get("tokens", 0)) for model in models),
                answering_tokens=_tokens(each.end for each in scored),
                reading_tokens=_tokens(each.likelihoods_end for each in scored),
                judged=sum(
                    each.judge["n"] + each.judge["unreadable"] for each in scored if each.judge
                ),
                device=_devices(model.end for model in models),
                writes=_writes([w for w in results.teacher_cache if w.teacher.lineage == lineage]),
            )
        )
    return costs


def _writes(written: Sequence[CachedOutput]) -> list[Writes]:
    """Cost of one lineage's precomputed generations and outputs, by stage."""
    by_stage: dict[str, list[CachedOutput]] = {}
    for each in written:
        by_stage.setdefault(writing_stage(each), []).append(each)
    return [
        Writes(
            stage,
            len({each.teacher for each in found}),
            sum(len(each.ends) for each in found),
            sum(each.minutes for each in found),
            sum(each.tokens for each in found),
            _devices(end for each in found for end in each.ends),
        )
        for stage, found in sorted(by_stage.items())
    ]


def _devices(ends: Iterable[Row]) -> str:
    return ", ".join(sorted({device_text(end) for end in ends}))


def _minutes(ends: Iterable[Row]) -> float:
    """Wall time of stages in minutes, from the closing lines of their logs."""
    return sum(float(end.get("seconds", 0.0)) for end in ends) / 60


def _tokens(ends: Iterable[Row]) -> int:
    return sum(int(end.get("tokens", 0)) for end in ends)


def by_stage(costs: list[Cost], sets: int) -> list[StageCost]:
    """Compute the cost of training by method, of precomputed teacher outputs, and of the evaluation stages."""
    stages = []
    for method in dict.fromkeys(cost.method for cost in costs):
        of_method = [cost for cost in costs if cost.method == method]
        stages.append(
            StageCost(
                f"training, {method}",
                sum(cost.seeds for cost in of_method),
                sum(cost.training_minutes for cost in of_method),
                sum(cost.tokens for cost in of_method),
            )
        )
    writes = [each for cost in costs for each in cost.writes]
    for stage in sorted({each.stage for each in writes}):
        found = [each for each in writes if each.stage == stage]
        stages.append(
            StageCost(
                stage,
                sum(each.runs for each in found),
                sum(each.minutes for each in found),
                sum(each.tokens for each in found),
            )
        )
    runs = sets * sum(cost.seeds for cost in costs)
    for stage, kind in EVALUATION.items():
        minutes = sum(getattr(cost, f"{kind}_minutes") for cost in costs)
        stages.append(
            StageCost(stage, runs, minutes, sum(getattr(cost, f"{kind}_tokens") for cost in costs))
        )
    if any(cost.judged for cost in costs):
        stages.append(StageCost("evaluation, judge", runs, None, None))
    return stages


def device_text(end: dict[str, Any]) -> str:
    """Format the device of a run: `2 × cuda, fp16`."""
    count = end.get("processes", 1)
    device = str(end.get("device", "unknown"))
    many = f"{count} × {device}" if count > 1 else device
    return f"{many}, {end['precision']}" if "precision" in end else many


def lines(costs: Sequence[Cost]) -> list[Row]:
    """Build the rows of the table, one per lineage and stage; without precomputed outputs there is no row for them."""
    found: list[Row] = []
    for cost in costs:
        trained = {"steps": cost.steps, "skipped": cost.skipped, "device": cost.device}
        found.append(_line(cost, "training", cost.training_minutes, cost.tokens) | trained)
        for each in cost.writes:
            of_it = {"training_seeds": each.seeds, "device": each.device}
            found.append(_line(cost, each.stage, each.minutes, each.tokens) | of_it)
        for stage, kind in EVALUATION.items():
            minutes, tokens = (getattr(cost, f"{kind}_{what}") for what in ("minutes", "tokens"))
            found.append(_line(cost, stage, minutes, tokens))
    return found


def _line(cost: Cost, stage: str, minutes: float, tokens: int) -> Row:
    return {
        "lineage": cost.lineage,
        "chain": cost.chain,
        "methods": cost.methods,
        "stage": stage,
        "training_seeds": cost.seeds,
        "minutes": minutes,
        "tokens": tokens,
        "steps": None,
        "skipped": None,
        "device": None,
    }
