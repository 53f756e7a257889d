"""Check for obstacles to a run: turns facts into findings, each one line with a remedy.

python -m takd doctor --experiment NAME --profile profiles/slurm
"""

import re
from collections.abc import Iterator, Sequence

from takd.preflight import contents, fitting
from takd.preflight.collect import Facts, Torch
from takd.preflight.findings import Finding
from takd.preflight.gpus import Card, asked_for
from takd.preflight.plan import Planned, Planner, hub_disk, peak_disk
from takd.preflight.table import size
from takd.runtime.cuda_arch import VOLTA, has_kernels

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
        *kernels(facts, planner.card),
        *deepspeed(facts, planner, planned),
        *slurm(facts, planned),
        *account(facts.executor, facts.account, facts.accounts),
        *fitting.unlisted(facts.executor, jobs),
        *files(facts),
        *contents.of_sources(planner.experiment, jobs),
        *contents.of_weights(planner.experiment, jobs),
        *contents.of_warmup(planner, planned),
        *hub(facts.hub, facts.hub_problem),
        *space(facts, planner, planned),
        *fitting.memory(planner, planned),
        *fitting.host_memory(facts.executor, planner, planned),
        *fitting.precision(planner, planned),
        *time(planned, facts.attempts),
    ]


def versions(facts: Facts) -> Iterator[Finding]:
    """Compare installed with pinned packages."""
    major, minor = map(int, facts.python.split(".")[:2])
    if (major, minor) < (3, 11):
        yield Finding("error", "python", f"{facts.python} is too old: takd needs 3.11 or newer.")
    absent = [name for name in NEEDED if facts.versions.get(name, ("",))[0] is None]
    if absent:
        text = f"{', '.join(absent)} not installed: run `make env`, or install envs/ as envs/README.md says."
        yield Finding("error", "versions", text)
    others = [
        f"{name} {there} (tested: {pinned})"
        for name, (there, pinned) in facts.versions.items()
        if name in NEEDED and there is not None and _release(there) != _release(pinned)
    ]
    if others:
        text = f"other than tested: {', '.join(others)}; if something fails, install envs/cpu.txt."
        yield Finding("warning", "versions", text)
    if not absent and not others:
        shown = ", ".join(f"{n} {facts.versions[n][0]}" for n in NEEDED if n in facts.versions)
        yield Finding(
            "ok", "versions", f"Python {facts.python}, {shown or 'no pins to compare with'}"
        )


def _release(version: str) -> tuple[int, ...]:
    """Major and minor version, without the CUDA build after the +."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:2])


def kernels(facts: Facts, card: Card) -> Iterator[Finding]:
    """Check that the installed torch has kernels for the card of the plan and for this machine's cards."""
    if facts.torch is None:
        yield Finding("error", "torch", "not installed: run `make env`.")
        return
    wanted = {card.name: card.capability} if not card.on_cpu else {}
    wanted |= {gpu.name: gpu.capability for gpu in facts.gpus}
    if not wanted:
        yield Finding(
            "ok", "GPU", f"none here and none asked for: torch {facts.torch.version} on the CPU"
        )
    for name, capability in wanted.items():
        yield torch_for(facts.torch, name, capability)


def torch_for(torch: Torch, name: str, capability: tuple[int, int]) -> Finding:
    """Check that a build of torch has kernels for a card: by its list of architectures, else by its CUDA version."""
    sm = f"{name} (sm_{capability[0]}{capability[1]})"
    volta = capability == (7, 0)
    install = (
        f"install the build against CUDA 12.6 ({VOLTA}; PyTorch's index cu126, up to torch {LAST_VOLTA})"
        if volta
        else "install a build of torch with CUDA (envs/README.md)"
    )
    if torch.cuda is None:
        return Finding(
            "error", "torch", f"{torch.version} is built for the CPU, but jobs get {sm}: {install}."
        )
    built = f"torch {torch.version}, built against CUDA {torch.cuda},"
    if torch.archs is not None:
        if has_kernels(capability, torch.archs):
            return Finding("ok", "torch", f"{built} has kernels for {sm}")
        text = f"{built} has no kernels for {sm}, only for {', '.join(torch.archs)}: {install}."
        return Finding("error", "torch", text)
    cuda = tuple(int(part) for part in re.findall(r"\d+", torch.cuda)[:2])
    if volta and cuda > VOLTA_CUDA and _release(torch.version) >= FIRST_WITHOUT_VOLTA:
        return Finding("error", "torch", f"{built} has no kernels for {sm}: {install}.")
    return Finding("ok", "torch", f"{built} for {sm}; its list of kernels was not asked")


def deepspeed(facts: Facts, planner: Planner, planned: Sequence[Planned]) -> Iterator[Finding]:
    """Check that DeepSpeed is installed if a training uses it."""
    asking = sorted(
        {
            each.job.lineage
            for each in planned
            if each.job.trains
            and each.job.to_do
            and planner.spec(each.job)["settings"]["deepspeed"]
        }
    )
    there = facts.versions.get("deepspeed", (None, ""))[0]
    if not asking:
        yield Finding(
            "ok", "DeepSpeed", f"{there or 'not installed'}; no training that is left asks for it"
        )
    elif there is None:
        text = f"not installed, but {', '.join(asking)} ask for it: install envs/cpu.txt, or set deepspeed: null."
        yield Finding("error", "DeepSpeed", text)
    else:
        yield Finding("ok", "DeepSpeed", f"{there}, for {', '.join(asking)}")


