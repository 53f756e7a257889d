"""Digests that detect damaged results and checkpoints.

A record (a manifest, the scores of an evaluation, the progress of a checkpoint) holds the sha256 of
each file that it covers, by its path from the record's folder (`files`), and one of its own content
(`digest`). Training logs contain times, which differ between equal runs, so no record covers them:
the last line of a log holds the digest of the whole log.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from takd.runtime.digests import canonical_json, file_digest, readable_json
from takd.runtime.errors import InputError

Record = dict[str, Any]

LAST_WRITTEN = ("manifest.json", "scores.json", "likelihoods.json", "judge.json")
"""Records that a stage writes when all else is there."""
PROGRESS = "progress.json"
"""Record of a checkpoint."""
REPORT, DATA_REPORT = "digests.json", "report.json"
DECISION = "decision.json"
"""Record of whether further training seeds are needed."""
RECORDS = (*LAST_WRITTEN, REPORT, DATA_REPORT, DECISION, PROGRESS)
SPENT = "spent"
"""Key of manifests: FLOPs of a result and of all that it needs, each once, by their folders in the results."""
CARD = "README.md"  # copied into a model's folder later, from the card.md beside it


class DamagedError(InputError):
    """A file is missing or differs from what was written."""


def sealed(record: Mapping[str, Any]) -> Record:
    """Return a record, normalised by a JSON round trip, with a digest of its content."""
    content = json.loads(json.dumps({k: v for k, v in record.items() if k != "digest"}))
    return {**content, "digest": _sha256(canonical_json(content).encode())}


def read_record(path: Path) -> Record:
    """Read a record and check its digest.

    Raises:
        DamagedError: the record is missing or damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text)
        if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
            record = {}
        # compare the text too: a number with damaged last digits may parse to the same value
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
    """Compute the sha256 of all files at and below `paths`, by their path from `base`."""
    files = sorted(file for path in paths for file in _files(path))
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(file_digest, files))
    names = (file.relative_to(base).as_posix() for file in files)
    return dict(zip(names, found, strict=True))


def _files(path: Path) -> Iterator[Path]:
    """Files at and below a path, without the model card and hidden files.

    Snakemake puts a hidden timestamp into output folders.
    """
    if not path.is_dir():
        yield path
        return
    for file in path.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not hidden and file.name != CARD and not file.is_dir():
            yield file


def parts(record: Record) -> list[str]:
    """Return the files and folders beside a record that it covers."""
    return list(dict.fromkeys(name.split("/")[0] for name in record["files"]))


def faults(
    path: Path, record: Record, wanted: Collection[str] | None = None, threads: int = 1
) -> list[str]:
    """Return one sentence for each file that differs from the record at `path`.

    Args:
        wanted: the `parts` to check; all if None.
        threads: files that are read in parallel.
    """
    folder = path.parent
    wanted = parts(record) if wanted is None else wanted
    said = {n: d for n, d in record["files"].items() if n.split("/")[0] in wanted}
    found = [f"{path}: names no {part}" for part in wanted if part not in parts({"files": said})]
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
    """Compute the digest in the closing `line` of a log, over all bytes before it and itself."""
    rest = {name: value for name, value in line.items() if name != "digest"}
    return _sha256(before + json.dumps(rest).encode())


def read_log(path: Path) -> list[Record]:
    """Read the log of a finished stage (`metrics.jsonl`), one dictionary per line.

    Raises:
        DamagedError: the log is missing, or its digest differs.
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
    """Return an error for a fault in a stage's results that explains how to make them again."""
    first = f"delete {record} and start" if record.exists() else "start"
    # without a target, Snakemake does not remake the inputs of a finished report
    return InputError(f"{fault}; {first} snakemake again with {record} as its target.")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
