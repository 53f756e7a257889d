"""Batches of prompts and responses, and the positions that predict response tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from takd.models.causal_lm import hidden_states


@dataclass
class Layout:
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
    def of(
        cls, texts: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device
    ) -> "Layout":
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
