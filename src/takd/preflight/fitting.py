"""Check that jobs fit into GPU memory and a node's main memory, and that the card supports their precision."""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from takd.experiment import lineage
from takd.experiment.schema import suggest
from takd.preflight.findings import Finding
from takd.preflight.gpus import Card, asked_for
from takd.preflight.jobs import UNSET, Job
from takd.preflight.memory import GIB, USABLE, Resources
from takd.preflight.plan import Planned, Planner


def unlisted(executor: str | None, jobs: Sequence[Job]) -> Iterator[Finding]:
    """Check that a cluster's profile sets the resources of each rule that computes."""
    submitted = [job for job in jobs if job.computes and not job.local]
    if executor != "slurm" or not submitted:
        return
    with_gpu = {job.rule for job in submitted if asked_for(dict(job.resources))}
    found = False
    for rule, job in {job.rule: job for job in reversed(submitted)}.items():
        line = f"give it a line like those of the other rules, such as `{rule}: *training`"
        if all(job.resources.get(name) == value for name, value in UNSET.items()):
            gpu = "" if rule in with_gpu else "no GPU, "
            text = (
                f"{rule} has no line in set-resources of the profile: its jobs would get {gpu}4 GB and a week;"
                f" {line}, in set-resources and in set-threads."
            )
            yield Finding("error", "profile", text)
        elif with_gpu and rule not in with_gpu:
            text = f"{rule} asks for no GPU, while {', '.join(sorted(with_gpu))} do: {line}, in set-resources."
            yield Finding("warning", "profile", text)
        elif job.threads is not None and job.threads < job.given.processes:
            text = f"{rule} gets {job.threads} cores for {job.given.processes} processes: {line}, in set-threads."
            yield Finding("warning", "profile", text)
        else:
            continue
        found = True
    if not found:
        yield Finding("ok", "profile", "has a line for every rule that computes")


def no_rules(named: Collection[str], rules: Collection[str]) -> Iterator[Finding]:
    """Find names in set-resources and set-threads that are no rules, which Snakemake ignores silently."""
    # the rule `judge` exists only in experiments with a judge
    for name in sorted(set(named) - {*rules, "judge"}):
        text = (
            f"set-resources or set-threads names {name}, which is no rule; {suggest(name, rules)}"
        )
        yield Finding("warning", "profile", text)


def memory(planner: Planner, planned: Sequence[Planned]) -> Iterator[Finding]:
    """Check that each stage fits on a GPU; if not, suggest a micro-batch that does."""
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
    """Check that each training fits into the main memory that Slurm gives it on a node."""
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
    """Report models that compute, or may compute, in fp32 because the card lacks bfloat16."""
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
    """Suggest how to make a stage fit."""
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


def largest_micro_batch(
    footprint_of: Any, resources: Resources, card: Card
) -> tuple[int, bool] | None:
    """Largest micro-batch that fits, and whether it needs gradient checkpointing; None if none fits.

    Args:
        footprint_of: function from resources to a footprint.
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
