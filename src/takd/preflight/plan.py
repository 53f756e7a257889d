"""Resource needs of an experiment, before anything is submitted: jobs, tokens, FLOPs, hours, memory, disk.

python -m takd plan --experiment NAME --profile profiles/slurm
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from takd.decoding.amounts import WORTH
from takd.experiment import lineage, specs
from takd.experiment.experiment import Experiment
from takd.methods.registry import METHODS
from takd.models.shapes import Shape
from takd.preflight import disk, fetching, flops, lengths, memory, rates, shapes
from takd.preflight.chain_costs import ChainCosts
from takd.preflight.disk import DiskSpace
from takd.preflight.flops import Conditions, Lengths, Rows, Work
from takd.preflight.gpus import Gpu
from takd.preflight.jobs import TAKES_WEIGHTS, Job
from takd.preflight.memory import Footprint, Resources
from takd.preflight.rates import Estimate, Measured
from takd.preflight.tensors import BYTES, Texts

NOTHING = DiskSpace()
LARGE = 2**30  # bytes above which the lines of a file are not counted


@dataclass(frozen=True)
class Planned:
    """One job with its estimates.

    Attributes:
        work, estimate: None while the number of rows is unknown.
        footprint: None for a job that does not use a GPU.
        start: seconds until it computes; all seconds of a job that computes nothing.
        places: its GPUs, one a process; without a GPU its cores.
    """

    job: Job
    work: Work | None = None
    estimate: Estimate | None = None
    footprint: Footprint | None = None
    written: DiskSpace = NOTHING
    start: float = 0.0
    places: int = 1

    @property
    def hours(self) -> float | None:
        """Hours of the job, on all its GPUs or cores at once; None while unknown."""
        if self.estimate is None:
            return None if self.job.computes else self.start / 3600
        return (self.estimate.seconds / self.places + self.start) / 3600

    @property
    def busy(self) -> float | None:
        """Hours of all its GPUs or cores together."""
        return None if self.hours is None else self.hours * self.places


class Planner:
    """Estimate the needs of each job of an experiment on a GPU.

    Args:
        counts: number of rows of splits that do not exist yet, by split.
    """

    def __init__(
        self,
        experiment: Experiment,
        gpu: Gpu,
        runs: Sequence[Measured] = (),
        counts: Mapping[str, int] | None = None,
    ) -> None:
        self.experiment, self.gpu, self.runs = experiment, gpu, runs
        self.settings, self.counts = experiment.settings, dict(counts or {})
        self.shapes = {name: shapes.of_model(experiment, name) for name in self.settings["models"]}
        self.rows = {split: self._rows(split) for split in experiment.splits}
        self.seeds = len(self.settings["evaluation"]["seeds"])
        self.chains = ChainCosts(experiment, self.shapes, self.rows)

    @property
    def unknown(self) -> list[str]:
        """Splits whose number of rows is unknown."""
        return [split for split, rows in self.rows.items() if rows.count is None]

    def plan(self, jobs: Iterable[Job]) -> list[Planned]:
        """Estimate the needs of every job."""
        return [self.planned(job) for job in jobs]

    def planned(self, job: Job) -> Planned:
        """Estimate the needs of one job."""
        if not job.computes:
            return Planned(job, written=self._prepared(job), start=rates.PREPARING)
        work, written = self._computed(job)
        estimate, kind = None, job.method if job.trains else job.rule
        if work is not None:
            about = self.model(job).parameters, self.gpu, self.precision(job)
            estimate = rates.estimate(work, kind, *about, self.runs)
        places = max(job.allotted.world, job.threads or 1 if self.gpu.on_cpu else 1)
        given = self.footprint(job, job.allotted), written, rates.START[self.gpu.device], places
        return Planned(job, work, estimate, *given)

    def model(self, job: Job) -> Shape:
        """Shape of the model that a job trains or runs."""
        return self._shape(job.lineage)

    def _shape(self, name: str) -> Shape:
        return self.shapes[lineage.student_of(name)]

    def teacher(self, job: Job) -> Shape | None:
        """Shape of the teacher that a training loads; None if precomputed outputs are enough."""
        above = lineage.teacher_of(job.lineage)
        asks = METHODS[job.method].asks_teacher(self.spec(job)["settings"])
        return self._shape(above) if above and asks else None

    def compared_with(self, job: Job) -> list[Shape]:
        """Shapes of the teachers that also read the texts in `likelihoods`, each teacher once."""
        names = job.wildcards
        numbers = names["lineage"], int(names["seed"]), names["set"]
        spec = specs.likelihoods(self.experiment, *numbers)
        teachers = dict.fromkeys(map(tuple, spec["teachers"].values()))
        return [self._shape(teacher) for teacher, _ in teachers]

    def spec(self, job: Job) -> dict[str, Any]:
        """Settings of a training; under a budget with the expected number of steps."""
        spec = specs.train(self.experiment, job.lineage, int(job.wildcards["seed"]))
        if job.lineage in self.experiment.ends:
            spec["settings"]["steps"] = self.chains.steps(job.lineage) or None
        return spec

    def setting(self, job: Job) -> str:
        """Value of the setting `precision` of a job that uses a GPU."""
        if job.trains:
            return self.spec(job)["settings"]["precision"]
        part = "evaluation" if job.rule in ("evaluate", "likelihoods") else "teacher_cache"
        return self.settings[part]["precision"]

    def precision(self, job: Job) -> str:
        """Precision in which a job computes."""
        return self.gpu.precision(self.setting(job), self.model(job).pretrained)

    def _computed(self, job: Job) -> tuple[Work | None, DiskSpace]:
        """Computation of a job that uses a GPU, and the disk space that it writes."""
        model, number, names = self.model(job), BYTES[self.precision(job)], job.wildcards
        decoded = self.footprint(job, job.allotted).rows.values()
        together = min(decoded, default=WORTH["cuda"])
        given = Conditions(job.allotted, number, together, block_length=self._block_length)
        if job.trains:
            spec, teacher, train = self.spec(job), self.teacher(job), self.rows["train"]
            work = flops.training(spec, model, teacher, train, self.rows["dev"], given)
            return work, disk.training(spec, model, teacher, train.response)
        if job.rule == "evaluate":
            rows = self.rows[names["set"]]
            work = flops.evaluation(model, rows, self.seeds, given)
            return work, disk.responses(rows, self.seeds)
        if job.rule == "likelihoods":  # it writes one line per prompt
            rows = self.rows[names["set"]]
            return flops.likelihoods(model, self.compared_with(job), rows, self.seeds), DiskSpace()
        if job.rule == "generate":
            rows = self.rows["train"]
            if rows.count is not None:
                rows = replace(rows, count=math.ceil(rows.count / int(names["parts"])))
            work = flops.evaluation(model, rows, 1, given)
            return work, disk.responses(rows)
        rows = self.rows["train" if names["read"] == "generations" else names["read"]]
        top_k = self.settings["teacher_cache"]["top_k"]
        written = disk.outputs(model, rows, names["kind"], top_k, number)
        return flops.outputs(model, rows, names["kind"]), written

    def footprint(self, job: Job, given: Resources) -> Footprint:
        """GPU memory of a job on one GPU, with the longest texts that its settings allow."""
        data, model = self.settings["data"], self.model(job)
        prompt = data["max_prompt_length"]
        texts = Texts(prompt, data["max_length"] - prompt)
        if job.trains:
            of_training = self.teacher(job), self.spec(job), texts, given, self.gpu
            return memory.training(model, *of_training)
        if job.wildcards.get("read") == "corpus":
            texts = Texts(1, self._block_length - 1)
        beside = self.compared_with(job) if job.rule == "likelihoods" else []
        return memory.asking(
            *(model, texts, given, self.gpu),
            decodes=job.rule in ("evaluate", "generate"),
            beside=max(beside, key=lambda teacher: teacher.parameters, default=None),
            setting=self.setting(job),
            # what a teacher generates is not cut
            decoding=self.settings["evaluation"]["decoding"] if job.rule == "evaluate" else None,
        )

    @property
    def _block_length(self) -> int:
        """Tokens of a block of the plain-text corpus; 0 without one."""
        return round(self.rows["corpus"].whole) if "corpus" in self.rows else 0

    def host(self, job: Job) -> dict[str, float]:
        """Main memory of a node that a training takes, by name."""
        return memory.host(
            self.model(job), self.teacher(job), self.spec(job), job.allotted, self.gpu
        )

    def _prepared(self, job: Job) -> DiskSpace:
        """Disk space of a job without a GPU; safetensors of the Hub stay in its cache, local ones in their folder."""
        if job.rule in ("data", "generations"):
            return disk.data(self.rows[job.wildcards.get("split", "train")])
        if job.rule in TAKES_WEIGHTS:
            name = job.wildcards["model"]
            if "gguf" in self.settings["models"][name]["weights"]:
                return DiskSpace(4.0 * self.experiment.parameters[name])
            if job.to_do and (weights := fetching.of_weights(self.experiment, name)):
                return DiskSpace(fetching.rewritten_bytes(weights))
        return DiskSpace()

    def _rows(self, split: str) -> Rows:
        """Rows of a split: as prepared, as many as its source has today; else as far as its source tells."""
        experiment = self.experiment
        spec = specs.data(experiment, split)
        count = self.counts.get(split)
        if count is None and split != "corpus":
            count = self._in_source(spec["source"])
        folder = experiment.root / "results" / experiment.name / "data" / split
        if (found := rates.rows_of(folder / "manifest.json", count)) is not None:
            return found
        if split == "corpus":  # cut into blocks of one length
            return Rows(count or spec["blocks"], 1, spec["block_length"] - 1, Lengths.LONGEST)
        if found := lengths.estimated(experiment, split, count):
            return found
        prompt = spec["max_prompt_length"]
        return Rows(count, prompt, spec["max_length"] - prompt, Lengths.LONGEST)

    def _in_source(self, source: specs.Spec) -> int | None:
        """Number of rows that a source gives; None if that is not known before it is read."""
        if "demo" in source:
            return source["demo"]["rows"]
        if "expect_rows" in source:
            return source["expect_rows"]
        first, end = source.get("rows", (0, None))
        lines = _lines(self.experiment.root / source["json"]) if "json" in source else None
        ends = [value for value in (end, lines) if value is not None]
        return max(0, min(ends) - first) if ends else None


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
    by_depth: defaultdict[int, float] = defaultdict(float)
    for each in left:
        by_depth[each.job.depth if each.job.trains else -1] += each.written.meanwhile
    return sum(each.written.stays for each in left), max(by_depth.values(), default=0.0)
