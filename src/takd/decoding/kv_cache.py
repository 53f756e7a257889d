"""KV cache for rows of different lengths that are decoded together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from takd.decoding.amounts import LANES, PASS_TOKENS, READ_AT_ONCE, room
from takd.decoding.replay import Replayed
from takd.losses.batch import spans
from takd.models.causal_lm import DecodingMasks, hidden_states
from takd.models.logits import lowered_type


class RaggedCache(Cache):
    """KV cache in which each row starts at column 0 and grows at its own end.

    Rows need no padding on the left, a finished row can be replaced by another prompt at once, and
    a step copies only the keys and values of the new tokens. The tensors of a step keep their
    addresses as long as no text needs more columns than were asked for.

    Args:
        rows: most rows that are decoded together.
        columns: tokens of the longest text; more are allocated when needed.
        ahead: steps that `prepare` prepares together.

    Attributes:
        lengths: number of tokens in each row; 0 for a free row.
        lowered: the dtype to which autocast casts the model's products; None if it does not.
    """

    def __init__(self, model: PreTrainedModel, rows: int, columns: int = 0, ahead: int = 1) -> None:
        super().__init__(layers=[])
        self.model, self.most, self.ahead, self.rows = model, columns, ahead, rows
        self.lengths: list[int] = []
        # the last column that these steps write to, and the columns that their attention sees
        self._last = self.columns = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        # keys and values of the rows in use, and of these the columns that attention sees
        self._used: list[tuple[Tensor, Tensor]] = []
        self._views: list[tuple[Tensor, Tensor]] = []
        self._masks: DecodingMasks | None = None
        self._mask: Any = None
        self._steps: dict[int, _Step] = {}
        self._step = _Step(0, 0, model.device)
        self._replayed = Replayed()
        self._addresses: list[int] = []
        # asked for in each step: transformers would look through the parameters
        self.device = model.device
        self.restart()

    def restart(self) -> bool:
        """Make all rows free, for other texts; return whether weights lie elsewhere than before."""
        self.lengths = [0] * self.rows
        self.lowered = lowered_type(self.model)
        self._resized()
        addresses = [parameter.data_ptr() for parameter in self.model.parameters()]
        moved, self._addresses = addresses != self._addresses, addresses
        if moved:
            self._replayed.forget()
        return moved

    def bytes(self) -> int:
        """Return the bytes of keys and values, and of recorded steps."""
        held = sum(tensor.nbytes for tensor in (*self._keys, *self._values))
        return held + self._replayed.bytes()

    def _resized(self) -> None:
        rows = len(self.lengths)
        if rows not in self._steps:
            self._steps[rows] = _Step(rows, self.ahead, self.device)
        self._step = self._steps[rows]

    # reading prompts

    def read(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        """Read whole prompts into free rows; return last hidden states, (prompts, hidden size).

        Prompts are padded on the right, where causal attention never reaches the padding, so no
        attention mask is needed. Equal prompts are read once.
        """
        device = self.device
        # sorted by length, so that prompts that are read together need little padding
        different = sorted({tuple(prompt) for prompt in prompts}, key=len)
        places = {prompt: place for place, prompt in enumerate(different)}
        source = [places[tuple(prompt)] for prompt in prompts]
        lasts = torch.tensor([len(prompt) - 1 for prompt in different], device=device)
        hidden, widths = [], list(map(len, different))
        kind = "cpu" if device.type == "cpu" else "cuda"
        if kind == "cpu":
            widths = [min(-(-width // LANES) * LANES, widths[-1]) for width in widths]
        for span in spans(widths, len(different), READ_AT_ONCE[kind], PASS_TOKENS[kind]):
            start, end, piece = span.start, span.stop, different[span]
            width = widths[end - 1]
            ids = [[*prompt, *prompt[-1:] * (width - len(prompt))] for prompt in piece]
            read = DynamicCache()
            hidden_bth = hidden_states(self.model, torch.tensor(ids, device=device), cache=read)
            hidden.append(hidden_bth[torch.arange(end - start, device=device), lasts[start:end]])
            layers: list[Any] = read.layers
            self._make_room(width, layers)
            # each row gets the keys of its prompt's copy in this piece. Columns beyond the prompt's
            # end receive those of the padding: the mask hides them until new tokens overwrite them
            here = [
                (row, at - start) for row, at in zip(rows, source, strict=True) if start <= at < end
            ]
            target, chosen = torch.tensor(here, device=device).T
            copied = [at for _, at in here] != list(range(end - start))
            for layer, keys, values in zip(layers, self._keys, self._values, strict=True):
                for held, new in ((keys, layer.keys), (values, layer.values)):
                    new = new.index_select(0, chosen) if copied else new
                    held[target, :, :width] = new.to(held.dtype)
        for row, prompt in zip(rows, prompts, strict=True):
            self.lengths[row] = len(prompt)
        return torch.cat(hidden)[torch.tensor(source, device=device)]

    # decoding

    def step(self, tokens_b: Tensor) -> Tensor:
        """Append one token to each used row; return the last hidden states, (rows, hidden size).

        The result is overwritten by the next step.
        """
        self.prepare()
        self.see()
        hidden_bh = self.append(tokens_b)
        self.appended()
        return hidden_bh

    def prepare(self) -> None:
        """Write down on the device where the tokens of the next steps will go."""
        # rows that end within these steps go on, at the last column at most, and are ignored. Free
        # rows take part to keep the batch's shape; they stay at length 0, and their column 0 is
        # overwritten by the next prompt
        longest = max(self.lengths)
        last = max(longest, min(longest + self.ahead, self.most) - 1)
        self._make_room(last + 1)
        self._last = last
        ends = [[min(n + k, last) if n else 0 for n in self.lengths] for k in range(self.ahead)]
        self._step.ends_kb.copy_(torch.tensor(ends), non_blocking=True)
        self.columns = columns_seen(last, self.device)

    def see(self) -> None:
        """Make the masks of the prepared steps, and the views of the columns that they attend to."""
        assert self._masks is not None
        self._mask = self._masks.of(self._step.ends_kb, self.columns)
        rows, columns = len(self.lengths), self.columns
        if not self._used or len(self._used[0][0]) != rows:
            pairs = zip(self._keys, self._values, strict=True)
            self._used = [(keys[:rows], values[:rows]) for keys, values in pairs]
        self._views = [
            (keys.narrow(2, 0, columns), values.narrow(2, 0, columns))
            for keys, values in self._used
        ]

    def append(self, tokens_b: Tensor, step: int = 0) -> Tensor:
        """Compute one of the prepared steps; return the last hidden states, (rows, hidden size)."""
        now = self._step
        now.ends_b = now.ends_kb[step]
        mask = self._mask
        masks = {
            kind: each[step]
            for kind, each in (mask if isinstance(mask, dict) else {"": mask}).items()
        }

        def body() -> Tensor:
            # each row writes at its own column and has its own position: the mask hides what lies
            # beyond its end, which are other rows' columns, padding, or keys of an earlier response
            return hidden_states(
                self.model,
                now.tokens_b[:, None],
                mask=masks if isinstance(mask, dict) else masks[""],
                positions_bt=now.ends_b[:, None],
                cache=self,
            )[:, 0]

        if self.device.type != "cpu" or self.lowered is not None:
            now.tokens_b = tokens_b
            return body()
        # autocast keeps half-precision copies of weights, which a recording would not renew
        now.own_b.copy_(tokens_b)
        now.tokens_b = now.own_b
        moving = [*masks.values(), *(tensor for pair in self._views for tensor in pair)]
        return self._replayed((len(self.lengths), step), body, moving, self.columns)

    def appended(self) -> None:
        """Count the tokens of the prepared steps."""
        self.lengths = [n and min(n + self.ahead, self._last + 1) for n in self.lengths]

    def free(self, rows: Sequence[int]) -> None:
        """Mark rows as free."""
        for row in rows:
            self.lengths[row] = 0

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but the given ones."""
        source = torch.tensor(rows, device=self.device)
        self.lengths = [self.lengths[row] for row in rows]
        self._resized()
        columns = max(self.lengths)
        for tensor in (*self._keys, *self._values):
            tensor[: len(rows), :, :columns] = tensor[:, :, :columns].index_select(0, source)

    def _make_room(self, columns: int, like: Sequence[Any] = ()) -> None:
        if self._keys and columns <= self._keys[0].shape[2]:
            return
        columns = room(max(columns, self.most))
        self._masks = DecodingMasks(self.model, columns)
        self._used = []
        self._replayed.forget()
        if not self._keys:
            # in the dtype that attention computes in: under autocast, rotary embeddings leave keys
            # in float32
            for layer in like:
                for held, tensor in ((self._keys, layer.keys), (self._values, layer.values)):
                    _, heads, _, size = tensor.shape
                    shape = self.rows, heads, columns, size
                    held.append(tensor.new_zeros(shape, dtype=self.lowered or tensor.dtype))
            return
        for held in (self._keys, self._values):
            for index, tensor in enumerate(held):
                rows, heads, before, size = tensor.shape
                more = tensor.new_zeros(rows, heads, columns - before, size)
                held[index] = torch.cat([tensor, more], 2)

    # the attention layers call the methods below, in `append` only: `read` uses another cache

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token per row; return keys and values up to the end of the longest row."""
        where = self._step.rows_b, slice(None), self._step.ends_b
        for held, new in ((self._keys, key_states), (self._values, value_states)):
            held[layer_idx][where] = new[:, :, 0].to(held[layer_idx].dtype)
        return self._views[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens in the longest row."""
        return self.columns - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Columns that attention sees, and the first of them."""
        return self.columns, 0


class _Step:
    """Tensors of a step, (rows,), that keep their addresses.

    Attributes:
        ends_kb: columns of the new tokens of the prepared steps, (ahead, rows).
        ends_b, tokens_b: columns and tokens of the step that is computed.
        own_b: tokens, in a tensor of this object.
    """

    def __init__(self, rows: int, ahead: int, device: torch.device) -> None:
        self.rows_b = torch.arange(rows, device=device)
        self.ends_kb = torch.zeros(ahead, rows, dtype=torch.long, device=device)
        self.ends_b = self.tokens_b = self.own_b = torch.zeros_like(self.rows_b)


def columns_seen(last: int, device: torch.device) -> int:
    """Return the columns that attention sees, of which the last that holds a token is given."""
    # each number of columns has a CUDA graph of its own, so there are few; a CPU has none
    return last + 1 if device.type == "cpu" else room(last + 1)
