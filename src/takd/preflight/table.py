"""Output of the plan as text and as JSON."""

from collections.abc import Iterable, Sequence
from typing import Any

from takd.preflight import memory, rates
from takd.preflight.plan import Planned, Planner, hub_disk, peak_disk

HEADINGS = (
    *("stage", "jobs", "to do", "tokens", "FLOP"),
    *("{gpu} h", "h a job", "{gpu}s a job", "GiB each", "disk"),
)


def lines(planned: Sequence[Planned]) -> list[dict[str, Any]]:
    """Build a line for each stage, in the order of a run, then totals of all and of remaining jobs; None if unknown."""
    stages = list(dict.fromkeys(each.stage for each in sorted(planned, key=_place)))
    found = [_line(name, [each for each in planned if each.stage == name]) for name in stages]
    found.append(_line("all", planned))
    found.append(_line("left to do", [each for each in planned if each.job.to_do]))
    return found


ORDER = (
    "tokenizer",
    "data",
    "data_report",
    "base",
    "teacher",
    "sft",
    "generate",
    "generations",
    "teacher_outputs",
)


def _place(each: Planned) -> tuple[int, int]:
    """Sort key of a job in the table: students after their teachers, the report last."""
    rule = each.job.rule
    if rule in ORDER:
        return ORDER.index(rule), 0
    last = ("evaluate", "likelihoods", "judge", "card", "report")
    return len(ORDER) + (1 + last.index(rule) if rule in last else 0), each.job.lineage.count("__")


def _line(name: str, planned: Sequence[Planned]) -> dict[str, Any]:
    computing = [each for each in planned if each.job.computes]
    works = [each.work for each in computing if each.work is not None]
    hours = [each.hours for each in computing if each.hours is not None]
    return {
        "stage": name,
        "jobs": len(planned),
        "to_do": sum(each.job.to_do for each in planned),
        # a sum in which something is missing is a lower bound
        "whole": len(works) == len(computing),
        "computes": bool(computing),
        "tokens": sum(each.tokens for each in works) if works else None,
        "operations": sum(each.operations for each in works) if works else None,
        "gpu_hours": sum(e.estimate.seconds for e in computing if e.estimate) / 3600
        if hours
        else None,
        "hours_of_longest_job": max(hours, default=None),
        "gpus": max((each.job.given.world for each in computing), default=None),
        "peak_memory": max((e.footprint.peak for e in computing if e.footprint), default=None),
        "disk": sum(each.written.stays for each in planned),
    }


