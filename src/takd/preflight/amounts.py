"""Validation of the numbers that a profile gives to jobs, such as `micro_batch`, before planning."""

import math
from collections.abc import Iterable
from typing import Any

from takd.runtime.errors import InputError

LEAST = {**dict.fromkeys(("processes", "nodes", "micro_batch", "threads"), 1), "max_tokens": 0}
SWITCHES = ("gradient_checkpointing", "compile", "deterministic")
# may have units or be computed; Snakemake parses these, but accepts 0 and some words
AMOUNTS = ("runtime", "mem_mb")


def wrong(name: str, value: Any) -> str | None:
    """Describe the valid values of a resource if `value` is invalid; None if it is valid."""
    number = _number(value)
    if name in LEAST:
        fine = number is not None and number >= LEAST[name] and number == int(number)
        return None if fine else f"a whole number of at least {LEAST[name]}"
    if name in SWITCHES:
        return None if number in (0, 1) else "0 or 1"
    if name in AMOUNTS and number is not None and number <= 0:
        return "a finite number greater than 0"
    return None


def _number(value: Any) -> float | None:
    """Parse a number or a numeric text; values that are not finite become -1, which is never valid."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else -1.0


def check_profile(settings: Any) -> None:
    """Raise InputError for all invalid numbers in set-resources and set-threads, one per line.

    Args:
        settings: Snakemake's `resource_settings`. Values that it computes for each attempt are checked once the jobs
            are known.
    """
    threads = {rule: {"threads": number} for rule, number in settings.overwrite_threads.items()}
    tables = {"set-resources": settings.overwrite_resources, "set-threads": threads}
    check(
        (f"profile ({key}): {rule}", name, getattr(value, "raw", value))
        for key, rules in tables.items()
        for rule, given in rules.items()
        for name, value in given.items()
        if not _computed(value)
    )


def _computed(value: Any) -> bool:
    return hasattr(value, "is_evaluable") and value.is_evaluable() and _number(value.raw) is None


def check(given: Iterable[tuple[str, str, Any]]) -> None:
    """Raise InputError for all invalid numbers, one per line.

    Args:
        given: where it is given, the name of the resource, and its value.
    """
    lines = [
        f"{where} gets {name} = {value}, but it must be {right}."
        for where, name, value in given
        if (right := wrong(name, value))
    ]
    if lines:
        raise InputError(*dict.fromkeys(lines))
