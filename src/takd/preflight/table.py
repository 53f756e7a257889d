"""Output of the plan as text and as JSON."""

from collections.abc import Sequence
from typing import Any

from takd.experiment.labels import methods_text, short_number
from takd.experiment.lineage import SUPERVISED
from takd.preflight import lengths, memory, rates
from takd.preflight.fetching import fetched_bytes
from takd.preflight.flops import Lengths
from takd.preflight.plan import Planned, Planner, peak_disk
from takd.preflight.text_table import aligned

COLUMNS = ("stage", "jobs", "to do", "tokens", "FLOP", "{gpu} h", "h a job", "{gpu}s a job")
HEADINGS = (*COLUMNS, "GiB each", "disk")
# rules in the order of a run; "distill" stands for all students
RULES = (
    *("tokenizer", "data", "data_report", "base", "given", "teacher", SUPERVISED, "generate"),
    *("generations", "teacher_outputs", "distill", "evaluate", "likelihoods", "judge", "card"),
)


def lines(planned: Sequence[Planned]) -> list[dict[str, Any]]:
    """Build a line for each stage, in the order of a run, then totals of all and of remaining jobs; None if unknown."""
    stages = dict.fromkeys(each.job.stage for each in sorted(planned, key=_place))
    by_stage = {name: [each for each in planned if each.job.stage == name] for name in stages}
    by_stage["all"] = list(planned)
    by_stage["left to do"] = [each for each in planned if each.job.to_do]
    return [_line(name, jobs) for name, jobs in by_stage.items()]


def _place(each: Planned) -> tuple[int, int]:
    """Sort key of a job in the table: students after their teachers, the report last."""
    rule = "distill" if each.job.rule.startswith("distill_") else each.job.rule
    place = RULES.index(rule) if rule in RULES else len(RULES)
    return place, each.job.depth


def _line(name: str, planned: Sequence[Planned]) -> dict[str, Any]:
    computing = [each for each in planned if each.job.computes]
    works = [each.work for each in computing if each.work is not None]
    busy = [each.busy for each in computing if each.busy is not None]
    hours = [each.hours for each in computing if each.hours is not None]
    return {
        "stage": name,
        "jobs": len(planned),
        "to_do": sum(each.job.to_do for each in planned),
        # a sum in which something is missing is a lower bound
        "whole": len(works) == len(computing),
        "computes": bool(computing),
        "tokens": sum(work.tokens for work in works) if works else None,
        "operations": sum(work.operations for work in works) if works else None,
        "gpu_hours": sum(busy) if busy else None,
        "hours_of_longest_job": max(hours, default=None),
        "gpus": max((each.places for each in computing), default=None),
        "peak_memory": max((e.footprint.peak for e in computing if e.footprint), default=None),
        "disk": sum(each.written.stays for each in planned),
    }


def text(planner: Planner, planned: Sequence[Planned]) -> str:
    """Format the table with explanatory notes."""
    gpu = "core" if planner.gpu.on_cpu else "GPU"
    table = [[heading.format(gpu=gpu) for heading in HEADINGS]]
    table += [_cells(line) for line in lines(planned)]
    head, *stages, everything, left = aligned(table)
    rule = "-" * len(head)
    listed = [f"- {note}" for note in notes(planner, planned)]
    return "\n".join([head, rule, *stages, rule, everything, left, "", *chains(planner), *listed])


def chains(planner: Planner) -> list[str]:
    """Format what each chain costs with all that it needs."""
    rows = [["chain, with all that it needs", "FLOP", "before", "last training", "steps"]]
    for each in planner.chains.listed():
        counts = [_count(value) for value in (each.whole, each.before, each.own)]
        steps = "?" if each.steps is None else f"{'about ' * each.of_budget}{each.steps}"
        rows.append([f"{each.label} ({methods_text(each.lineage)})", *counts, steps])
    head, *chains_ = aligned(rows)
    return [head, "-" * len(head), *chains_, ""]


def _cells(line: dict[str, Any]) -> list[str]:
    spent = ["", "", "", ""]
    if line["computes"]:
        counts = [_count(line[name]) for name in ("tokens", "operations")]
        spent = counts + [_hours(line[name]) for name in ("gpu_hours", "hours_of_longest_job")]
        if not line["whole"]:
            spent = [cell if cell == "?" else f">{cell.lstrip('<')}" for cell in spent]
    peak = line["peak_memory"]
    return [
        *(line["stage"], str(line["jobs"]), str(line["to_do"]), *spent, str(line["gpus"] or "")),
        "" if peak is None else f"{peak / memory.GIB:.2g}",
        size(line["disk"]) if line["disk"] else "",
    ]


