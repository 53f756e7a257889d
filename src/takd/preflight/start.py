"""Checks at the start of a run, within seconds and without torch, in the process of Snakemake itself.

Only certain failures stop a run. Estimates, of memory for instance, give warnings.
"""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from takd.experiment import specs
from takd.experiment.experiment import Experiment
from takd.models.starting_weights import relink
from takd.preflight import collect, contents, disk, doctor, fetching, fitting
from takd.preflight.collect import Answer
from takd.preflight.findings import Finding, error, warning
from takd.preflight.gpus import CPU
from takd.preflight.jobs import Job, of_dag
from takd.preflight.plan import Planner, peak_disk
from takd.preflight.shapes import weights_of
from takd.runtime.errors import InputError

# states of a job that runs, will run, or may still be writing its checkpoint
AT_WORK = (
    "PENDING|RUNNING|COMPLETING|CONFIGURING|SUSPENDED|STOPPED|SIGNALING|RESIZING|REQUEUED"
    "|REQUEUE_HOLD|REQUEUE_FED"
)


def check(experiment: Experiment, workflow: Any) -> list[str]:
    """Check a run that is about to start, and return warnings, one per line.

    Args:
        workflow: Snakemake's, about to start its jobs.

    Raises:
        InputError: the run would fail.
    """
    experiment.require_files()
    for model, settings in experiment.settings["models"].items():
        if "folder" in settings["weights"]:
            weights = specs.base(experiment, model)["weights"]
            relink(weights_of(experiment, model) / "model", weights)
    jobs = of_dag(workflow)
    executor = getattr(workflow.executor_plugin, "name", "")
    if executor == "slurm":
        check_slurm([job for job in jobs if not job.local])
    settings = getattr(workflow, "resource_settings", None)
    named = [*settings.overwrite_resources, *settings.overwrite_threads] if settings else []
    found = [
        *fitting.unlisted(executor, jobs),
        *fitting.no_rules(named, [rule.name for rule in workflow.rules] if named else []),
        *contents.of_sources(experiment, jobs),
        *contents.of_weights(experiment, jobs),
        *doctor.trackers(experiment.settings["report"]["trackers"]),
    ]
    if sentences := [f"{each.subject}: {each.text}" for each in found if each.level == "error"]:
        raise InputError(*sentences)
    try:
        found += expected(experiment, jobs, executor)
    except InputError:
        raise
    except Exception as wrong:  # an error in an estimate must not stop a run
        text = f"nothing can be expected ({type(wrong).__name__}: {wrong})"
        found.append(warning("preflight", text))
    return [f"Warning: {each.subject}: {each.text}" for each in found if each.level != "ok"]


def check_slurm(jobs: Sequence[Job]) -> None:
    """Raise InputError if Slurm would reject the run, or if an earlier run is still active."""
    queue = collect.ask("squeue", "-h", "-u", collect.user(), "-o", "%i|%k|%T|%Z")
    name = collect.account_of(jobs)
    asks = name is not None and doctor.PLACEHOLDER in name
    known = collect.known_accounts() if asks else None
    for finding in slurm_findings(queue, name, known, os.getcwd()):
        raise InputError(finding.text)


def slurm_findings(
    queue: Answer, account: str | None, accounts: list[str] | None, folder: str
) -> Iterator[Finding]:
    """Find what would stop a run on Slurm.

    Args:
        queue: squeue's output on this user's jobs: id, comment, state and folder.
        accounts: this user's Slurm accounts; None if unavailable.
    """
    if unreachable := doctor.unanswered(queue):
        yield unreachable
        return
    found = doctor.account("slurm", account, accounts)
    yield from (each for each in found if each.level == "error")
    if still := earlier_jobs(queue.said, folder):
        jobs, work, them = ("jobs", "work", "them") if len(still) > 1 else ("job", "works", "it")
        yield error(
            "Slurm",
            f"{jobs} {', '.join(still)} of an earlier run still {work} in this folder: wait for {them}, or"
            f" `scancel {' '.join(still)}`, then start again.",
        )


def earlier_jobs(said: str, folder: str) -> list[str]:
    """Ids of unfinished jobs that Snakemake submitted from a folder, from squeue's output `%i|%k|%T|%Z`."""
    found = []
    for line in said.splitlines():
        if line.count("|") >= 3:
            number, rest = line.split("|", 1)
            comment, state, place = rest.rsplit("|", 2)
            same = os.path.realpath(place) == os.path.realpath(folder)
            if comment.startswith("rule_") and same and re.fullmatch(AT_WORK, state.strip()):
                found.append(number.strip())
    return found


def expected(
    experiment: Experiment, jobs: Sequence[Job], executor: str | None = None
) -> Iterator[Finding]:
    """Yield findings about disk, memory, the build of torch, and the Hub.

    Raises:
        InputError: the disk lacks room even for the weights that the run will write.
    """
    try:
        gpu = collect.choose_gpu(None, jobs)
    except InputError:  # an unknown GPU is not worth a warning
        gpu = CPU
    planner = Planner(experiment, gpu)
    planner.chains.refuse()
    planned = planner.plan(jobs)
    free = disk.free_bytes(experiment.root / "results")
    weights = sum(each.written.stays for each in planned if each.job.trains)
    if weights > free:
        raise InputError(f"disk: {doctor.free_for(free, weights, 0.0).text}")
    yield from contents.of_warmup(planner, planned)
    yield doctor.free_for(free, *peak_disk(planned))
    if not gpu.on_cpu:
        yield from fitting.memory(planner, planned)
        yield from fitting.host_memory(executor, planner, planned)
        yield from fitting.precision(planner, planned)
        if torch := collect.installed_torch():
            yield doctor.torch_for(torch, gpu.name, gpu.capability)
    wanted = fetching.not_fetched(experiment, jobs)
    if wanted and (problem := fetching.problem()):
        yield doctor.hub(wanted, problem)
