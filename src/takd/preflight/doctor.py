"""Check for obstacles to a run: turns facts into findings, each one line with a remedy.

python -m takd doctor --experiment NAME --profile profiles/slurm
"""

import re
from collections.abc import Iterator, Sequence

from takd.preflight import contents, fitting
from takd.preflight.collect import Answer, Facts, Torch
from takd.preflight.fetching import fetched_bytes
from takd.preflight.findings import Finding, error, ok, warning
from takd.preflight.gpus import Gpu, asked_for
from takd.preflight.plan import Planned, Planner, peak_disk
from takd.preflight.table import size
from takd.runtime.cuda_arch import VOLTA, has_kernels
from takd.watching.trackers import missing

PLACEHOLDER = "CHANGEME"
# packages that the stages need; others of the environment only serve reports and tests
NEEDED = ("snakemake", "torch", "transformers", "accelerate", "datasets", "tokenizers")
# builds of torch for a newer CUDA than this have no kernels for Volta
VOLTA_CUDA, FIRST_WITHOUT_VOLTA = (12, 6), (2, 11)
LAST_VOLTA = "2.14"


def examine(facts: Facts, planner: Planner, planned: Sequence[Planned]) -> list[Finding]:
    """Run all checks."""
    jobs = [each.job for each in planned]
    return [
        *versions(facts),
        *kernels(facts, planner.gpu),
        deepspeed(facts, planner, planned),
        *slurm(facts, planned),
        *account(facts.executor, facts.account, facts.accounts),
        *fitting.unlisted(facts.executor, jobs),
        files(facts),
        *trackers(planner.experiment.settings["report"]["trackers"]),
        *contents.of_sources(planner.experiment, jobs),
        *contents.of_weights(planner.experiment, jobs),
        *contents.of_warmup(planner, planned),
        hub(facts.hub, facts.hub_problem),
        *space(facts, planner, planned),
        *fitting.memory(planner, planned),
        *fitting.decoding(planner, planned),
        *fitting.host_memory(facts.executor, planner, planned),
        *fitting.precision(planner, planned),
        *time(planned, facts.attempts),
    ]


def trackers(names: Sequence[str]) -> Iterator[Finding]:
    """Look for the packages of `report.trackers`."""
    if absent := missing(names):
        yield error("report.trackers", absent)
    elif names:
        yield ok("report.trackers", f"{', '.join(names)} installed")


def versions(facts: Facts) -> Iterator[Finding]:
    """Compare installed with pinned packages."""
    if _release(facts.python) < (3, 11):
        yield error("python", f"{facts.python} is too old: takd needs 3.11 or newer.")
    found = {name: facts.versions.get(name, (None, "")) for name in NEEDED}
    absent = [name for name, (there, _) in found.items() if there is None]
    if absent:
        yield error(
            "versions",
            f"{', '.join(absent)} not installed: run `make env`, or install envs/ as envs/README.md says.",
        )
    others = [
        f"{name} {there} (tested: {pinned})"
        for name, (there, pinned) in found.items()
        if there is not None and _release(there) != _release(pinned)
    ]
    if others:
        yield warning(
            "versions",
            f"other than tested: {', '.join(others)}; if something fails, install envs/cpu.txt.",
        )
    if not absent and not others:
        shown = ", ".join(f"{name} {there}" for name, (there, _) in found.items())
        yield ok("versions", f"Python {facts.python}, {shown}")


def _release(version: str) -> tuple[int, ...]:
    """Major and minor version, without the CUDA build after the +."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:2])


def kernels(facts: Facts, gpu: Gpu) -> Iterator[Finding]:
    """Check that the installed torch has kernels for the GPU of the plan and for this machine's GPUs."""
    if facts.torch is None:
        yield error("torch", "not installed: run `make env`.")
        return
    wanted = {own.name: own.capability for own in facts.gpus}
    if not gpu.on_cpu:
        wanted = {gpu.name: gpu.capability, **wanted}
    if not wanted:
        yield ok("GPU", f"none here and none asked for: torch {facts.torch.version} on the CPU")
    for name, capability in wanted.items():
        yield torch_for(facts.torch, name, capability)


def torch_for(torch: Torch, name: str, capability: tuple[int, int]) -> Finding:
    """Check that a build of torch has kernels for a GPU: by its list of architectures, else by its CUDA version."""
    sm = f"{name} (sm_{capability[0]}{capability[1]})"
    install = "install a build of torch with CUDA (envs/README.md)"
    if volta := capability == (7, 0):
        install = f"install the build against CUDA 12.6 ({VOLTA}; PyTorch's index cu126, up to torch {LAST_VOLTA})"
    if torch.cuda is None:
        return error(
            "torch", f"{torch.version} is built for the CPU, but jobs get {sm}: {install}."
        )
    built = f"torch {torch.version}, built against CUDA {torch.cuda},"
    if torch.archs is not None:
        if has_kernels(capability, torch.archs):
            return ok("torch", f"{built} has kernels for {sm}")
        return error(
            "torch",
            f"{built} has no kernels for {sm}, only for {', '.join(torch.archs)}: {install}.",
        )
    newer = _release(torch.cuda) > VOLTA_CUDA and _release(torch.version) >= FIRST_WITHOUT_VOLTA
    if volta and newer:
        return error("torch", f"{built} has no kernels for {sm}: {install}.")
    return ok("torch", f"{built} for {sm}; its list of kernels was not asked")


