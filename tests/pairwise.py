"""Pairwise test design: few combinations of settings that cover each pair of values of different settings."""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]  # axis -> value
Pair = frozenset[tuple[str, Any]]


def pairs(row: Row) -> set[Pair]:
    """All pairs of values in a row, or in a part of one."""
    return {frozenset(two) for two in itertools.combinations(row.items(), 2)}


def all_pairs(axes: Mapping[str, Sequence[Any]], impossible: Iterable[Row] = ()) -> list[Pair]:
    """All pairs of values of different axes, except the `impossible` ones."""
    never = {pair for row in impossible for pair in pairs(row)}
    items = [[(axis, value) for value in values] for axis, values in axes.items()]
    met = itertools.chain.from_iterable(
        itertools.product(*two) for two in itertools.combinations(items, 2)
    )
    return [pair for pair in map(frozenset, met) if pair not in never]


def covering(
    axes: Mapping[str, Sequence[Any]],
    first: Iterable[Row] = (),
    impossible: Iterable[Row] = (),
    costly: Collection[tuple[str, Any]] = (),
) -> list[Row]:
    """Build rows that cover all possible pairs of values; deterministic.

    Greedy: a row starts with an uncovered pair, and takes for each other axis the value that covers most further pairs;
    ties go to values that are not `costly`, then to the rarest so far.

    Args:
        first: complete rows to start with.
        impossible: partial rows whose pairs must not occur.
        costly: pairs of axis and value.
    """
    never = {pair for row in impossible for pair in pairs(row)}
    missing = dict.fromkeys(all_pairs(axes, impossible))
    rows: list[Row] = []
    used: Counter[tuple[str, Any]] = Counter()

    def add(row: Row) -> None:
        rows.append({axis: row[axis] for axis in axes})
        used.update(row.items())
        for pair in pairs(row):
            missing.pop(pair, None)

    for row in first:
        add(row)
    while missing:
        row = dict(next(iter(missing)))
        for axis in [axis for axis in axes if axis not in row]:
            longer = [{**row, axis: value} for value in axes[axis]]
            possible = [one for one in longer if not pairs(one) & never]

            def worth(one: Row, axis: str = axis) -> tuple[int, bool, int]:
                item = axis, one[axis]
                return len(pairs(one) & missing.keys()), item not in costly, -used[item]

            row = max(possible, key=worth)
        add(row)
    return rows