def notes(planner: Planner, planned: Sequence[Planned]) -> list[str]:
    """List the assumptions behind the numbers."""
    gpu, rows = planner.gpu, planner.rows
    about = (
        f"GPU: {gpu.name}, {gpu.gigabytes:g} GiB, {gpu.precision()}. 'GiB each' is the peak on a GPU of the"
        f" stage's largest job with the longest texts allowed; {memory.USABLE:.0%} of the GPU's memory can be used."
    )
    if gpu.on_cpu:
        about = "No GPU is named: this is the time of one CPU core a process; --gpu NAME plans for a GPU."
    found = [about, *planner.chains.problems(), *planner.chains.coarse()]
    if planner.experiment.ends:
        found.append(
            f"Budget: {_count(planner.chains.budget)} FLOP a chain. The steps of the last trainings follow from it, in"
            " place of their `steps` and `epochs`; each ends when its share is spent, as it counts itself."
        )
    if decoding := decoded_rows(planned):
        found.append(decoding)
    evaluation = planner.experiment.settings["evaluation"]
    for key in ("decoding", "dev_decoding"):
        if evaluation[key]["no_repeat_ngram"]:
            found.append(
                f"evaluation.{key}.no_repeat_ngram: the host reads every token, not several at once, so that decoding"
                " takes longer than its hours say."
            )
    if guessed := [name for name, shape in planner.shapes.items() if shape.estimated]:
        found.append(
            f"Shapes of {', '.join(guessed)} are estimated from their number of parameters, as nothing of them is here"
            " yet; after the jobs `base` they are exact."
        )
    if planner.unknown:
        found.append(
            f"Rows of {', '.join(planner.unknown)} are not known, as their data are not here: '?' and '>' (at least)."
            " Put the data there, run the target `prepare`, or say --rows SPLIT=COUNT."
        )
    of = {kind: [split for split in rows if rows[split].lengths is kind] for kind in Lengths}
    if longest := of[Lengths.LONGEST]:
        found.append(
            f"{', '.join(longest)}: not here yet, so that every text counts with the longest length allowed, which"
            " may be several times too much; the target `prepare` makes it exact."
        )
    if guessed_lengths := of[Lengths.ESTIMATED]:
        found.append(
            f"{', '.join(guessed_lengths)}: not tokenised yet, so that lengths are estimated from"
            f" {lengths.SAMPLE} rows, {lengths.BYTES_A_TOKEN:g} bytes a token; the target `prepare` makes them exact."
        )
    if len(longest) < len(rows):
        found.append("What models write is taken to be as long as the references.")
    sources = sorted({each.estimate.source for each in planned if each.estimate})
    found += (measured := [f"Hours of {source}." for source in sources if source != "assumed"])
    if "assumed" in sources:
        found.append(assumption(planner, bool(measured)))
    disk = disk_space(planner, planned)
    stays, meanwhile, hub = map(size, disk.values())
    fetched = f", {hub} more in the hub's cache" if disk["hub_cache"] else ""
    found.append(
        f"Disk: {stays} for what is left to do, and up to {meanwhile} of checkpoints while it runs{fetched}."
    )
    return found


def disk_space(planner: Planner, planned: Sequence[Planned]) -> dict[str, float]:
    """Bytes that remaining jobs leave, those of checkpoints at one time, and those to be fetched from the Hub."""
    stays, meanwhile = peak_disk(planned)
    fetched = fetched_bytes(planner.experiment, [each.job for each in planned])
    return {"stays": stays, "meanwhile": meanwhile, "hub_cache": fetched}


def decoded_rows(planned: Sequence[Planned]) -> str:
    """State how many responses stages decode at once; empty if none decodes."""
    found: dict[int, set[str]] = {}
    for each in planned:
        for use, rows in each.footprint.rows.items() if each.footprint else ():
            found.setdefault(rows, set()).add(each.job.rule if use == "responses" else use)
    if not found:
        return ""
    listed = "; ".join(
        f"{rows} ({', '.join(sorted(uses))})" for rows, uses in sorted(found.items())
    )
    return f"Responses that a process decodes at once, as many as memory allows and are worth it: {listed}."


def assumption(planner: Planner, others: bool) -> str:
    """State the basis of hours that are not measured."""
    gpu, which = planner.gpu, "Other hours" if others else "Hours"
    if gpu.on_cpu:
        return (
            f"{which} are assumed, as nothing of the kind was measured here yet: {rates.CPU_SHARE:.0%} of the"
            f" {gpu.peak('fp32') / 1e9:.0f} GFLOP/s that a core reaches in matrix products, and"
            f" {1e3 * rates.STEP_SECONDS:g} ms a step and {1e3 * rates.TOKEN_SECONDS:g} ms a drawn token beside."
        )
    return (
        f"{which} are assumed, as nothing of the kind was measured on {gpu.name} yet: {rates.PASSES_SHARE:.0%} of its"
        f" {gpu.peak(gpu.precision()) / 1e12:g} TFLOP/s; decoding at {rates.READING_SHARE:.0%} of its"
        f" {gpu.bandwidth:g} GB/s, and no faster than {1e3 * rates.BLOCK_SECONDS:g} ms a block and token."
    )


def as_json(planner: Planner, planned: Sequence[Planned]) -> dict[str, Any]:
    """Plan as JSON: bytes, seconds and FLOPs."""
    return {
        "experiment": planner.experiment.name,
        "gpu": planner.gpu.name,
        "stages": lines(planned),
        "budget": planner.chains.budget,
        "chains": planner.chains.as_json(),
        "jobs": [
            {
                "rule": each.job.rule,
                "output": each.job.output,
                "to_do": each.job.to_do,
                "gpus": each.job.allotted.world,
                "tokens": each.work.tokens if each.work else None,
                "operations": each.work.operations if each.work else None,
                "gpu_seconds": each.estimate.seconds if each.estimate else None,
                "source": each.estimate.source if each.estimate else None,
                "memory": dict(each.footprint.items()) if each.footprint else None,
                "disk": each.written._asdict(),
            }
            for each in planned
        ],
        "disk": disk_space(planner, planned),
        "notes": notes(planner, planned),
    }


def size(value: float) -> str:
    """Format bytes in decimal units, as disks are labelled."""
    return f"{short_number(value)}B"


def _count(value: float | None) -> str:
    return "?" if value is None else short_number(value)


def _hours(value: float | None) -> str:
    if value is None:
        return "?"
    if value < 0.0095:
        return "<0.01"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.2g}"
