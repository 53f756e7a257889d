"""Resource needs of an experiment, before anything is submitted: jobs, tokens, FLOPs, hours, memory, disk.

python -m takd plan --experiment NAME --profile profiles/slurm
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from takd.experiment import lineage, specs
from takd.experiment.experiment import Experiment
from takd.preflight import disk, flops, memory, rates, shapes
from takd.preflight.disk import CachedOutput
from takd.preflight.flops import Rows, Work
from takd.preflight.gpus import Card
from takd.preflight.jobs import Job
from takd.preflight.memory import BYTES, Footprint, Texts
from takd.preflight.rates import Estimate, Measured
from takd.preflight.shapes import Shape

LARGE = 2**30  # bytes above which the lines of a file are not counted


@dataclass(frozen=True)
class Planned:
    """One job with its estimates.

    Attributes:
        stage: line of the table that it belongs to.
        work, estimate: None while the number of rows is unknown.
        footprint: None for a job that does not use a GPU.
    """

    job: Job
    stage: str
    work: Work | None = None
    estimate: Estimate | None = None
    footprint: Footprint | None = None
    written: CachedOutput = field(default_factory=CachedOutput)

    @property
    def hours(self) -> float | None:
        """Hours of the job, on all its GPUs at once."""
        if self.estimate is None:
            return None
        return self.estimate.seconds / 3600 / self.job.given.world

    def footprint_with(self, planner: "Planner") -> Any:
        """Footprint as a function of the resources."""
        return lambda given: planner.footprint(self.job, given)


class Planner:
    """Estimate the needs of each job of an experiment on a card.

    Args:
        counts: number of rows of splits that do not exist yet, by split.
    """

    def __init__(
        self,
        experiment: Experiment,
        card: Card,
        runs: Sequence[Measured] = (),
        counts: Mapping[str, int] | None = None,
    ) -> None:
        self.experiment, self.card, self.runs = experiment, card, runs
        self.counts = dict(counts or {})
        names = experiment.settings["models"]
        self.shapes = {name: shapes.of_model(experiment, name) for name in names}
        self.rows = {split: self._rows(split) for split in experiment.splits}

    @property
    def unknown(self) -> list[str]:
        """Splits whose number of rows is unknown."""
        return [split for split, rows in self.rows.items() if rows.count is None]

    def plan(self, jobs: Iterable[Job]) -> list[Planned]:
        """Estimate the needs of every job."""
        return [self.planned(job) for job in jobs]

    def planned(self, job: Job) -> Planned:
        """Estimate the needs of one job."""
        stage = f"{job.rule} {self._stage(job)}".strip()
        if not job.computes:
            return Planned(job, stage, written=self._small(job))
        computed = self.work(job)
        estimate = None
        if computed is not None:
            kind = job.method if job.trains else job.rule
            shape = self.asked(job)
            estimate = rates.estimate(
                computed, kind, shape.parameters, self.card, self.precision(job), self.runs
            )
        return Planned(
            job, stage, computed, estimate, self.footprint(job, job.given), self.written(job)
        )

    def asked(self, job: Job) -> Shape:
        """Shape of the model that a job trains or runs."""
        return self.shapes[lineage.split(job.lineage)[-1].model]

    def teacher(self, job: Job) -> Shape | None:
        """Shape of the teacher that a training loads; None if precomputed outputs are enough."""
        above = lineage.teacher_of(job.lineage)
        settings = self.spec(job)["settings"]
        if above is None or job.method == "seqkd" or settings.get("teacher_outputs") == "top_k":
            return None
        return self.shapes[lineage.split(above)[-1].model]

    def compared_with(self, job: Job) -> list[Shape]:
        """Shapes of the teachers that also read the texts in `likelihoods`, each teacher once."""
        names = job.wildcards
        spec = specs.likelihoods(
            self.experiment, names["lineage"], int(names["seed"]), names["set"]
        )
        teachers = dict.fromkeys(map(tuple, spec["teachers"].values()))
        return [self.shapes[lineage.split(teacher)[-1].model] for teacher, _ in teachers]

    def spec(self, job: Job) -> dict[str, Any]:
        """Settings of a training."""
        return specs.train(self.experiment, job.lineage, int(job.wildcards["seed"]))

    def setting(self, job: Job) -> str:
        """Value of the setting `precision` of a job that uses a GPU."""
        if job.trains:
            return self.spec(job)["settings"]["precision"]
        part = "evaluation" if job.rule in ("evaluate", "likelihoods") else "teacher_cache"
        return self.experiment.settings[part]["precision"]

    def precision(self, job: Job) -> str:
        """Precision in which a job computes."""
        return self.card.precision(self.setting(job), self.asked(job).pretrained)

    def work(self, job: Job) -> Work | None:
        """Computation of a job."""
        shape, number = self.asked(job), BYTES[self.precision(job)]
        if job.trains:
            blocks = self.rows.get("corpus")
            return flops.training(
                self.spec(job),
                shape,
                self.teacher(job),
                self.rows["train"],
                self.rows["dev"],
                job.given,
                round(blocks.whole) if blocks else 0,
                number,
            )
        if job.rule == "evaluate":
            seeds = len(self.experiment.settings["evaluation"]["seeds"])
            return flops.evaluation(
                shape, self.rows[job.wildcards["set"]], seeds, job.given, number
            )
        if job.rule == "likelihoods":
            seeds = len(self.experiment.settings["evaluation"]["seeds"])
            return flops.likelihoods(
                shape, self.compared_with(job), self.rows[job.wildcards["set"]], seeds
            )
        if job.rule == "generate":
            return flops.evaluation(shape, self._part(job), 1, job.given, number)
        return flops.outputs(shape, self._read(job), job.wildcards["kind"])

    def footprint(self, job: Job, given: memory.Resources) -> Footprint:
        """GPU memory of a job on one GPU, with the longest texts that its settings allow."""
        data = self.experiment.settings["data"]
        longest = data["max_length"] - data["max_prompt_length"]
        texts = Texts(data["max_prompt_length"], longest)
        shape = self.asked(job)
        if job.trains:
            return memory.training(
                shape, self.teacher(job), self.spec(job), texts, given, self.card
            )
        decodes = job.rule in ("evaluate", "generate")
        if job.wildcards.get("read") == "corpus":
            texts = Texts(1, round(self.rows["corpus"].whole) - 1)
        beside = self.compared_with(job) if job.rule == "likelihoods" else []
        largest = max(beside, key=lambda teacher: teacher.parameters, default=None)
        setting = self.setting(job)
        return memory.asking(shape, texts, given, self.card, decodes, largest, setting)

    def host(self, job: Job) -> dict[str, float]:
        """Main memory of a node that a training takes, by name."""
        return memory.host(self.asked(job), self.teacher(job), self.spec(job), job.given, self.card)

    def written(self, job: Job) -> CachedOutput:
        """Disk space that a job writes."""
        shape = self.asked(job)
        if job.trains:
            return disk.training(
                self.spec(job), shape, self.teacher(job), self.rows["train"].response
            )
        if job.rule == "evaluate":
            seeds = len(self.experiment.settings["evaluation"]["seeds"])
            rows = self.rows[job.wildcards["set"]]
            return disk.answers((rows.count or 0) * seeds, rows.response)
        if job.rule == "likelihoods":
            return CachedOutput()  # one line per prompt
        if job.rule == "generate":
            rows = self._part(job)
            return disk.answers(rows.count or 0, rows.response)
        top_k = self.experiment.settings["teacher_cache"]["top_k"]
        number = BYTES[self.precision(job)]
        return disk.outputs(shape, self._read(job), job.wildcards["kind"], top_k, number)

    def _stage(self, job: Job) -> str:
        """Line of the table: trainings by model, other jobs by rule."""
        return job.lineage if job.trains else ""

    def _small(self, job: Job) -> CachedOutput:
        names = job.wildcards
        if job.rule == "data":
            return disk.data(self.rows[names["split"]])
        if job.rule == "generations":
            return disk.data(self.rows["train"])
        if job.rule == "base":
            weights = self.experiment.settings["models"][names["model"]]["weights"]
            return disk.base(weights, self.experiment.parameters[names["model"]])
        return CachedOutput()

    def _part(self, job: Job) -> Rows:
        rows, parts = self.rows["train"], int(job.wildcards["parts"])
        count = None if rows.count is None else math.ceil(rows.count / parts)
        return Rows(count, rows.prompt, rows.response, rows.bound)

    def _read(self, job: Job) -> Rows:
        read = job.wildcards["read"]
        return self.rows["train" if read == "generations" else read]

    def _rows(self, split: str) -> Rows:
        """Rows of a split: as prepared, else the count of its source with the longest allowed texts."""
        experiment = self.experiment
        folder = experiment.root / "results" / experiment.name / "data" / split
        if (found := rates.rows_of(folder / "manifest.json")) is not None:
            return found
        spec = specs.data(experiment, split)
        count = self.counts.get(split)
        if split == "corpus":
            return Rows(count or spec["blocks"], 1, spec["block_length"] - 1, bound=True)
        source = spec["source"]
        if count is None and "demo" in source:
            count = source["demo"]["rows"]
        if count is None and "json" in source:
            count = _lines(experiment.root / source["json"])
        prompt = spec["max_prompt_length"]
        return Rows(count, prompt, spec["max_length"] - prompt, bound=True)


def _lines(path: Path) -> int | None:
    """Number of non-empty lines of a file; None if it is missing or huge."""
    if not path.is_file() or path.stat().st_size > LARGE:
        return None
    with open(path, "rb") as file:
        return sum(1 for line in file if line.strip())


def peak_disk(planned: Sequence[Planned]) -> tuple[float, float]:
    """Bytes that remaining jobs leave on disk, and the largest amount of temporary files at one time.

    Models at the same depth of their chains may train at the same time; deeper ones wait for them.
    """
    left = [each for each in planned if each.job.to_do]
    by_depth: dict[int, float] = {}
    for each in left:
        depth = each.job.lineage.count("__") if each.job.trains else -1
        by_depth[depth] = by_depth.get(depth, 0.0) + each.written.meanwhile
    return sum(each.written.stays for each in left), max(by_depth.values(), default=0.0)


def hub_disk(experiment: Experiment, planned: Sequence[Planned]) -> float:
    """Bytes of weights that are still to be fetched from the Hub into its cache, at most (float32)."""
    names = {
        each.job.wildcards["model"]
        for each in planned
        if each.job.to_do and each.job.rule == "base"
    }
    repositories = {
        experiment.settings["models"][name]["weights"]["hub"]: experiment.parameters[name]
        for name in names
        if "hub" in experiment.settings["models"][name]["weights"]
    }
    return 4.0 * sum(repositories.values())
