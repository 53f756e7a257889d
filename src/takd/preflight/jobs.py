"""The jobs of an experiment: their resources under a profile, and which are still to be run.

They come from a dry run of Snakemake, so that stale results count as jobs to run, and defaults of rules and settings
of the profile are resolved by Snakemake itself. It writes them into the file that an environment variable names.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

from snakemake.profiles import ProfileConfigFileParser

from takd.experiment.lineage import SUPERVISED, alone
from takd.preflight import amounts
from takd.preflight.memory import Resources
from takd.runtime.errors import InputError
from takd.runtime.files import read_json, write_json

SUPERVISED_RULES = ("teacher", SUPERVISED)
TAKES_WEIGHTS = ("base", "given")
RUNS_A_MODEL = ("evaluate", "likelihoods", "generate", "teacher_outputs")
LISTED = "TAKD_JOBS"  # environment variable: file into which a dry run writes its jobs
# defaults of the rules, chosen for the demo
UNSET = {"mem_mb": "4000", "runtime": str(7 * 24 * 60)}


@dataclass(frozen=True)
class Job:
    """One job of the workflow.

    Attributes:
        output: its first output, which identifies it.
        resources: those that Snakemake gives it, as text.
        threads: cores of all its processes on a node; None if unknown.
        local: whether it runs on the machine of Snakemake itself.
        to_do: whether a run would start it now.
        inputs, outputs: all its files.
    """

    rule: str
    output: str
    wildcards: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, str] = field(default_factory=dict)
    local: bool = False
    to_do: bool = True
    threads: int | None = None
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()

    @property
    def trains(self) -> bool:
        return self.rule in SUPERVISED_RULES or self.rule.startswith("distill_")

    @property
    def computes(self) -> bool:
        """Whether it uses a GPU."""
        return self.trains or self.rule in RUNS_A_MODEL

    @property
    def lineage(self) -> str:
        """Lineage of the model that it trains or runs."""
        names = self.wildcards
        if self.rule in SUPERVISED_RULES:
            return alone(names["model"])
        if self.trains:
            return f"{names['teacher']}__{names['student']}-{names['method']}"
        return names.get("lineage") or names.get("teacher", "")

    @property
    def depth(self) -> int:
        """Number of teachers above the model that it trains or runs."""
        return self.lineage.count("__")

    @property
    def stage(self) -> str:
        """Line of the plan that it belongs to: trainings by model, other jobs by rule."""
        return f"{self.rule} {self.lineage}" if self.trains else self.rule

    @property
    def method(self) -> str:
        return SUPERVISED if self.rule in SUPERVISED_RULES else self.rule.removeprefix("distill_")

    @property
    def allotted(self) -> Resources:
        """Resources on which its memory and time depend."""
        given = self.resources
        return Resources(
            processes=int(given.get("processes", 1)),
            nodes=int(given.get("nodes", 1)),
            micro_batch=int(given.get("micro_batch", 8)),
            max_tokens=int(given.get("max_tokens", 0)),
            gradient_checkpointing=given.get("gradient_checkpointing", "0") == "1",
            runtime=float(given.get("runtime", "inf")),
        )


def read_profile(root: Path, profile: str) -> dict[str, Any]:
    """Read the settings of a profile, computed values included, in the way Snakemake does."""
    path = root / profile
    if path.is_dir():
        path /= "config.yaml"
    if not path.is_file():
        there = sorted(root.glob("profiles/*/config.yaml"))
        names = ", ".join(str(each.parent.relative_to(root)) for each in there)
        raise InputError(f"--profile {profile}: there is no such profile; there are {names}.")
    with open(path, encoding="utf-8") as file:
        return ProfileConfigFileParser().parse(file)


def of_experiment(
    root: Path, name: str, variables: Mapping[str, str], profile: str | None
) -> list[Job]:
    """List all jobs of an experiment.

    Raises:
        InputError: Snakemake cannot plan it, for the reason that it gives; or the profile sets an invalid number.
    """
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "host", "reason"]
    command += ["--profile", profile] if profile else ["--cores", "1"]
    command += ["--config", f"experiment={name}", *(f"{k}={v}" for k, v in variables.items())]
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "jobs.json"
        environment = {**os.environ, LISTED: str(listed)}
        done = subprocess.run(
            command, cwd=root, text=True, env=environment, stdout=PIPE, stderr=STDOUT
        )
        if done.returncode:
            lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
            for line in lines:
                if line.startswith("Error: "):
                    raise InputError(line.removeprefix("Error: "))
            raise InputError(f"snakemake cannot plan this: {lines[-1]}")
        return checked(Job(**job) for job in read_json(listed))


def of_dag(workflow: Any) -> list[Job]:
    """List the jobs that a run is about to start, from within Snakemake.

    Raises:
        InputError: the profile sets an invalid number, such as zero processes.
    """
    return checked(job for job in _all_of(workflow.dag) if job.to_do)


def _all_of(dag: Any) -> Iterator[Job]:
    """Yield all jobs, sorted by their outputs; not Snakemake's targets, which make nothing."""
    for job in sorted(dag.jobs, key=lambda job: list(map(str, job.output))):
        if job.output:
            yield Job(
                rule=job.rule.name,
                output=str(job.output[0]),
                wildcards={name: str(value) for name, value in job.wildcards_dict.items()},
                resources={name: str(value) for name, value in job.resources.items()},
                local=job.is_local,
                to_do=dag.needrun(job),
                threads=int(job.threads),
                inputs=list(map(str, job.input)),
                outputs=list(map(str, job.output)),
            )


def write_if_asked(dag: Any) -> None:
    """Write the jobs of a dry run into the file that the environment names, if it does."""
    if listed := os.environ.get(LISTED):
        write_json(Path(listed), [vars(job) for job in _all_of(dag)])


def checked(found: Iterable[Job]) -> list[Job]:
    """Return the jobs after checking their numbers."""
    listed = list(found)
    amounts.check(
        (f"profile: {job.rule}", name, value)
        for job in listed
        for name, value in job.resources.items()
    )
    return listed
