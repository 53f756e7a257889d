"""Whether results are what was written: all files of an experiment's folder against the digests in its records.

`python -m takd verify` asks; what came from elsewhere is checked without its experiment's file. Two things are looked
for besides damaged, missing and foreign files: a record in another model's place, and one that was made from other
files than lie here now.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from takd.errors import InputError
from takd.inputs import check
from takd.integrity import (
    CARD,
    PROGRESS,
    RECORDS,
    DamagedError,
    Record,
    faults,
    parts,
    read_log,
    read_record,
)
from takd.provenance import file_digest
from takd.training.checkpoints import LOG, examine

CHECKPOINTS = "checkpoints"


class Verified(NamedTuple):
    """What was looked at, and what is wrong with it, a sentence each."""

    files: int
    bytes: int
    faults: list[str]


def verify(results: Path, threads: int = 1) -> Verified:
    """Compare all that lies below a folder of results; only reads.

    Raises:
        InputError: there is no such folder, or nothing in it that a stage wrote.
    """
    if not results.is_dir():
        raise InputError(f"{results}: no such folder; name one below results/.")
    files = sorted(path for path in results.rglob("*") if _counts(path, results))
    unfinished = {path for path in files if CHECKPOINTS in path.relative_to(results).parts}
    done = [path for path in files if path not in unfinished]
    records: dict[Path, Record] = {}
    found = [f for path in unfinished if path.name == PROGRESS for f in examine(path.parent)[1]]
    broken = set()
    for path in done:
        try:
            if path.name in RECORDS:
                records[path] = read_record(path)
            elif path.name == LOG:
                read_log(path)
        except DamagedError as error:
            found.append(str(error))
            broken.add(path.parent)
    if not records and not found:
        raise InputError(f"{results}: holds no results of takd.")
    for path, record in records.items():
        found += faults(path, record, threads=threads)
        if "log" in record and not (log := path.parent / record["log"]).is_file():
            found.append(f"{log}: is missing")
        found += _place(path, record, results)
    # of what lies beside a damaged record nothing is known
    found += _unnamed([p for p in done if broken.isdisjoint(p.parents)], records)
    if not found:
        found += _origins(records, done)
    size = sum(path.stat().st_size for path in files)
    return Verified(len(files), size, list(dict.fromkeys(found)))


def _counts(path: Path, results: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(results).parts)
    return not hidden and path.is_file()


def _place(path: Path, record: Record, results: Path) -> list[str]:
    """A record says itself which model, seed and set it is of, and so does its path."""
    parts = path.relative_to(results).parent.parts
    wanted: dict[str, Any] = {}
    match parts:
        case ("models" | "teachers", lineage, seed, *_):
            wanted = {"lineage": lineage, "seed": _number(seed)}
        case ("evaluations", lineage, seed, name, *_):
            wanted = {"lineage": lineage, "seed": _number(seed), "set": name}
        case ("base", model):
            wanted = {"kind": "base", "model": model}
        case ("data", split) if split not in ("tokenizer", "report"):
            wanted = {"kind": "data", "split": split}
    try:
        check(path, record, wanted)
    except InputError as error:
        return [str(error)]
    return []


def _number(seed: str) -> int | None:
    number = seed.removeprefix("seed")
    return int(number) if number.isdecimal() else None


def _origins(records: dict[Path, Record], files: list[Path]) -> Iterator[str]:
    """What a result was made from must be what lies here."""
    read = (path for path in files if path in records or path.suffix in (".jsonl", ".html"))
    known = set(map(file_digest, read))
    for path, record in records.items():
        for name, digests in record.get("inputs", {}).items():
            if not set(digests) <= known:
                yield f"{path}: was made from another '{name}' than the one that lies here"


def _unnamed(files: list[Path], records: dict[Path, Record]) -> Iterator[str]:
    """Files of which no record speaks; a model's card is a copy of the one beside its folder."""
    named = {path.parent / part for path, record in records.items() for part in parts(record)}
    for path in files:
        if path.name == CARD and path.parent.name == "model":
            card = path.parent.parent / "card.md"
            if not card.is_file() or card.read_bytes() != path.read_bytes():
                yield f"{path}: is not the same as {card}"
        elif named.isdisjoint((path, *path.parents)) and path.name not in (
            *RECORDS,
            LOG,
            "card.md",
        ):
            yield f"{path}: no record speaks of it; it is unfinished, or no result"
