"""Formatting of small parts of sentences."""

from collections.abc import Iterable
from typing import Any

from takd.report.statistics import number


def listed(items: Iterable[Any]) -> str:
    """Join items: `a, b and c`."""
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


def counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def titled(role: str, names: Iterable[Any]) -> str:
    """Name models with their role, `teacher XL`, but avoid `teacher teacher` where name and role are equal."""
    text = listed(names)
    return text if text.split(" ")[0] == role else f"{role} {text}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def span(values: Iterable[float | None], digits: int) -> str:
    """Format a range: `0.5 to 0.8`; empty if nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = (number(end, digits=digits) for end in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"
