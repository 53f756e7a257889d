"""Devices and code of the runs, from the closing lines of their logs, and the sources of starting weights."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from takd.analysis.costs import ANSWERS, LIKELIHOODS, writing_stage
from takd.analysis.results import Results, Row


class Used(NamedTuple):
    """Runs of one kind of stage on one kind of device."""

    stage: str
    device: str
    processes: int
    precision: str
    host_cpus: str
    runs: int
    minutes: float
    """Wall time, all runs together."""


def used(results: Results) -> list[Used]:
    """List each combination of stage, device and precision once, in the order of the stages."""
    rows: dict[tuple[str, str, int, str, str], list[float]] = {}
    for stage, end in _ends(results):
        if not end:
            continue
        place = (
            stage,
            str(end.get("device", "unknown")),
            int(end.get("processes", 1)),
            str(end.get("precision", "")),
            str(end.get("host_cpus", "")),
        )
        rows.setdefault(place, []).append(float(end.get("seconds", 0.0)) / 60)
    return [Used(*place, len(minutes), sum(minutes)) for place, minutes in rows.items()]


class Code(NamedTuple):
    """Runs of one kind of stage with the same code."""

    stage: str
    commit: str
    digest: str
    runs: int


def codes(results: Results) -> list[Code]:
    """List each combination of stage, commit and digest once, in the order of the stages."""
    counts = Counter(
        (stage, str(end.get("commit") or ""), str(end.get("code") or ""))
        for stage, end in _ends(results)
        if end
    )
    return [Code(*which, runs) for which, runs in counts.items()]


def _ends(results: Results) -> Iterator[tuple[str, Row]]:
    yield from (("training", model.end) for model in results.models.values())
    for each in sorted(results.teacher_cache, key=writing_stage):
        yield from ((writing_stage(each), end) for end in each.ends)
    yield from ((ANSWERS, each.end) for each in results.evaluations.values())
    yield from ((LIKELIHOODS, each.likelihoods_end) for each in results.evaluations.values())


def start_text(source: dict[str, Any]) -> str:
    """Describe a source of weights or a tokenizer, such as `hub openai-community/gpt2, revision 607a…`."""
    words = []
    for key, value in source.items():
        if value is None:
            continue
        if isinstance(value, dict):
            value = f"({', '.join(f'{name} {each}' for name, each in value.items())})"
        words.append(f"{key.replace('_', ' ')} {value}")
    return ", ".join(words)
