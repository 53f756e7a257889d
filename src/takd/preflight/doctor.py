"""What stands in the way of a run: facts in, findings out, each in one line with what to do.

python -m takd doctor --experiment NAME --profile profiles/slurm
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from takd import lineage
from takd.cards import VOLTA, has_kernels
from takd.preflight.collect import Facts, Torch
from takd.preflight.datasheets import Card, asked_for
from takd.preflight.footprint import GIB, USABLE, Resources
from takd.preflight.plan import Planned, Planner, hub_disk, peak_disk
from takd.preflight.table import size

PLACEHOLDER = "CHANGEME"
# packages without which the stages cannot start; others of the environment only serve reports and tests
NEEDED = ("snakemake", "torch", "transformers", "accelerate", "datasets", "tokenizers")
# builds of torch against a newer CUDA than this have had no kernels for Volta since
VOLTA_CUDA, FIRST_WITHOUT_VOLTA = (12, 6), (2, 11)
LAST_VOLTA = "2.14"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: "ok", "warning" (may go wrong, or only costs time) or "error" (will go wrong).
    """

    level: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8}{self.subject:<11}{self.text}"


def examine(facts: Facts, planner: Planner, planned: Sequence[Planned]) -> list[Finding]:
    """Everything that there is to say."""
    return [
        *versions(facts),
        *kernels(facts, planner.card),
        *deepspeed(facts, planner, planned),
        *slurm(facts, planned),
        *account(facts.executor, facts.account, facts.accounts),
        *files(facts),
        *hub(facts.hub, facts.hub_problem),
        *space(facts, planner, planned),
        *memory(planner, planned),
        *host_memory(facts.executor, planner, planned),
        *precision(planner, planned),
        *time(planned, facts.attempts),
    ]


def versions(facts: Facts) -> Iterator[Finding]:
    """What is installed, against what the environment pins."""
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
    """Major and minor; the build for a CUDA behind the + is another matter."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:2])


def kernels(facts: Facts, card: Card) -> Iterator[Finding]:
    """Whether the torch that is installed computes on the card of the plan, and on those of this machine."""
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
    """Whether a build of torch has kernels for a card: by its list where it is known, else by its CUDA."""
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
    """Whether DeepSpeed is there where a training asks for it."""
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
    """Whether Slurm answers, and whether it has the GPUs that jobs ask for."""
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
    """Slurm does not answer."""
    reason = (said.strip().splitlines() or ["it gave no reason"])[-1]
    text = f"Slurm does not answer ({reason}): start this on a login node of the cluster, or take profiles/local."
    return Finding("error", "Slurm", text)


def account(executor: str | None, name: str | None, known: list[str] | None) -> Iterator[Finding]:
    """Whether the profile says whom Slurm charges, and whether Slurm knows that account.

    Args:
        known: accounts that Slurm names; None where it does not tell.
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
    """Whether the local files that the experiment names are there."""
    if facts.missing:
        yield Finding("error", "files", facts.missing)
    else:
        yield Finding("ok", "files", "all local files that the experiment names are there")


def hub(wanted: Sequence[str], problem: str | None) -> Iterator[Finding]:
    """Whether what is still to be fetched can be."""
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
    """Whether the disk holds what the experiment will write."""
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
    """Whether so many bytes are enough."""
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


def memory(planner: Planner, planned: Sequence[Planned]) -> Iterator[Finding]:
    """Whether each stage fits on a GPU, and which micro-batch would."""
    card = planner.card
    if card.on_cpu:
        return
    limit = f"{USABLE * card.gigabytes:.0f} GiB that a {card.name} can use"
    seen: dict[str, Planned] = {}
    for each in planned:
        if each.footprint is None or not each.job.to_do:
            continue
        name = each.stage if each.job.trains else f"{each.job.rule} {each.job.lineage}"
        if name not in seen or seen[name].footprint.peak < each.footprint.peak:  # type: ignore[union-attr]
            seen[name] = each
    fit = True
    for name, each in seen.items():
        assert each.footprint is not None
        if each.footprint.fits(card):
            continue
        fit = False
        largest = ", ".join(f"{n} {b / GIB:.1f}" for n, b in each.footprint.items()[:3])
        peak = f"{name} takes {each.footprint.peak / GIB:.0f} GiB a GPU ({largest}), more than the {limit}"
        yield Finding("error", "memory", f"{peak}: {_remedy(planner, each)}.")
    if fit and seen:
        name, each = max(seen.items(), key=lambda item: item[1].footprint.peak)  # type: ignore[union-attr]
        assert each.footprint is not None
        text = f"all stages fit into the {limit}; the largest is {name} with {each.footprint.peak / GIB:.1f} GiB"
        yield Finding("ok", "memory", text)


