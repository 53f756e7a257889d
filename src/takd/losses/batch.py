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
        places_n: positions whose next token is a response token, text by text, counted through the
            whole batch, (n,).
        targets_n: those next tokens, (n,).
        counts: their number in each text.
    """

    ids_bt: Tensor
    places_n: Tensor
    targets_n: Tensor
    counts: list[int]

    @classmethod
    def of(cls, texts: Sequence[Pair], device: torch.device) -> "RightPadded":
        """Lay out (prompt, response) pairs.

        After an empty prompt the first response token is not predicted, as nothing precedes it.
        """
        starts = [max(len(prompt), 1) - 1 for prompt, _ in texts]
        ends = [len(prompt) + len(response) for prompt, response in texts]
        ends_b = torch.tensor(ends)[:, None]
        at_t = torch.arange(max(ends))
        ids_bt = torch.zeros(len(texts), max(ends), dtype=torch.long)
        ids_bt[at_t < ends_b] = torch.tensor(
            [token for text in texts for part in text for token in part], dtype=torch.long
        )
        predicts_bt = (at_t >= torch.tensor(starts)[:, None]) & (at_t < ends_b - 1)
        places_n = predicts_bt.flatten().nonzero()[:, 0]
        targets_n = ids_bt.flatten()[places_n + 1]
        counts = [max(end - 1 - start, 0) for start, end in zip(starts, ends, strict=True)]
        ids_bt, places_n, targets_n = moved((ids_bt, places_n, targets_n), device)
        return cls(ids_bt, places_n, targets_n, counts)

    def hidden(self, model: PreTrainedModel) -> Tensor:
        """Compute the hidden states that predict the response tokens, (n, hidden size)."""
        # no position occurs twice: unlike an index, a selection needs no sorting in its backward pass
        return hidden_states(model, self.ids_bt).flatten(0, 1).index_select(0, self.places_n)

    def split(self, values_n: Tensor) -> tuple[Tensor, ...]:
        """Return values of the predicted tokens, (n, ...), text by text."""
        return values_n.split(self.counts)


def moved(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy tensors of one dtype to a device, in one transfer that the host does not wait for.

    Tensors that are on it already are returned as they are.
    """
    if all(tensor.device.type == device.type for tensor in tensors):
        return list(tensors)
    size = sum(tensor.numel() for tensor in tensors)
    flat = torch.empty(size, dtype=tensors[0].dtype, pin_memory=device.type == "cuda")
    torch.cat([tensor.flatten() for tensor in tensors], out=flat)
    parts = flat.to(device, non_blocking=True).split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def spans(
    lengths: Sequence[int], most_rows: int, most_tokens: int = 0, most_padding: int = 0
) -> Iterator[slice]:
    """Divide texts, sorted by length, into micro-batches.

    Args:
        lengths: tokens of each text.
        most_rows: texts in a micro-batch.
        most_tokens: tokens in a micro-batch, padding included; a longer text is one of its own. 0
            for no limit.
        most_padding: tokens of padding that a longer text may add to those before it; 0 for no
            limit.
    """
    start = 0
    for end in range(1, len(lengths) + 1):
        rows = end - start
        if (
            end == len(lengths)
            or rows == most_rows
            or (most_tokens and (rows + 1) * lengths[end] > most_tokens)
            or (most_padding and rows * (lengths[end] - lengths[end - 1]) > most_padding)
        ):
            yield slice(start, end)
            start = end


def by_length(
    texts: Sequence[Pair], size: int, device: torch.device, tokens: int = 0
) -> Iterator[tuple[list[int], RightPadded]]:
    """Yield batches of texts of similar length, which need little padding, and their indices.

    Args:
        size, tokens: most rows and most tokens of a batch, as in `spans`.
    """
    lengths = [len(prompt) + len(response) for prompt, response in texts]
    order = sorted(range(len(texts)), key=lambda i: lengths[i])
    for span in spans([lengths[i] for i in order], size, tokens):
        chosen = order[span]
        yield chosen, RightPadded.of([texts[i] for i in chosen], device)
