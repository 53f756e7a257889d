"""Check that jobs fit into GPU memory and a node's main memory, and that the GPU supports their precision."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from takd.decoding.amounts import WORTH
from takd.experiment import lineage
from takd.experiment.schema import suggest
from takd.preflight.findings import Finding, error, ok, warning
from takd.preflight.gpus import Gpu, asked_for
from takd.preflight.jobs import UNSET, Job
from takd.preflight.memory import GIB, USABLE, Footprint, Resources, largest
from takd.preflight.plan import Planned, Planner

LEAST_TOKENS = 256  # of a micro-batch that is worth a pass
FEW_ROWS = 16  # decoded at once: a GPU reads its weights as often for these as for many


def unlisted(executor: str | None, jobs: Sequence[Job]) -> Iterator[Finding]:
    """Check that a cluster's profile sets the resources of each rule that computes."""
    submitted = {job.rule: job for job in reversed(jobs) if job.computes and not job.local}
    if executor != "slurm" or not submitted:
        return
    with_gpu = sorted(rule for rule, job in submitted.items() if asked_for(job.resources))
    found = False
    for rule, job in submitted.items():
        line = f"give it a line like those of the other rules, such as `{rule}: *training`"
        level, text = "warning", ""
        if all(job.resources.get(name) == value for name, value in UNSET.items()):
            gpu = "" if rule in with_gpu else "no GPU, "
            level = "error"
            text = (
                f"{rule} has no line in set-resources of the profile: its jobs would get {gpu}4 GB and a week;"
                f" {line}, in set-resources and in set-threads."
            )
        elif with_gpu and rule not in with_gpu:
            text = (
                f"{rule} asks for no GPU, while {', '.join(with_gpu)} do: {line}, in set-resources."
            )
        elif job.threads is not None and job.threads < job.allotted.processes:
            text = f"{rule} gets {job.threads} cores for {job.allotted.processes} processes: {line}, in set-threads."
        if text:
            found = True
            yield Finding(level, "profile", text)
    if not found:
        yield ok("profile", "has a line for every rule that computes")


def no_rules(named: Collection[str], rules: Collection[str]) -> Iterator[Finding]:
    """Find names in set-resources and set-threads that are no rules, which Snakemake ignores silently."""
    # the rule `judge` exists only in experiments with a judge
    for name in sorted(set(named) - {*rules, "judge"}):
        yield warning(
            "profile",
            f"set-resources or set-threads names {name}, which is no rule; {suggest(name, rules)}",
        )


def memory(planner: Planner, planned: Sequence[Planned]) -> Iterator[Finding]:
    """Check that each stage fits on a GPU; if not, suggest a micro-batch that does."""
    gpu = planner.gpu
    if gpu.on_cpu:
        return
    limit = f"{USABLE * gpu.gigabytes:.0f} GiB that a {gpu.name} can use"
    # the largest job of each training, and of each rule for each model
    stages: dict[str, tuple[Job, Footprint]] = {}
    for job, footprint in ((each.job, each.footprint) for each in planned if each.job.to_do):
        name = f"{job.rule} {job.lineage}"
        if footprint and (name not in stages or stages[name][1].peak < footprint.peak):
            stages[name] = job, footprint
    large = {name: found for name, found in stages.items() if not found[1].fits(gpu)}
    for name, (job, footprint) in large.items():
        items = ", ".join(f"{item} {size / GIB:.1f}" for item, size in footprint.items()[:3])
        text = f"{name} takes {footprint.peak / GIB:.0f} GiB a GPU ({items}), more than the {limit}"
        yield error("memory", f"{text}: {_remedy(planner, job)}.")
    if stages and not large:
        name = max(stages, key=lambda name: stages[name][1].peak)
        peak = f"{name} with {stages[name][1].peak / GIB:.1f} GiB"
        yield ok("memory", f"all stages fit into the {limit}; the largest is {peak}")


def decoding(planner: Planner, planned: Sequence[Planned]) -> Iterator[Finding]:
    """Report how many responses stages decode at once, and which stages have memory for few only."""
    found: dict[str, int] = {}
    for each in planned:
        if each.footprint is None or not each.job.to_do or not each.footprint.fits(planner.gpu):
            continue
        for use, rows in each.footprint.rows.items():
            name = f"{use} of {each.job.stage}" if each.job.trains else each.job.rule
            found[name] = min(rows, found.get(name, rows))
    if not found or planner.gpu.on_cpu:
        return
    few = {name: rows for name, rows in found.items() if rows < FEW_ROWS}
    if few:
        listed = ", ".join(f"{name} {rows}" for name, rows in few.items())
        yield warning(
            "decoding",
            f"beside the models there is memory for few responses at once ({listed}), so that decoding is slow: take a"
            " larger GPU, or for trainings set deepspeed: zero2 or zero3.",
        )
    else:
        least, most = min(found.values()), max(found.values())
        some = f"{least} to {most}" if least < most else f"{most}"
        yield ok(
            "decoding",
            f"a {planner.gpu.name} has memory for {some} responses at once; {WORTH['cuda']} pay off at most",
        )


