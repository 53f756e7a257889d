"""Numbers that a profile gives to jobs, such as `micro_batch`: refused before anything is planned with them."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from takd.errors import InputError

COUNTS = ("processes", "nodes", "micro_batch", "threads")
SWITCHES = ("gradient_checkpointing", "compile", "deterministic")
# with units, or computed; Snakemake reads these, and lets 0 and some words through
AMOUNTS = ("runtime", "mem_mb")


def wrong(name: str, value: Any) -> str | None:
    """What would be right for a resource; None where the value is."""
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
    """A number, or a text that is one; what is not finite counts as -1, since it never is right."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else -1.0


def check_profile(settings: Any) -> None:
    """Raise InputError for all wrong numbers in set-resources and set-threads, a line each.

    Args:
        settings: Snakemake's `resource_settings`. What is computed for each attempt is looked at when jobs are known.
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
    """Raise InputError for all wrong numbers that jobs, by their rule, get; a line each."""
    refuse(
        f"profile: {rule} gets {name} = {resources[name]}, but it must be {right}."
        for rule, resources in found
        for name in (*COUNTS, *SWITCHES, *AMOUNTS)
        if name in resources and (right := wrong(name, resources[name]))
    )


def refuse(lines: Iterable[str]) -> None:
    """Raise InputError for lines, if there are any, each once."""
    if told := list(dict.fromkeys(lines)):
        raise InputError(*told)
