"""Filter the rows of a source by the length of their answers, and check count and digest of the rows.

Counts and digests depend on the rows, not on how they are written: two files with the same rows, one with further keys
or other escapes, have the same digest.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from takd.data.row import Row
from takd.runtime.errors import InputError


def words(row: Row) -> int:
    """Number of words (parts between white space) in a row's first non-blank reference; 0 without one.

    Punctuation counts as a word only if it stands alone. Training uses this reference too; the others may be shorter or
    longer.
    """
    return next((len(text.split()) for text in row.references if text.strip()), 0)


def keep(
    source: Mapping[str, Any], rows: Iterable[Row], dropped: Callable[[Row], None] | None
) -> Iterator[Row]:
    """Yield the rows whose answer has `min_response_words` to `max_response_words` words, inclusive, or that have none.

    Args:
        dropped: called with each other row.
    """
    least, most = source.get("min_response_words"), source.get("max_response_words")
    for row in rows:
        if not row.references or (least or 0) <= words(row) <= (math.inf if most is None else most):
            yield row
        elif dropped:
            dropped(row)


def describe(source: Mapping[str, Any]) -> str:
    """Describe the accepted lengths in words; empty if all are accepted."""
    least, most = source.get("min_response_words"), source.get("max_response_words")
    if most is None:
        return "" if least is None else f"answers of {least} words or more"
    return f"answers of {least} to {most} words" if least else f"answers of up to {most} words"


class Digest:
    """Count and sha256 of rows, updated one row at a time.

    A row is hashed as the JSON line `[instruction, input, [reference, ...]]`, without blanks and with all non-ASCII
    characters escaped; the earlier messages of a conversation, `[[role, text], ...]`, stand behind the references.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sha256 = hashlib.sha256()

    def add(self, row: Row) -> None:
        """Add a row."""
        self.count += 1
        fields = [
            row.instruction,
            row.input,
            list(row.references),
            *([row.history] * bool(row.history)),
        ]
        self._sha256.update(json.dumps(fields, separators=(",", ":")).encode() + b"\n")

    @property
    def sha256(self) -> str:
        """Digest of the rows so far, 64 hexadecimal digits."""
        return self._sha256.hexdigest()


def expected(source: Mapping[str, Any], name: str, rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the same rows; raise InputError at the end if `expect_rows` or `rows_sha256` does not match."""
    count, digest = source.get("expect_rows"), source.get("rows_sha256")
    found = Digest()
    for row in rows:
        if count is not None or digest is not None:
            found.add(row)
        yield row
    if count not in (None, found.count):
        raise InputError(
            f"{name}: there are {found.count} rows, but `expect_rows` of the experiment says {count}: get the file"
            " that is meant, or correct the number."
        )
    if digest not in (None, found.sha256):
        kept = "; what was fetched stays in the hub's cache (HF_HOME)" if "hub" in source else ""
        raise InputError(
            f"{name}: the sha256 of its rows is {found.sha256}, but `rows_sha256` of the experiment says {digest}: get"
            f" the rows that are meant{' (another `revision`)' * bool(kept)}, or correct it{kept}."
        )
