"""Validation of the numbers that a profile gives to jobs, such as `micro_batch`, before planning."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from takd.runtime.errors import InputError

COUNTS = ("processes", "nodes", "micro_batch", "threads")
SWITCHES = ("gradient_checkpointing", "compile", "deterministic")
# may have units or be computed; Snakemake parses these, but accepts 0 and some words
AMOUNTS = ("runtime", "mem_mb")


def wrong(name: str, value: Any) -> str | None:
    """Describe the valid values of a resource if `value` is invalid; None if it is valid."""
    number = _number(value)
    if name in COUNTS:
        fine = number is not None and number >= 1 and number == int(number)
        return None if fine else "a whole number of at least 1"
    if name in SWITCHES:
        return None if number in (0, 1) else "0 or 1"
    if name in AMOUNTS:
        return None if number is None or number > 0 else "a finite number greater than 0"
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
        settings: Snakemake's `resource_settings`. Values computed per attempt are checked once the jobs are known.
    """
    given = [
        ("set-resources", rule, name, resource)
        for rule, resources in settings.overwrite_resources.items()
        for name, resource in resources.items()
    ]
    given += [
        ("set-threads", rule, "threads", value)
        for rule, value in settings.overwrite_threads.items()
    ]
    refuse(
        f"profile ({key}): {rule} gets {name} = {value}, but it must be {right}."
        for key, rule, name, resource in given
        for value in [_raw(resource)]
        if not _computed(resource, value) and (right := wrong(name, value))
    )


def _raw(resource: Any) -> Any:
    return getattr(resource, "raw", resource)


def _computed(resource: Any, value: Any) -> bool:
    evaluable = getattr(resource, "is_evaluable", None)
    return evaluable is not None and evaluable() and _number(value) is None


def check_jobs(found: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise InputError for all invalid numbers that jobs, given by their rule, get; one per line."""
    refuse(
        f"profile: {rule} gets {name} = {resources[name]}, but it must be {right}."
        for rule, resources in found
        for name in (*COUNTS, *SWITCHES, *AMOUNTS)
        if name in resources and (right := wrong(name, resources[name]))
    )


def refuse(lines: Iterable[str]) -> None:
    """Raise InputError with the distinct lines, if there are any."""
    if told := list(dict.fromkeys(lines)):
        raise InputError(*told)
