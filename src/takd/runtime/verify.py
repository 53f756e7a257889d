"""Check of all results in an experiment's folder against the digests in their records.

Used by `python -m takd verify`, which needs no experiment file, so that results from elsewhere can
be checked. Besides damaged, missing and unknown files, it detects records in the folder of another
model, and results made from other inputs than those that exist now.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from takd.runtime.checkpoints import LOG, examine
from takd.runtime.digests import file_digest
from takd.runtime.errors import InputError
from takd.runtime.input_check import check
from takd.runtime.records import RECORDS, DamagedError, Record, faults, parts, read_log, read_record

CHECKPOINTS = "checkpoints"


class Verified(NamedTuple):
    """Outcome of a check: number and size of the files, and one sentence per fault."""

    files: int
    bytes: int
    faults: list[str]


def verify(results: Path, threads: int = 1) -> Verified:
    """Compare all files below a folder of results with their records; change nothing.

    Raises:
        InputError: the folder does not exist, or holds no results.
    """
    if not results.is_dir():
        raise InputError(f"{results}: no such folder; name one below results/.")
    files = sorted(path for path in results.rglob("*") if _counts(path, results))
    unfinished = {path for path in files if CHECKPOINTS in path.relative_to(results).parts}
    done = [path for path in files if path not in unfinished]
    records: dict[Path, Record] = {}
    checkpoints = sorted(results.rglob(f"{CHECKPOINTS}/*/step-*"))
    found = [fault for checkpoint in checkpoints for fault in examine(checkpoint)[1]]
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
    if not records and not checkpoints and not found:
        raise InputError(f"{results}: holds no results of takd.")
    for path, record in records.items():
        found += faults(path, record, threads=threads)
        if "log" in record and not (log := path.parent / record["log"]).is_file():
            found.append(f"{log}: is missing")
        found += _place(path, record, results)
    # a damaged record does not say which files belong there
    found += _unnamed([p for p in done if broken.isdisjoint(p.parents)], records)
    if not found:
        found += _origins(records, done)
    size = sum(path.stat().st_size for path in files)
    return Verified(len(files), size, list(dict.fromkeys(found)))


def _counts(path: Path, results: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(results).parts)
    return not hidden and path.is_file()


def _place(path: Path, record: Record, results: Path) -> list[str]:
    """Faults of a record whose path names another model, seed or set than its content."""
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
    """Yield results that were made from other inputs than those in the folder."""
    read = (path for path in files if path in records or path.suffix in (".jsonl", ".html"))
    known = set(map(file_digest, read))
    for path, record in records.items():
        for name, digests in record.get("inputs", {}).items():
            if not set(digests) <= known:
                yield f"{path}: was made from another '{name}' than the one that lies here"


def _unnamed(files: list[Path], records: dict[Path, Record]) -> Iterator[str]:
    """Yield files that no record covers, except model cards, to which users may add a licence."""
    named = {path.parent / part for path, record in records.items() for part in parts(record)}
    for path in files:
        known = path.name in (*RECORDS, LOG, "card.md")
        if not known and named.isdisjoint((path, *path.parents)):
            yield f"{path}: is named in no record: unfinished, or no result"
