"""Digests by which results and checkpoints are known to be what was written.

A record (a manifest, the scores of an evaluation, the progress of a checkpoint) holds the sha256 of every file that it
speaks of, by its path from the record's folder (`files`), and one of its own content (`digest`). A training log,
whose times differ between equal runs, stands in no record: its closing line holds the digest of the whole log.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from takd.errors import InputError
from takd.provenance import canonical_json, file_digest, readable_json

Record = dict[str, Any]

LAST_WRITTEN = ("manifest.json", "scores.json", "likelihoods.json", "judge.json")
"""Records that a stage writes when all else is there."""
PROGRESS = "progress.json"
"""Record of a checkpoint."""
REPORT, DATA_REPORT = "digests.json", "report.json"
RECORDS = (*LAST_WRITTEN, REPORT, DATA_REPORT, PROGRESS)
CARD = "README.md"  # comes into a model's folder later, as a copy of card.md beside it


class DamagedError(InputError):
    """Something on the disk is not what was written there."""


def sealed(record: Mapping[str, Any]) -> Record:
    """A record with a digest of its content, as JSON gives that back."""
    content = json.loads(json.dumps({k: v for k, v in record.items() if k != "digest"}))
    return {**content, "digest": _sha256(canonical_json(content).encode())}


def read_record(path: Path) -> Record:
    """Read a record whose digest is right.

    Raises:
        DamagedError: there is none, or it is not what was written.
    """
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text)
        if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
            record = {}
        # the text, too: the last digits of a number may be others and mean the same
        sound = "digest" in record and sealed(record)["digest"] == record["digest"]
        sound = sound and readable_json(record) == text
    except FileNotFoundError:
        raise DamagedError(f"{path}: not found") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: cannot be read ({error})") from None
    if "digest" not in record:
        raise DamagedError(
            f"{path}: has no digests (a version of takd before these wrote it, or it is damaged)"
        )
    if not sound or not isinstance(record.get("spec", {}), dict):
        raise DamagedError(f"{path}: is not what was written (its own digest differs)")
    return record


def digests(paths: Iterable[Path], base: Path, threads: int = 1) -> dict[str, str]:
    """sha256 of the files at and below `paths`, by their path from `base`."""
    files = sorted(file for path in paths for file in _files(path))
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(file_digest, files))
    names = (file.relative_to(base).as_posix() for file in files)
    return dict(zip(names, found, strict=True))


def _files(path: Path) -> Iterator[Path]:
    """Files that are read with what they lie beside: neither the card nor hidden ones, such as Snakemake's stamp."""
    if not path.is_dir():
        yield path
        return
    for file in path.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not hidden and file.name != CARD and not file.is_dir():
            yield file


def parts(record: Record) -> list[str]:
    """Files and folders beside a record that it speaks of."""
    return list(dict.fromkeys(name.split("/")[0] for name in record["files"]))


def faults(
    path: Path, record: Record, wanted: Collection[str] | None = None, threads: int = 1
) -> list[str]:
    """What is wrong with the files that the record at `path` speaks of, a sentence each.

    Args:
        wanted: the `parts` to look at; all if None.
        threads: that read at once.
    """
    folder = path.parent
    wanted = parts(record) if wanted is None else wanted
    said = {n: d for n, d in record["files"].items() if n.split("/")[0] in wanted}
    found = [
        f"{path}: speaks of no {part}" for part in wanted if part not in parts({"files": said})
    ]
    with ThreadPoolExecutor(threads) as pool:
        found += filter(None, pool.map(lambda name: _fault(folder / name, said[name]), said))
    for part in wanted:
        there = _files(folder / part) if (folder / part).is_dir() else ()
        for file in sorted(there):
            if file.relative_to(folder).as_posix() not in said:
                found.append(f"{file}: was not written there, {path} does not name it")
    return found


def _fault(path: Path, expected: str) -> str | None:
    place = f"{path} (a link to {path.resolve()})" if path.is_symlink() else str(path)
    try:
        found = file_digest(path)
    except FileNotFoundError:
        return f"{place}: is missing"
    except OSError as error:
        return f"{place}: cannot be read ({error.strerror})"
    if found != expected:
        return f"{place}: is not what was written (sha256 {found[:12]}, expected {expected[:12]})"
    return None


def closing_digest(before: bytes, line: Mapping[str, Any]) -> str:
    """What the closing `line` of a log says of the bytes before it and of itself."""
    rest = {name: value for name, value in line.items() if name != "digest"}
    return _sha256(before + json.dumps(rest).encode())


def read_log(path: Path) -> list[Record]:
    """Read the log of a finished stage (`metrics.jsonl`), one dictionary a line.

    Raises:
        DamagedError: there is none, or it is not what was written.
    """
    try:
        text = path.read_bytes()
        lines = [json.loads(line) for line in text.splitlines()]
    except FileNotFoundError:
        raise DamagedError(f"{path}: not found") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: cannot be read ({error})") from None
    last = lines[-1] if lines else None
    end = (json.dumps(last) + "\n").encode()
    before = text.removesuffix(end)
    if not isinstance(last, dict) or last.get("digest") != closing_digest(before, last):
        raise DamagedError(f"{path}: is not what was written (the digest in its last line differs)")
    return lines


def remade(fault: str, record: Path) -> InputError:
    """The sentence for a fault in the results of a stage, with what makes them anew."""
    first = f"delete {record} and start" if record.exists() else "start"
    # without a target, Snakemake makes nothing that a finished report was made from
    return InputError(f"{fault}; {first} snakemake again with {record} as its target.")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