def slurm(facts: Facts, planned: Sequence[Planned]) -> Iterator[Finding]:
    """Check that Slurm responds and has the GPUs that jobs request."""
    if facts.executor != "slurm":
        where = f"executor {facts.executor}" if facts.executor else "jobs run on this machine"
        yield Finding("ok", "Slurm", f"not used: {where}")
        return
    assert facts.slurm is not None
    if not facts.slurm.works:
        yield unreachable(facts.slurm.said)
        return
    there = {
        match[1] or "" for match in re.finditer(r"gpu:(?:([A-Za-z][\w.-]*):)?\d+", facts.slurm.said)
    }
    asked = {
        name
        for each in planned
        if each.job.computes
        and (found := asked_for(dict(each.job.resources)))
        and (name := found[0])
    }
    if absent := sorted(asked - there):
        text = (
            f"no node has gpu:{', gpu:'.join(absent)}; sinfo names {', '.join(sorted(there)) or 'no GPU'}:"
            " correct `gpu` in the profile."
        )
        yield Finding("error" if there - {""} else "warning", "Slurm", text)
        return
    yield Finding("ok", "Slurm", f"answers; GPUs: {', '.join(sorted(there)) or 'none named'}")


def unreachable(said: str) -> Finding:
    """Finding for a Slurm that does not respond."""
    reason = (said.strip().splitlines() or ["it gave no reason"])[-1]
    text = f"Slurm does not answer ({reason}): start this on a login node of the cluster, or take profiles/local."
    return Finding("error", "Slurm", text)


def account(executor: str | None, name: str | None, known: list[str] | None) -> Iterator[Finding]:
    """Check that the profile names a Slurm account, and that Slurm knows it.

    Args:
        known: this user's Slurm accounts; None if unavailable.
    """
    if executor != "slurm":
        return
    listed = name is not None and known is not None and name.lower() in map(str.lower, known)
    choice = f" ({', '.join(known)})" if known else ""
    if name is not None and PLACEHOLDER in name and not listed:
        text = (
            f"the profile still says {name}: put your own account{choice} into its first block, or"
            ' account: "" where the cluster has no accounts.'
        )
        yield Finding("error", "account", text)
    elif name is None:
        yield Finding("ok", "account", "none is named, as is right where the cluster has none")
    elif known is not None and not listed:
        yield Finding(
            "warning", "account", f"{name} is none that Slurm names for you{choice}: correct it."
        )
    else:
        yield Finding(
            "ok", "account", name if listed else f"{name}; Slurm does not tell whether it is right"
        )


def files(facts: Facts) -> Iterator[Finding]:
    """Check that the local files that the experiment names exist."""
    if facts.missing:
        yield Finding("error", "files", facts.missing)
    else:
        yield Finding("ok", "files", "all local files that the experiment names are there")


def hub(wanted: Sequence[str], problem: str | None) -> Iterator[Finding]:
    """Check that the Hub can be reached if something has to be fetched."""
    if not wanted:
        yield Finding("ok", "hub", "nothing is to be fetched")
    elif problem:
        text = (
            f"cannot be reached ({problem}), but {', '.join(wanted)} must be fetched: start where there is internet,"
            " set HF_ENDPOINT to a mirror, or copy the hub's cache here (HF_HOME)."
        )
        yield Finding("error", "hub", text)
    else:
        yield Finding("ok", "hub", f"answers; to be fetched: {', '.join(wanted)}")


def space(facts: Facts, planner: Planner, planned: Sequence[Planned]) -> Iterator[Finding]:
    """Check that the disk has room for what the experiment will write."""
    stays, meanwhile = peak_disk(planned)
    fetched = hub_disk(planner.experiment, planned) if facts.hub else 0.0
    if facts.free_cache is None:
        stays += fetched
    elif fetched > facts.free_cache:
        have = f"{size(facts.free_cache) or '0B'} are free for the hub's cache"
        text = f"{have}, but {size(fetched)} are to be fetched: set HF_HOME."
        yield Finding("error", "disk", text)
    yield free_for(facts.free, stays, meanwhile)


def free_for(free: float, stays: float, meanwhile: float) -> Finding:
    """Check that the free bytes suffice."""
    have, need = f"{size(free) or '0B'} free", f"{size(stays) or '0B'} that stay"
    if stays > free:
        text = f"{have}, but the run writes {need}: make room, or make `results` a link to a larger disk."
        return Finding("error", "disk", text)
    if stays + meanwhile > free:
        text = (
            f"{have}; the run writes {need} and, if all trainings that may run side by side do, {size(meanwhile)} of"
            " checkpoints: make room, or lower `jobs` in the profile."
        )
        return Finding("warning", "disk", text)
    return Finding(
        "ok",
        "disk",
        f"{have}; the run writes {need} and up to {size(meanwhile) or '0B'} of checkpoints",
    )


def time(planned: Sequence[Planned], attempts: int) -> Iterator[Finding]:
    """Check that jobs end within their attempts."""
    late: dict[str, tuple[float, float]] = {}
    for each in planned:
        allowed = each.job.given.runtime / 60 * attempts * 0.95
        if each.job.to_do and each.hours is not None and each.hours > allowed:
            late[each.stage] = (each.hours, allowed)
    for name, (hours, allowed) in late.items():
        text = (
            f"{name} is expected to take {hours:.0f} h, but has {allowed:.0f} in all its attempts: raise `attempts` or"
            " `hours` in the profile; a second start goes on from the last checkpoint."
        )
        yield Finding("warning", "time", text)
    if not late and any(each.hours is not None for each in planned if each.job.to_do):
        yield Finding("ok", "time", "every job whose time can be expected ends within its attempts")
