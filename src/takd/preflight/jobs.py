"""The jobs of an experiment: their resources under a profile, and which are still to be run.

They come from a dry run of Snakemake, so that stale results count as jobs to run, and defaults of rules and settings
of the profile are resolved by Snakemake itself.
"""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from takd.experiment.lineage import SUPERVISED, supervised
from takd.preflight import amounts
from takd.preflight.memory import Resources
from takd.runtime.errors import InputError

TRAININGS = ("teacher", "sft")
# defaults of the rules, chosen for the demo
UNSET = {"mem_mb": "4000", "runtime": str(7 * 24 * 60)}


@dataclass(frozen=True)
class Job:
    """One job of the workflow.

    Attributes:
        output: its first output, which identifies it.
        resources: as printed by Snakemake.
        threads: cores of all its processes on a node; None if unknown.
        local: whether it runs on the machine of Snakemake itself.
        to_do: whether a run would start it now.
    """

    rule: str
    output: str
    wildcards: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, str] = field(default_factory=dict)
    local: bool = False
    to_do: bool = True
    threads: int | None = None

    @property
    def trains(self) -> bool:
        return self.rule in TRAININGS or self.rule.startswith("distill_")

    @property
    def computes(self) -> bool:
        """Whether it uses a GPU."""
        return self.trains or self.rule in (
            "evaluate",
            "likelihoods",
            "generate",
            "teacher_outputs",
        )

    @property
    def lineage(self) -> str:
        """Lineage of the model that it trains or runs."""
        names = self.wildcards
        if self.rule in TRAININGS:
            return supervised(names["model"])
        if self.trains:
            return f"{names['teacher']}__{names['student']}-{names['method']}"
        return names.get("lineage") or names.get("teacher", "")

    @property
    def method(self) -> str:
        return SUPERVISED if self.rule in TRAININGS else self.rule.removeprefix("distill_")

    @property
    def given(self) -> Resources:
        """Resources on which its memory and time depend."""
        known = {name: self.resources[name] for name in NUMBERS if name in self.resources}
        return Resources(
            processes=int(known.get("processes", 1)),
            nodes=int(known.get("nodes", 1)),
            micro_batch=int(known.get("micro_batch", 8)),
            gradient_checkpointing=known.get("gradient_checkpointing", "0") == "1",
            runtime=float(known.get("runtime", "inf")),
        )


NUMBERS = ("processes", "nodes", "micro_batch", "gradient_checkpointing", "runtime")


def of_experiment(
    root: Path, name: str, variables: Mapping[str, str], profile: str | None
) -> list[Job]:
    """List all jobs of an experiment, in the order in which a run would start them.

    Raises:
        InputError: Snakemake cannot plan it; the message is Snakemake's.
    """
    # in parallel: each takes seconds
    forced = _start(root, name, variables, profile, ["--forceall"])
    if not (root / "results" / name).exists():
        return _checked(parse(_finished(forced)))
    plain = _start(root, name, variables, profile, [])
    left = {job.output for job in parse(_finished(plain))}
    found = _checked(parse(_finished(forced)))
    return [replace(job, to_do=job.output in left) for job in found]


def _checked(found: Iterable[Job]) -> list[Job]:
    """Return the jobs after checking their numbers."""
    listed = list(found)
    amounts.check_jobs((job.rule, job.resources) for job in listed)
    return listed


def _start(
    root: Path, name: str, variables: Mapping[str, str], profile: str | None, more: list[str]
) -> Any:
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "host", "reason", *more]
    command += ["--profile", profile] if profile else ["--cores", "1"]
    command += ["--config", f"experiment={name}", *(f"{k}={v}" for k, v in variables.items())]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=root, text=True, **pipes)


def _finished(process: Any) -> str:
    printed, _ = process.communicate()
    if process.returncode:
        lines = [line.strip() for line in printed.splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith("Error: ")), None)
        raise InputError(
            said.removeprefix("Error: ") if said else f"snakemake cannot plan this: {lines[-1]}"
        )
    return printed


def parse(printed: str) -> Iterator[Job]:
    """Parse the jobs from the output of a dry run; target rules, which make nothing, are left out."""
    for block in re.split(r"^(?=(?:local)?(?:rule|checkpoint) \w+:$)", printed, flags=re.M)[1:]:
        head, *lines = block.splitlines()
        fields = dict(re.findall(r"^    (\w+): (.*)$", "\n".join(lines), re.M))
        if "output" not in fields:
            continue
        yield Job(
            rule=head.split()[1].rstrip(":"),
            output=fields["output"].split(", ")[0],
            wildcards=_pairs(fields.get("wildcards", "")),
            resources=_pairs(fields.get("resources", "")),
            local=head.startswith("local"),
            threads=int(fields.get("threads", 1)),
        )


def _pairs(text: str) -> dict[str, str]:
    """Parse `a=1, b=x:y` into a mapping; a value may contain a comma unless a name follows."""
    return dict(re.findall(r"(\w+)=(.*?)(?=, \w+=|$)", text))


def of_dag(workflow: Any) -> list[Job]:
    """List the jobs that a run is about to start, from within Snakemake.

    Raises:
        InputError: the profile sets an invalid number, such as zero processes.
    """
    found = [
        Job(
            rule=job.rule.name,
            output=str(next(iter(job.output), "")),
            wildcards={name: str(value) for name, value in job.wildcards_dict.items()},
            resources={name: str(value) for name, value in job.resources.items()},
            local=job.is_local,
            threads=int(job.threads),
        )
        for job in workflow.dag.needrun_jobs()
        if job.output
    ]
    return _checked(found)
