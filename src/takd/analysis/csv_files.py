"""CSV for spreadsheets: no text is read as a formula, and reading a file back gives the written values.

A text that begins with a character that spreadsheets take for a formula (=, +, -, @, their full-width forms, a tab or
a carriage return), or with an apostrophe, gets an apostrophe before it (OWASP, "CSV Injection"). To recover the text,
remove one apostrophe from its beginning. Numbers stay as they are, negative ones too.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

MARK = "'"
FORMULA = tuple("=+-@\t\r\n＝＋－＠" + MARK)


def to_csv(
    names: Sequence[str],
    lines: Iterable[Mapping[str, Any]],
    plain: Callable[[Any], Any] = lambda value: value,
) -> str:
    """Write a header and lines, whose keys are `names`; None becomes an empty cell.

    Args:
        plain: converts a value that is not text before it is written.
    """
    rows = [[_cell(line.get(name), plain) for name in names] for line in lines]
    return "".join(map(_line, [[safe(name) for name in names], *rows]))


def _line(cells: Sequence[Any]) -> str:
    file = io.StringIO()
    # with CRLF as line end, cells that contain either character are quoted
    csv.writer(file, lineterminator="\r\n").writerow(cells)
    return file.getvalue().removesuffix("\r\n") + "\n"


def safe(text: str) -> str:
    """Escape a text for a cell."""
    return f"{MARK}{text}" if text.startswith(FORMULA) else text


def _cell(value: Any, plain: Callable[[Any], Any]) -> Any:
    return safe(value) if isinstance(value, str) else plain(value)
