"""Few combinations of many settings: each value of a setting meets each value of every other one at least once."""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]  # axis -> value
Pair = frozenset[tuple[str, Any]]


def pairs(row: Row) -> set[Pair]:
    """All that meet in a row, or in a part of one."""
    return {frozenset(two) for two in itertools.combinations(row.items(), 2)}


def all_pairs(axes: Mapping[str, Sequence[Any]], impossible: Iterable[Row] = ()) -> list[Pair]:
    """Each value of an axis with each of every other one, but the `impossible` ones."""
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
    """Rows in which all pairs of values meet but the `impossible` ones; always the same for the same arguments.

    Greedy: a row begins with a pair that has not met yet, and takes of each other axis the value that brings most
    such pairs, among equals the rarest so far that is not `costly`.

    Args:
        first: rows to begin with, whole ones.
        costly: axes and values.
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
