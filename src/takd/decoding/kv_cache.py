"""KV cache for rows of different lengths that are decoded together."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from takd.models.causal_lm import decoding_mask, hidden_states
from takd.models.logits import lowered_type

GROWTH = 64  # columns allocated ahead, so that few steps have to copy the cache
# most tokens, padding included, in one pass over prompts
READ_AT_ONCE = {"cpu": 1024, "cuda": 16384}


class RaggedCache(Cache):
    """KV cache in which each row starts at column 0 and grows at its own end.

    Rows need no padding on the left, a finished row can be replaced by another prompt at once, and
    a step copies only the keys and values of the new tokens.

    Attributes:
        lengths: number of tokens in each row; 0 for a free row.
    """

    def __init__(self, model: PreTrainedModel, rows: int) -> None:
        super().__init__(layers=[])
        self.model = model
        self.lengths = [0] * rows
        # lengths and used rows again, on the device: a step needs no transfer from the host
        self._lengths_b = torch.zeros(rows, dtype=torch.long, device=model.device)
        self._taken_b = torch.zeros_like(self._lengths_b)
        self._rows_b = torch.arange(rows, device=model.device)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def read(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        """Read whole prompts into free rows; return last hidden states, (prompts, hidden size).

        Prompts are padded on the right, where causal attention never reaches the padding, so no
        attention mask is needed. Equal prompts are read once.
        """
        device = self.model.device
        # sorted by length, so that prompts that are read together need little padding
        different = sorted({tuple(prompt) for prompt in prompts}, key=len)
        places = {prompt: place for place, prompt in enumerate(different)}
        source = torch.tensor([places[tuple(prompt)] for prompt in prompts], device=device)
        target = torch.tensor(rows, device=device)
        hidden = []
        most = READ_AT_ONCE.get(device.type, READ_AT_ONCE["cuda"])
        for start, end in _pieces(list(map(len, different)), most):
            piece = different[start:end]
            width = len(piece[-1])
            ids = [[*prompt, *prompt[-1:] * (width - len(prompt))] for prompt in piece]
            read = DynamicCache()
            hidden_bth = hidden_states(self.model, torch.tensor(ids, device=device), cache=read)
            lasts = torch.tensor([len(prompt) - 1 for prompt in piece], device=device)
            hidden.append(hidden_bth[torch.arange(len(piece), device=device), lasts])
            layers: list[Any] = read.layers
            self._make_room(width, layers)
            # each row gets the keys of its prompt's copy in this piece. Columns beyond the prompt's
            # end receive those of the padding: the mask hides them until new tokens overwrite them
            here = (source >= start) & (source < end)
            for layer, keys, values in zip(layers, self._keys, self._values, strict=True):
                chosen = source[here] - start
                keys[target[here], :, :width] = layer.keys[chosen].to(keys.dtype)
                values[target[here], :, :width] = layer.values[chosen].to(values.dtype)
        for row, prompt in zip(rows, prompts, strict=True):
            self.lengths[row] = len(prompt)
        self._lengths_b[target] = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self._taken_b[target] = 1
        return torch.cat(hidden)[source]

    def step(self, tokens_b: Tensor) -> Tensor:
        """Append one token to each used row; return the last hidden states, (rows, hidden size)."""
        self._make_room(max(self.lengths) + 1)
        # each row writes at its own column and has its own position: the mask hides what lies
        # beyond its end, which are other rows' columns, padding, or keys of an earlier response
        hidden = hidden_states(
            self.model,
            tokens_b[:, None],
            mask=decoding_mask(self.model, self._lengths_b, max(self.lengths) + 1),
            positions_bt=self._lengths_b[:, None],
            cache=self,
        )
        # free rows take part to keep the batch's shape; they stay at length 0, and their column 0
        # is overwritten by the next prompt
        self.lengths = [length + 1 if length else 0 for length in self.lengths]
        self._lengths_b += self._taken_b
        return hidden[:, 0]

    def free(self, rows: Sequence[int]) -> None:
        """Mark rows as free."""
        target = torch.tensor(rows, device=self._lengths_b.device)
        for row in rows:
            self.lengths[row] = 0
        self._lengths_b[target], self._taken_b[target] = 0, 0

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but the given ones."""
        source = torch.tensor(rows, device=self._lengths_b.device)
        self.lengths = [self.lengths[row] for row in rows]
        self._lengths_b, self._taken_b = self._lengths_b[source], self._taken_b[source]
        self._rows_b = self._rows_b[: len(rows)]
        columns = max(self.lengths) + GROWTH
        for held in (self._keys, self._values):
            for layer, tensor in enumerate(held):
                held[layer] = tensor[:, :, :columns][source]

    def _make_room(self, columns: int, like: Sequence[Any] = ()) -> None:
        if not self._keys:
            # in the dtype that attention computes in: under autocast, rotary embeddings leave keys
            # in float32
            lowered = lowered_type(self.model)
            for layer in like:
                for held, tensor in ((self._keys, layer.keys), (self._values, layer.values)):
                    _, heads, _, size = tensor.shape
                    shape = len(self.lengths), heads, columns + GROWTH, size
                    held.append(tensor.new_zeros(shape, dtype=lowered or tensor.dtype))
        missing = columns - self._keys[0].shape[2]
        if missing > 0:
            for held in (self._keys, self._values):
                for index, tensor in enumerate(held):
                    rows, heads, _, size = tensor.shape
                    more = tensor.new_zeros(rows, heads, missing + GROWTH, size)
                    held[index] = torch.cat([tensor, more], 2)

    # the attention layers call the methods below, in `step` only: `read` uses another cache

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token per row; return keys and values up to the end of the longest row."""
        columns = max(self.lengths) + 1
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[self._rows_b, :, self._lengths_b] = key_states[:, :, 0].to(keys.dtype)
        values[self._rows_b, :, self._lengths_b] = value_states[:, :, 0].to(values.dtype)
        return keys[:, :, :columns], values[:, :, :columns]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens in the longest row."""
        return max(self.lengths)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Columns that attention sees, and the first of them."""
        return max(self.lengths) + query_length, 0


def _pieces(lengths: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Split sorted lengths into spans of at most `most` tokens, padding included.

    A single longer text is a span of its own.
    """
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - start) * lengths[end] > most:
            yield start, end
            start = end
