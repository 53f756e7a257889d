"""One row of instruction data, and batches of a stream."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

T = TypeVar("T")


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


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut a stream into lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