def host_memory(
    executor: str | None, planner: Planner, planned: Sequence[Planned]
) -> Iterator[Finding]:
    """Check that each training fits into the main memory that Slurm gives it on a node."""
    trainings = [each.job for each in planned if each.job.trains and each.job.to_do]
    if executor != "slurm" or planner.gpu.on_cpu or not trainings:
        return
    short: dict[tuple[str, str], str] = {}
    for job in trainings:
        given = job.resources.get("mem_mb", "")
        if not given.isdecimal():
            continue
        parts, have = planner.host(job), int(given) * 1e6
        if (need := sum(parts.values())) > have:
            items = ", ".join(f"{name} {size / 1e9:.0f}" for name, size in largest(parts)[:3])
            short[job.stage, given] = (
                f"{job.stage} takes {need / 1e9:.0f} GB of a node's main memory for {job.allotted.processes} processes"
                f" ({items}), but the profile gives {have / 1e9:.0f} GB: set mem_mb of {job.rule} to"
                f" {math.ceil(need / 1e6)} or more, or take fewer processes a node."
            )
    yield from (error("memory", text) for text in short.values())
    if not short:
        yield ok("memory", "the main memory that jobs get is enough to read their models")


def precision(planner: Planner, planned: Sequence[Planned]) -> Iterator[Finding]:
    """Report models that compute, or may compute, in fp32 because the GPU lacks bfloat16."""
    gpu = planner.gpu
    if gpu.precision("auto") != "fp16":
        return
    jobs = [each.job for each in planned if each.job.computes and each.job.to_do]
    asked = {lineage.student_of(job.lineage) for job in jobs if planner.setting(job) == "auto"}
    wide = sorted(name for name in asked if planner.shapes[name].pretrained == "bfloat16")
    unknown = sorted(name for name in asked if planner.shapes[name].estimated)
    if wide:
        yield warning(
            "precision",
            f"{', '.join(wide)} were pretrained in bfloat16, which a {gpu.name} lacks: they compute in fp32, since"
            " fp16 may overflow; precision: fp16 is faster, at that risk.",
        )
    if unknown:
        yield ok(
            "precision",
            f"nothing of {', '.join(unknown)} is here yet: what was pretrained in bfloat16, as most families since"
            f" 2023, computes in fp32 on a {gpu.name} and takes twice as much; ask again after the jobs `base`",
        )
    if not wide and not unknown:
        yield ok("precision", f"fp16 on a {gpu.name}")


def _remedy(planner: Planner, job: Job) -> str:
    """Suggest how to make a stage fit."""
    fits = largest_micro_batch(
        lambda given: planner.footprint(job, given), job.allotted, planner.gpu
    )
    if fits is not None:
        checkpointing = fits.gradient_checkpointing and not job.allotted.gradient_checkpointing
        also = " and gradient_checkpointing: 1" if checkpointing else ""
        changed = f"micro_batch: {fits.micro_batch}"
        if fits.max_tokens != job.allotted.max_tokens:
            changed = f"max_tokens: {fits.max_tokens}"
        text = f"set {changed}{also} for {job.rule} in the profile"
        limited = not job.trains or job.allotted.max_tokens
        for rows in () if limited else range(fits.micro_batch, 0, -1):
            # about the same memory, for more rows where they are shorter than the longest ones
            tokens = rows * planner.settings["data"]["max_length"]
            other = replace(fits, micro_batch=job.allotted.micro_batch, max_tokens=tokens)
            if planner.footprint(job, other).fits(planner.gpu):
                return f"{text}, or max_tokens: {tokens} and leave micro_batch"
        return text
    if job.trains:
        gpus = "" if job.allotted.world > 1 else " on several GPUs"
        return (
            f"no micro_batch fits; set deepspeed: zero2 or zero3{gpus}, or lora, in the experiment"
        )
    return "no micro_batch fits; take a larger GPU"


def largest_micro_batch(
    footprint_of: Callable[[Resources], Footprint], given: Resources, gpu: Gpu
) -> Resources | None:
    """Resources with the largest micro-batch that fits, if need be with gradient checkpointing; None if none fits."""
    for checkpointing in (given.gradient_checkpointing, True):
        # a limit of tokens is lowered before the number of rows
        tokens, size = given.max_tokens, given.micro_batch
        while size >= 1:
            sizes = {"micro_batch": size, "max_tokens": tokens}
            tried = replace(given, **sizes, gradient_checkpointing=checkpointing)
            if footprint_of(tried).fits(gpu):
                return tried
            if tokens > LEAST_TOKENS:
                tokens //= 2
            else:
                size //= 2
    return None
