"""One row of instruction data or of a conversation, and batches of a stream."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

T = TypeVar("T")

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
Message = tuple[str, str]  # role (one of the three) and text


class Row(NamedTuple):
    """One prompt with its references, as in the source.

    Of a conversation, the instruction is the last user message, the reference its answer.
    """

    number: int  # position in the source, from 0; blank lines do not count
    instruction: str
    input: str  # empty where the row has none
    references: tuple[str, ...]  # any may be empty; none where the row is a prompt alone
    stratum: str = ""  # scores are broken down by it; empty where the source names none
    history: tuple[Message, ...] = ()  # the messages of a conversation before the instruction
    later: int = 0  # answers of the conversation that follow this one

    @property
    def prompt(self) -> tuple[str, ...]:
        """Instruction, input and earlier messages; rows are duplicates if these are equal, character by character."""
        return self.instruction, self.input, *(text for message in self.history for text in message)

    @property
    def id(self) -> int:
        """The row's number, and for an earlier answer of its conversation a number of its own: a key of noise."""
        return self.number + self.later * 2**24

    def turns(self) -> Iterator["Row"]:
        """Yield a row for each answer of a conversation, after all that precedes it; the last one is the row itself."""
        answers = [at for at, (role, _) in enumerate(self.history) if role == ASSISTANT]
        for number, at in enumerate(answers):
            yield self._replace(
                instruction=self.history[at - 1][1],
                references=(self.history[at][1],),
                history=self.history[: at - 1],
                later=len(answers) - number,
            )
        yield self


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut a stream into lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
