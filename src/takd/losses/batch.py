"""Batches of prompts and responses, padded on the right, and the positions that predict tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from takd.models.causal_lm import hidden_states

Pair = tuple[Sequence[int], Sequence[int]]  # prompt and response, as token ids


@dataclass
class RightPadded:
    """A batch padded on the right, with the positions that predict response tokens.

    Attributes:
        ids_bt: token ids, (batch, length).
        rows_n, columns_n: positions whose next token is a response token, text by text, (n,).
        targets_n: those next tokens, (n,).
    """

    ids_bt: Tensor
    rows_n: Tensor
    columns_n: Tensor
    targets_n: Tensor

    @classmethod
    def of(cls, texts: Sequence[Pair], device: torch.device) -> "RightPadded":
        """Lay out (prompt, response) pairs.

        After an empty prompt the first response token is not predicted, as nothing precedes it.
        """
        width = max(len(prompt) + len(response) for prompt, response in texts)
        ids = torch.zeros(len(texts), width, dtype=torch.long)
        where: list[tuple[int, int]] = []
        for index, (prompt, response) in enumerate(texts):
            end = len(prompt) + len(response)
            ids[index, :end] = torch.tensor([*prompt, *response])
            where += [(index, column - 1) for column in range(max(len(prompt), 1), end)]
        rows_n, columns_n = torch.tensor(where, dtype=torch.long).reshape(-1, 2).unbind(-1)
        targets_n = ids[rows_n, columns_n + 1]
        return cls(*(t.to(device) for t in (ids, rows_n, columns_n, targets_n)))

    def hidden(self, model: PreTrainedModel) -> Tensor:
        """Compute the hidden states that predict the response tokens, (n, hidden size)."""
        return hidden_states(model, self.ids_bt)[self.rows_n, self.columns_n]

    def split(self, values_n: Tensor) -> tuple[Tensor, ...]:
        """Move values of the predicted tokens, (n, ...), to the CPU; return them text by text."""
        return values_n.cpu().split(self.rows_n.bincount(minlength=len(self.ids_bt)).tolist())


def by_length(
    texts: Sequence[Pair], size: int, device: torch.device
) -> Iterator[tuple[list[int], RightPadded]]:
    """Yield batches of texts of similar length, which need little padding, and their indices."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i][0]) + len(texts[i][1]))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield chosen, RightPadded.of([texts[i] for i in chosen], device)
