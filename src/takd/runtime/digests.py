"""Digests of files and settings, and the forms in which settings are compared and stored."""

import contextlib
import functools
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from takd.runtime.errors import InputError


def canonical_json(value: Any) -> str:
    """Serialise to JSON with sorted keys and no blanks, so that equal settings give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def readable_json(value: Any) -> str:
    """Serialise to JSON as it is stored in files: sorted keys, one per line."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def short_digest(*parts: str) -> str:
    """Return the first 16 hexadecimal digits of the sha256 of zero-terminated parts."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() + b"\0")
    return total.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SMALL = 16 * 2**20  # bytes up to which a source is hashed at each start
MANY = 2**30  # bytes above which reading a file is announced
SETTLED = 2.0  # age in seconds of a change after which the next one has another time stamp
KNOWN = Path(".snakemake/takd-digests")  # of larger sources
PLACES = ("json", "text", "folder", "gguf", "url", "hub", "revision", "file")


def without_places(value: Any) -> Any:
    """Remove, at any depth, the locations of data and weights that have a `sha256`.

    The digest identifies a source, so the same file in another location is the same source.
    """
    if isinstance(value, Mapping):
        left_out = PLACES if "sha256" in value else ()
        kept = {k: without_places(v) for k, v in value.items() if k not in left_out}
        # one form for a single file, whether it is downloaded or local
        return {**kept, "sha256": [kept["sha256"]]} if isinstance(kept.get("sha256"), str) else kept
    return [without_places(each) for each in value] if isinstance(value, list) else value


def leaves(value: Any, above: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted keys: `{"a": {"b": 1}}` gives `{"a.b": 1}`.

    An empty mapping below the top is a value.
    """
    if not isinstance(value, Mapping) or (above and not value):
        return {above: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= leaves(item, f"{above}.{key}" if above else str(key))
    return found


def source_digest(path: Path) -> str:
    """Return the sha256 of a file that an experiment reads.

    Digests of large files are cached on disk and recomputed when size, time or inode change, since
    each job needs them.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        status = path.stat()
        known = (str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)
        return _source_digest(path, known)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; it has to be a readable file.") from None


@functools.cache
def _source_digest(path: Path, known: tuple[str, int, int, int]) -> str:
    _, size, changed, _ = known
    if size <= SMALL:
        return file_digest(path)
    entry = KNOWN / short_digest(*map(str, known))
    with contextlib.suppress(OSError):
        text = entry.read_text(encoding="ascii")
        if re.fullmatch(r"[0-9a-f]{64}", text):
            return text
    if size > MANY:
        print(f"Reading {path} for its digest ({size / 1e9:.1f} GB) ...", file=sys.stderr)
    digest = file_digest(path)
    if time.time() - changed / 1e9 > SETTLED:
        # no space or no permission: the file is hashed again next time
        with contextlib.suppress(OSError):
            KNOWN.mkdir(parents=True, exist_ok=True)
            partial = entry.with_name(f"{entry.name}.{os.getpid()}")
            partial.write_text(digest, encoding="ascii")
            partial.replace(entry)
    return digest