def text(planner: Planner, planned: Sequence[Planned]) -> str:
    """Format the table with explanatory notes."""
    gpu = "core" if planner.card.on_cpu else "GPU"
    table = [[heading.format(gpu=gpu) for heading in HEADINGS]]
    for line in lines(planned):
        spent = [
            _count(line["tokens"]),
            _count(line["operations"]),
            _hours(line["gpu_hours"]),
            _hours(line["hours_of_longest_job"]),
        ]
        if not line["whole"]:
            spent = [value if value == "?" else f">{value.lstrip('<')}" for value in spent]
        table.append(
            [
                line["stage"],
                str(line["jobs"]),
                str(line["to_do"]),
                *(spent if line["computes"] else [""] * len(spent)),
                str(line["gpus"] or ""),
                _gib(line["peak_memory"]),
                size(line["disk"]),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    rows.insert(1, "-" * len(rows[0]))
    rows.insert(-2, rows[1])
    return "\n".join([*rows, "", *(f"- {note}" for note in notes(planner, planned))])


def notes(planner: Planner, planned: Sequence[Planned]) -> list[str]:
    """List the assumptions behind the numbers."""
    card, experiment = planner.card, planner.experiment
    found = []
    if card.on_cpu:
        found.append(
            "No card is named: this is the time of one CPU core a process; --card NAME plans for a GPU."
        )
    else:
        found.append(
            f"Card: {card.name}, {card.gigabytes:g} GiB, {card.precision()}. 'GiB each' is the peak on a GPU of the"
            f" stage's largest job with the longest texts allowed; {memory.USABLE:.0%} of the card can be used."
        )
    guessed = [name for name, shape in planner.shapes.items() if shape.estimated]
    if guessed:
        found.append(
            f"Shapes of {', '.join(guessed)} are estimated from their number of parameters, as nothing of them is here"
            " yet; after the jobs `base` they are exact."
        )
    if planner.unknown:
        found.append(
            f"Rows of {', '.join(planner.unknown)} are not known, as their data are not here: '?' and '>' (at least)."
            " Put the data there, run the target `prepare`, or say --rows SPLIT=COUNT."
        )
    bound = [split for split, rows in planner.rows.items() if rows.bound]
    if bound:
        found.append(
            f"{', '.join(bound)}: not prepared yet, so that every text counts with the longest length allowed, which"
            " may be several times too much; the target `prepare` makes it exact."
        )
    if len(bound) < len(planner.rows):
        found.append("What models write is taken to be as long as the references.")
    sources = sorted({each.estimate.source for each in planned if each.estimate} - {"assumed"})
    found += [f"Hours of {source}." for source in sources]
    if any(each.estimate and each.estimate.source == "assumed" for each in planned):
        found.append(assumption(planner, bool(sources)))
    stays, meanwhile = peak_disk(planned)
    hub = hub_disk(experiment, planned)
    fetched = f", {size(hub)} more in the hub's cache" if hub else ""
    found.append(
        f"Disk: {size(stays) or '0B'} for what is left to do, and up to {size(meanwhile) or '0B'} of checkpoints"
        f" while it runs{fetched}."
    )
    return found


def assumption(planner: Planner, others: bool) -> str:
    """State the basis of hours that are not measured."""
    card = planner.card
    which = "Other hours" if others else "Hours"
    if card.on_cpu:
        peak = card.peak("fp32") / 1e9
        return (
            f"{which} are assumed: {rates.PASSES_SHARE:.0%} of {peak:.0f} GFLOP/s a core, while decoding"
            f" {rates.CPU_DECODING_SHARE:.0%}; nothing of the kind was measured here yet."
        )
    return (
        f"{which} are assumed, as nothing of the kind was measured on {card.name} yet: {rates.PASSES_SHARE:.0%} of its"
        f" {card.peak(card.precision()) / 1e12:g} TFLOP/s; decoding at {rates.READING_SHARE:.0%} of its"
        f" {card.bandwidth:g} GB/s, and no faster than {1e3 * rates.BLOCK_SECONDS:g} ms a block and token."
    )


def as_json(planner: Planner, planned: Sequence[Planned]) -> dict[str, Any]:
    """Plan as JSON: bytes, seconds and FLOPs."""
    stays, meanwhile = peak_disk(planned)
    return {
        "experiment": planner.experiment.name,
        "card": planner.card.name,
        "stages": lines(planned),
        "jobs": [
            {
                "rule": each.job.rule,
                "output": each.job.output,
                "to_do": each.job.to_do,
                "gpus": each.job.given.world,
                "tokens": each.work.tokens if each.work else None,
                "operations": each.work.operations if each.work else None,
                "gpu_seconds": each.estimate.seconds if each.estimate else None,
                "source": each.estimate.source if each.estimate else None,
                "memory": dict(each.footprint.items()) if each.footprint else None,
                "disk": {"stays": each.written.stays, "meanwhile": each.written.meanwhile},
            }
            for each in planned
        ],
        "disk": {
            "stays": stays,
            "meanwhile": meanwhile,
            "hub_cache": hub_disk(planner.experiment, planned),
        },
        "notes": notes(planner, planned),
    }


def _count(value: float | None) -> str:
    """Format a number with a suffix: `1.5e+15` as `1.5P`."""
    if value is None:
        return "?"
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P", "E", "Z"))


def size(value: float | None) -> str:
    """Format bytes in decimal units, as disks are labelled."""
    if not value:
        return ""
    return f"{_scaled(value, 1000, ('', 'k', 'M', 'G', 'T', 'P'))}B"


def _scaled(value: float, step: int, units: Iterable[str]) -> str:
    *smaller, largest = units
    for unit in smaller:
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= step
    return f"{value:.3g}{largest}"


def _hours(value: float | None) -> str:
    if value is None:
        return "?"
    if value < 0.0095:
        return "<0.01"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.2g}"


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value / memory.GIB:.2g}"
