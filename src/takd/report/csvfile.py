"""CSV for spreadsheets: no text is a formula there, and reading a file back gives what was written.

A text that begins with what a spreadsheet takes for a formula (=, +, -, @, their full-width forms, a tab or a carriage
return), or with an apostrophe, gets an apostrophe before it (OWASP, "CSV Injection"). Whoever reads the file takes one
apostrophe from the beginning of a text that has one. Numbers stay as they are, negative ones too.
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
    """A head and lines, whose keys are `names`; nothing for None.

    Args:
        plain: how a value that is no text is written.
    """
    rows = [[_cell(line.get(name), plain) for name in names] for line in lines]
    return "".join(map(_line, [[safe(name) for name in names], *rows]))


def _line(cells: Sequence[Any]) -> str:
    file = io.StringIO()
    # with both characters of this end, cells that hold either are quoted
    csv.writer(file, lineterminator="\r\n").writerow(cells)
    return file.getvalue().removesuffix("\r\n") + "\n"


def safe(text: str) -> str:
    """A text as it stands in a cell."""
    return f"{MARK}{text}" if text.startswith(FORMULA) else text


def _cell(value: Any, plain: Callable[[Any], Any]) -> Any:
    return safe(value) if isinstance(value, str) else plain(value)
