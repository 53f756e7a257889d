"""Read single files of results: records, logs, and rows, each compared with its digest.

Raises InputError for a damaged file, and says what makes it again.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from takd.experiment.lineage import Node
from takd.runtime.input_check import check
from takd.runtime.records import DamagedError, faults, read_log, read_record, remade

JsonRow = dict[str, Any]
"""A line of a log, or of a file of scores or responses."""


def record(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Read a record, and check that it is undamaged and matches `wanted`."""
    try:
        found = read_record(path)
    except DamagedError as error:
        raise remade(str(error), path) from None
    check(path, found, wanted)
    return found


def log(path: Path, beside: Path) -> list[JsonRow]:
    """Read the log of a stage; running the stage again rewrites it with the record `beside` it."""
    try:
        return read_log(path)
    except DamagedError as error:
        raise remade(str(error), beside) from None


def lines(path: Path, beside: Path) -> Iterator[JsonRow]:
    """Yield the lines of a file after checking its digest against the record `beside` it."""
    for fault in faults(beside, read_record(beside), [path.name]):
        raise remade(fault, beside)
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def end(rows: list[JsonRow]) -> JsonRow:
    """Return the closing line of a log; the last one if there is none."""
    closing = [row for row in rows if row["kind"] == "end"]
    return (closing or rows or [{}])[-1]


def folder_of(above: Path, node: Node, *parts: str) -> Path:
    """Return the folder of a model below that of all models, or of its results on a set below that of evaluations."""
    return above.joinpath(node.folder, *parts)


def wall_minutes(end: JsonRow) -> float:
    """Return the wall time of a stage over all restarts, by the closing line of its log."""
    return float(end.get("seconds", 0.0)) / 60


def prompts_read(evaluations: Path, node: Node, name: str) -> Iterator[JsonRow]:
    """Yield sums over the tokens of each prompt's texts, of one model on one set."""
    folder = folder_of(evaluations, node, name, "likelihoods")
    return lines(folder / "prompts.jsonl", folder / "likelihoods.json")


def responses(evaluations: Path, node: Node, name: str) -> Iterator[JsonRow]:
    """Yield prompts of one set with a model's responses and their scores."""
    folder = folder_of(evaluations, node, name)
    return lines(folder / "generations.jsonl", folder / "scores.json")
