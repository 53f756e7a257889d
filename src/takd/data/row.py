"""One row of instruction data, and batches of a stream."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

T = TypeVar("T")

NAMED = 10  # rows of which the numbers are kept


class Row(NamedTuple):
    """One instruction with its references, as in the source."""

    number: int  # position in the source, from 0; blank lines do not count
    instruction: str
    input: str  # empty where the row has none
    references: tuple[str, ...]  # at least one; any may be empty
    stratum: str = ""  # scores are broken down by it; empty where the source names none

    @property
    def prompt(self) -> tuple[str, str]:
        """Instruction and input; rows are duplicates if these are equal, character by character."""
        return self.instruction, self.input


class Counts:
    """Counts of rows by a reason, with the numbers of the first ones."""

    def __init__(self, *reasons: str) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(reasons, 0))
        self.named: dict[str, list[int]] = {}

    def count(self, reason: str, number: int) -> None:
        """Count a row, and keep its number if it is one of the first."""
        self.counts[reason] += 1
        numbers = self.named.setdefault(reason, [])
        if len(numbers) < NAMED:
            numbers.append(number)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut a stream into lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