def deepspeed(facts: Facts, planner: Planner, planned: Sequence[Planned]) -> Finding:
    """Check that DeepSpeed is installed if a training uses it."""
    left = [each.job for each in planned if each.job.trains and each.job.to_do]
    asking = {job.lineage for job in left if planner.spec(job)["settings"]["deepspeed"]}
    there, names = facts.versions.get("deepspeed", (None, ""))[0], ", ".join(sorted(asking))
    if not asking:
        return ok("DeepSpeed", f"{there or 'not installed'}; no training that is left asks for it")
    if there is None:
        return error(
            "DeepSpeed",
            f"not installed, but {names} ask for it: install envs/cpu.txt, or set deepspeed: null.",
        )
    return ok("DeepSpeed", f"{there}, for {names}")


def slurm(facts: Facts, planned: Sequence[Planned]) -> Iterator[Finding]:
    """Check that Slurm responds and has the GPUs that jobs request."""
    if facts.executor != "slurm":
        where = f"executor {facts.executor}" if facts.executor else "jobs run on this machine"
        yield ok("Slurm", f"not used: {where}")
        return
    assert facts.slurm is not None
    if unreachable := unanswered(facts.slurm):
        yield unreachable
        return
    there = set(re.findall(r"gpu:(?:([A-Za-z][\w.-]*):)?\d+", facts.slurm.said))
    requests = [asked_for(each.job.resources) for each in planned if each.job.computes]
    asked = {request[0] for request in requests if request and request[0]}
    if absent := sorted(asked - there):
        text = (
            f"no node has gpu:{', gpu:'.join(absent)}; sinfo names {', '.join(sorted(there)) or 'no GPU'}:"
            " correct `gpu` in the profile."
        )
        yield Finding("error" if there - {""} else "warning", "Slurm", text)
    else:
        yield ok("Slurm", f"answers; GPUs: {', '.join(sorted(there)) or 'none named'}")


def unanswered(answer: Answer) -> Finding | None:
    """Check that Slurm responds to a command."""
    if answer.works:
        return None
    reason = (answer.said.strip().splitlines() or ["it gave no reason"])[-1]
    return error(
        "Slurm",
        f"Slurm does not answer ({reason}): start this on a login node of the cluster, or take profiles/local.",
    )


def account(executor: str | None, name: str | None, known: list[str] | None) -> Iterator[Finding]:
    """Check that the profile names a Slurm account, and that Slurm knows it.

    Args:
        known: this user's Slurm accounts; None if unavailable.
    """
    if executor != "slurm":
        return
    choice = f" ({', '.join(known)})" if known else ""
    if name is None:
        yield ok("account", "none is named, as is right where the cluster has none")
    elif known is not None and name.lower() in map(str.lower, known):
        yield ok("account", name)
    elif PLACEHOLDER in name:
        text = (
            f"the profile still says {name}: put your own account{choice} into its first block, or"
            ' account: "" where the cluster has no accounts.'
        )
        yield error("account", text)
    elif known is None:
        yield ok("account", f"{name}; Slurm's accounts could not be listed")
    else:
        yield warning("account", f"{name} is none that Slurm names for you{choice}: correct it.")


def files(facts: Facts) -> Finding:
    """Check that the local files that the experiment names exist."""
    if facts.missing:
        return error("files", facts.missing)
    return ok("files", "all local files that the experiment names are there")


def hub(wanted: Sequence[str], problem: str | None) -> Finding:
    """Check that the Hub can be reached if something has to be fetched."""
    if not wanted:
        return ok("hub", "nothing is to be fetched")
    if problem:
        return error(
            "hub",
            f"cannot be reached ({problem}), but {', '.join(wanted)} must be fetched: start where there is internet,"
            " set HF_ENDPOINT to a mirror, or copy the hub's cache here (HF_HOME).",
        )
    return ok("hub", f"answers; to be fetched: {', '.join(wanted)}")


def space(facts: Facts, planner: Planner, planned: Sequence[Planned]) -> Iterator[Finding]:
    """Check that the disk has room for what the experiment will write."""
    stays, meanwhile = peak_disk(planned)
    jobs = [each.job for each in planned]
    fetched = fetched_bytes(planner.experiment, jobs) if facts.hub else 0.0
    if facts.free_cache is None:
        stays += fetched
    elif fetched > facts.free_cache:
        have = f"{size(facts.free_cache)} are free for the hub's cache"
        yield error("disk", f"{have}, but {size(fetched)} are to be fetched: set HF_HOME.")
    yield free_for(facts.free, stays, meanwhile)


def free_for(free: float, stays: float, meanwhile: float) -> Finding:
    """Check that the free bytes suffice."""
    have, need = f"{size(free)} free", f"{size(stays)} that stay"
    if stays > free:
        return error(
            "disk",
            f"{have}, but the run writes {need}: make room, or make `results` a link to a larger disk.",
        )
    if stays + meanwhile > free:
        return warning(
            "disk",
            f"{have}; the run writes {need} and, if all trainings that may run side by side do, {size(meanwhile)} of"
            " checkpoints: make room, or lower `jobs` in the profile.",
        )
    return ok("disk", f"{have}; the run writes {need} and up to {size(meanwhile)} of checkpoints")


def time(planned: Sequence[Planned], attempts: int) -> Iterator[Finding]:
    """Check that jobs end within their attempts."""
    left = [(each.job, each.hours) for each in planned if each.job.to_do]
    expected = [(job, hours) for job, hours in left if hours is not None]
    late = {}
    for job, hours in expected:
        allowed = job.allotted.runtime / 60 * attempts * 0.95
        if hours > allowed:
            late[job.stage] = (
                f"{job.stage} is expected to take {hours:.0f} h, but has {allowed:.0f} in all its attempts: raise"
                " `attempts` or `hours` in the profile; a second start resumes from the last checkpoint."
            )
    yield from (warning("time", text) for text in late.values())
    if expected and not late:
        yield ok("time", "every job whose time can be expected ends within its attempts")
