"""Which rows of a source are taken, by the length of their answers, and whether these are the rows that are meant.

Counts and digests are of what was read, not of how it was written: two files with the same rows, one with further keys
or other escapes, have the same digest.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from takd.errors import InputError

if TYPE_CHECKING:
    from takd.data.sources import Row

KEYS = ("min_response_words", "max_response_words", "expect_rows", "rows_sha256")


def words(row: "Row") -> int:
    """Length of a row's answer: what white space parts in its first reference that is not blank; 0 without one.

    Punctuation that stands alone is a word, that which clings to one is none. Training learns from this reference too;
    the others may be shorter or longer.
    """
    return next((len(text.split()) for text in row.references if text.strip()), 0)


def keep(
    source: Mapping[str, Any], rows: Iterable["Row"], dropped: Callable[["Row"], None] | None
) -> Iterator["Row"]:
    """The rows with an answer of `min_response_words` to `max_response_words`, both included.

    Args:
        dropped: told of each other row.
    """
    least, most = source.get("min_response_words"), source.get("max_response_words")
    if least is None and most is None:
        yield from rows
        return
    for row in rows:
        length = words(row)
        if (least is None or length >= least) and (most is None or length <= most):
            yield row
        elif dropped:
            dropped(row)


def describe(source: Mapping[str, Any]) -> str:
    """The lengths that are taken, in words; empty where all are."""
    least, most = source.get("min_response_words"), source.get("max_response_words")
    if least is None and most is None:
        return ""
    if most is None:
        return f"answers of {least} words or more"
    return f"answers of {least} to {most} words" if least else f"answers of up to {most} words"


class Digest:
    """Count and sha256 of rows, told one by one.

    A row counts as the line of JSON `[instruction, input, [reference, ...]]`, without blanks and with all that is not
    ASCII escaped.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sha256 = hashlib.sha256()

    def add(self, row: "Row") -> None:
        """One more row."""
        self.count += 1
        fields = [row.instruction, row.input, list(row.references)]
        self._sha256.update(json.dumps(fields, separators=(",", ":")).encode() + b"\n")

    @property
    def sha256(self) -> str:
        """Of the rows so far, 64 hexadecimal digits."""
        return self._sha256.hexdigest()


def expected(source: Mapping[str, Any], name: str, rows: Iterable["Row"]) -> Iterator["Row"]:
    """The same rows; after the last, InputError if they are not `expect_rows`, or not those of `rows_sha256`.

    Args:
        name: of the source, for the message.
    """
    count, digest = source.get("expect_rows"), source.get("rows_sha256")
    if count is None and digest is None:
        yield from rows
        return
    found = Digest()
    for row in rows:
        found.add(row)
        yield row
    if count is not None and found.count != count:
        raise InputError(
            f"{name}: there are {found.count} rows, but `expect_rows` of the experiment says {count}: get the file"
            " that is meant, or correct the number."
        )
    if digest is not None and found.sha256 != digest:
        raise InputError(
            f"{name}: the sha256 of its rows is {found.sha256}, but `rows_sha256` of the experiment says {digest}: get"
            " the rows that are meant, or correct it."
        )
