"""Small parts of sentences."""

from collections.abc import Iterable
from typing import Any

from takd.report.statistics import number


def listed(items: Iterable[Any]) -> str:
    """`a, b and c`."""
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


def counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def titled(role: str, names: Iterable[Any]) -> str:
    """`teacher XL`, and no `teacher teacher` where a model has the name of what it is."""
    text = listed(names)
    return text if text.split(" ")[0] == role else f"{role} {text}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def span(values: Iterable[float | None], digits: int) -> str:
    """`0.5 to 0.8`; empty if nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = (number(end, digits=digits) for end in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"
