"""Records of text files: JSON lines, a JSON array, or CSV, as UTF-8, compressed or not. All values stay as written."""

import bz2
import csv
import datetime
import gzip
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from takd.runtime.errors import InputError
from takd.runtime.files import foreign

Record = Mapping[str, Any]

TABLES = (".csv", ".tsv")
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

# a document may be longer than the 131,072 characters of the default
csv.field_size_limit(sys.maxsize)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield lines without their ends, counted from 1. Only a line feed ends a line; U+2028 and similar are text."""
    for number, text in _decoded(path):
        yield number, text.removesuffix("\n").removesuffix("\r")


def _decoded(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file with their ends, counted from 1; decompressed if the name's ending requires it."""
    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{path}, line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8."
                    ) from None
                yield number, text
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path}: {error}; it has to be a whole compressed file.") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: {reason}; it has to be a readable file.") from None


def kind(value: Any) -> str:
    """Describe the type of a value in words."""
    if value is None:
        return "null"
    if isinstance(value, list) and not value:
        return "an empty list"
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    names |= {int: "a number", float: "a number", bytes: "bytes"}
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return "a date or a time"
    return names.get(type(value), f"a {type(value).__name__}")


def json_lines(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the objects of a file of JSON lines, each with its location; blank lines do not count.

    Raises:
        InputError: a line is no JSON object; names it.
    """
    for number, line in lines(path):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        if number == 1 and (what_it_is := foreign(line.encode())):
            raise InputError(f"{path} {what_it_is}.")
        hint = ""
        if number == 1 and line.lstrip().startswith("["):
            hint = " (the file is one JSON array; write its elements one a line)"
        elif path.suffix in TABLES:
            hint = " (put a CSV file into a folder, and name that with `folder`)"
        record = _parsed(where, line, f"every line has to be one JSON object{hint}")
        yield where, _object(where, record, "line")


def json_file(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield the objects of a file of JSON lines, or of one JSON array."""
    first = next((line for _, line in lines(path) if line.strip()), "")
    if not first.lstrip().startswith("["):
        yield from json_lines(path)
        return
    text = "\n".join(line for _, line in lines(path))
    elements = _parsed(str(path), text, "the file has to be one whole array of objects")
    for number, element in enumerate(elements, start=1):
        where = f"{path}, element {number}"
        yield where, _object(where, element, "element")


def _parsed(where: str, text: str, wanted: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except _RepeatedKeyError as error:
        raise InputError(
            f"{where}: the key {str(error)!r} stands there twice, and only one value would be read; remove the other."
        ) from None
    except json.JSONDecodeError as error:
        what = error.msg
    except ValueError:
        what = "a number has too many digits"
    except RecursionError:
        what = "nested too deeply"
    raise InputError(f"{where}: not valid JSON: {what}; {wanted}.")


class _RepeatedKeyError(Exception):
    pass


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKeyError(next(name for name in names if names.count(name) > 1))
    return found


def _object(where: str, value: Any, unit: str) -> Record:
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: {kind(value)}; every {unit} has to be one JSON object such as"
            ' {"instruction": "...", "input": "...", "output": "..."}.'
        )
    return value


def table(path: Path, separator: str) -> Iterator[tuple[str, Record]]:
    """Yield the rows of a CSV file with a header: every cell is text; cells missing at the end of a row are absent."""
    reader = csv.reader((text for _, text in _decoded(path)), delimiter=separator, strict=True)
    head: list[str] = []
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if not head:
                head = cells
                if twice := next((name for name in head if head.count(name) > 1), None):
                    raise InputError(
                        f"{where}: the column {twice!r} stands there twice; remove or rename one of them."
                    )
            elif len(cells) > len(head):
                raise InputError(
                    f"{where}: this row has {len(cells)} cells, but the first line names {len(head)} columns; put"
                    f" texts that hold {separator!r} in double quotes."
                )
            elif cells:
                yield where, dict(zip(head, cells, strict=False))
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: not valid CSV: {error}; correct the quotes of this row."
        ) from None


def encodable(where: str, key: str, value: Any, wanted: str) -> str:
    """Return a value that is a text and can be written as UTF-8.

    Raises:
        InputError: it is not; `wanted` says what it has to be.
    """
    if not isinstance(value, str):
        raise InputError(f"{where}: '{key}' is {kind(value)}; it {wanted}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: '{key}' holds half of a surrogate pair at character {error.start + 1};"
            " it has to be valid Unicode."
        ) from None
    return value