def host_memory(
    executor: str | None, planner: Planner, planned: Sequence[Planned]
) -> Iterator[Finding]:
    """Whether each training fits into the main memory that Slurm gives it on a node."""
    if executor != "slurm" or planner.card.on_cpu:
        return
    seen: set[tuple[str, str]] = set()
    fit = True
    for each in planned:
        given = each.job.resources.get("mem_mb", "")
        if not each.job.trains or not each.job.to_do or not given.isdecimal():
            continue
        parts = planner.host(each.job)
        need, have = sum(parts.values()), int(given) * 1e6
        if need <= have or (each.stage, given) in seen:
            continue
        seen.add((each.stage, given))
        fit = False
        largest = ", ".join(
            f"{name} {size / 1e9:.0f}"
            for name, size in sorted(parts.items(), key=lambda part: -part[1])[:3]
        )
        text = (
            f"{each.stage} takes {need / 1e9:.0f} GB of a node's main memory for {each.job.given.processes} processes"
            f" ({largest}), but the profile gives {have / 1e9:.0f} GB: set mem_mb of {each.job.rule} to"
            f" {math.ceil(need / 1e6)} or more, or take fewer processes a node."
        )
        yield Finding("error", "memory", text)
    if fit and any(each.job.trains and each.job.to_do for each in planned):
        yield Finding(
            "ok", "memory", "the main memory that jobs get is enough to read their models"
        )


def precision(planner: Planner, planned: Sequence[Planned]) -> Iterator[Finding]:
    """Which models compute in fp32, and which might, as the card lacks the type that they were pretrained in."""
    card = planner.card
    if card.precision("auto") != "fp16":
        return
    asked = {
        lineage.split(each.job.lineage)[-1].model
        for each in planned
        if each.job.computes and each.job.to_do and planner.setting(each.job) == "auto"
    }
    wide = sorted(name for name in asked if planner.shapes[name].pretrained == "bfloat16")
    unknown = sorted(name for name in asked if planner.shapes[name].estimated)
    if wide:
        text = (
            f"{', '.join(wide)} were pretrained in bfloat16, which a {card.name} lacks: they compute in fp32, since"
            " fp16 may overflow; precision: fp16 is faster, at that risk."
        )
        yield Finding("warning", "precision", text)
    if unknown:
        text = (
            f"nothing of {', '.join(unknown)} is here yet: what was pretrained in bfloat16, as most families since"
            f" 2023, computes in fp32 on a {card.name} and takes twice as much; ask again after the jobs `base`"
        )
        yield Finding("ok", "precision", text)
    if not wide and not unknown:
        yield Finding("ok", "precision", f"fp16 on a {card.name}")


def _remedy(planner: Planner, each: Planned) -> str:
    """What would make a stage fit."""
    job = each.job
    found = largest_micro_batch(each.footprint_with(planner), job.given, planner.card)
    if found is not None:
        fits, checkpointing = found
        also = (
            " and gradient_checkpointing: 1"
            if checkpointing and not job.given.gradient_checkpointing
            else ""
        )
        return f"set micro_batch: {fits}{also} for {job.rule} in the profile"
    if job.trains:
        many = "" if job.given.world > 1 else " on several GPUs"
        return (
            f"no micro_batch fits; set deepspeed: zero2 or zero3{many}, or lora, in the experiment"
        )
    return "no micro_batch fits; take a larger card"


def time(planned: Sequence[Planned], attempts: int) -> Iterator[Finding]:
    """Whether jobs end within the attempts that they have."""
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


def largest_micro_batch(
    footprint_of: Any, resources: Resources, card: Card
) -> tuple[int, bool] | None:
    """The largest micro-batch, and whether it needs gradient checkpointing, with which a stage fits; None: none.

    Args:
        footprint_of: the footprint with given resources.
    """
    for checkpointing in (resources.gradient_checkpointing, True):
        size = resources.micro_batch
        while size >= 1:
            tried = Resources(
                resources.processes, resources.nodes, size, checkpointing, resources.runtime
            )
            if footprint_of(tried).fits(card):
                return size, checkpointing
            size //= 2
    return None
