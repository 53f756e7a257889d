"""Other rows' prompts, under which a teacher reads responses: the control `teacher_prompts: shuffled`.

A teacher that reads a response under another prompt knows all that it knew but the task at hand. The
other prompt has as many tokens as the row's own, so that shapes, positions and costs are the same.
"""

from collections.abc import Sequence

from torch import Tensor

from takd.data.arrow import PreparedRows
from takd.runtime.errors import InputError


def other_prompts(
    prompts: Sequence[Sequence[int]], train: PreparedRows, order: Tensor, draw: int
) -> list[list[int]]:
    """Return the prompt of another training row for each prompt of a draw, with as many tokens.

    A longer prompt is cut on the left, which keeps its end, where the response is asked for; a
    shorter one is filled on the left with prompts of further rows. Training rows lend their prompts,
    in passes in `order`, and not the rows of the batch, which may be one row, or mostly one prompt.

    Args:
        prompts: the prompts of the rows of a draw, as token ids.
        train: rows with the column `prompt_ids`.
        order: permutation of the training rows, (rows,).
        draw: number of the draw; all draws have equally many rows.

    Raises:
        InputError: there is no other prompt among the training rows.
    """

    def other(own: list[int], first: int) -> list[int]:
        found: list[int] = []
        for place in range(first, first + len(order) * (len(own) + 1)):
            lent = list(train[[int(order[place % len(order)])]]["prompt_ids"][0])
            longer = [*lent, *found][-len(own) :]
            # an equal prompt is the row's own, also if a cut made it equal
            if own not in (lent, longer):
                found = longer
            if len(found) == len(own):
                return found
        raise InputError(
            f"teacher_prompts: shuffled needs training rows with different prompts, but all {len(order)} have the same;"
            " give others, or remove the control."
        )

    return [other(list(prompt), draw * len(prompts) + line) for line, prompt in enumerate(prompts)]
