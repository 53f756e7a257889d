"""Memory for decoding: what is free, how many rows fit, and whether a decoder is kept between draws."""

import contextlib
import gc
import os
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from takd.decoding import amounts
from takd.decoding.decoder import Decoder
from takd.models.logits import lowered_type

KEPT_ON_HOST = 2**30  # most bytes of a decoder that is kept in main memory


def free_memory(device: torch.device) -> float:
    """Return the bytes that this process may fill.

    As little as possible depends on the moment, since other rows round differently: on a host, the
    memory of the machine or of the job, free or not.
    """
    if device.type == "cuda":
        allocated = torch.cuda.memory_allocated(device)
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - allocated
        return float(min(total - allocated, free + unused))
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError):
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
        found += [int(limit)] if limit.isdigit() else []
    return float(min(found))


def rows_that_fit(
    models: Sequence[PreTrainedModel],
    columns: int,
    steps: int,
    vocabulary: int,
    scored: bool,
    extra: float = 0.0,
) -> int:
    """Return how many rows to decode together.

    Args:
        models: the student; and its teacher, if it mixes.
        columns: tokens of the longest text.
        steps: tokens of the longest response.
        extra: as `amounts.between` returns it.
    """
    device = models[0].device
    room, row = amounts.room(columns), 0.0
    for model in models:
        row += room * token_bytes(model)
    for teacher in models[1:]:
        config = teacher.config.get_text_config()
        row += steps * config.hidden_size * _number(teacher)
    free = free_memory(device)
    # the pass over the prompts comes on top, and is as large with fewer rows
    kind = "cpu" if device.type == "cpu" else "cuda"
    read = amounts.READ_AT_ONCE[kind]
    free -= max(read * token_bytes(model) for model in models)
    return amounts.fitting_rows(row, vocabulary, len(models), scored, kind, free, extra)


def token_bytes(model: PreTrainedModel) -> float:
    """Return the bytes of a token's keys and values, at most."""
    config = model.config.get_text_config()
    width, heads = config.hidden_size, getattr(config, "num_attention_heads", None)
    if heads:
        size = getattr(config, "head_dim", None) or width // heads
        width = size * (getattr(config, "num_key_value_heads", None) or heads)
    return 2.0 * config.num_hidden_layers * width * _number(model)


def _number(model: PreTrainedModel) -> int:
    return (lowered_type(model) or model.dtype).itemsize


class KeptDecoder:
    """The decoder of the last draw, for the next one: its caches, and what was captured of its steps.

    On a GPU it is kept if what the process has needed at most so far fits into memory beside it, so
    training between two draws finds the memory that it is planned with.
    """

    def __init__(self) -> None:
        self.decoder: Decoder | None = None
        self._key: Hashable = None
        self._most: float | None = None

    def get(self, key: Hashable, columns: int, make: Callable[[], Decoder]) -> Decoder:
        """Return the decoder that is kept under a key, if it has the columns, or else a new one."""
        if self.decoder is None or key != self._key or columns > self.decoder.columns:
            self.free()
            self.decoder, self._key = make(), key
            self._new = True
        else:
            self._new = False
            self.decoder.restart()
        return self.decoder

    def settle(self) -> None:
        """Keep the decoder until the next draw, or free its memory."""
        if self.decoder is None:
            return
        size, device = self.decoder.bytes(), self.decoder.device
        if device.type != "cuda":
            if size > KEPT_ON_HOST:
                self.free()
            return
        total = torch.cuda.get_device_properties(device).total_memory
        # of the first draw alone, nobody knows yet what training needs
        before, self._most = self._most, float(torch.cuda.max_memory_allocated(device))
        if self._new and (before is None or self._most + size > amounts.USABLE["cuda"] * total):
            self.free()

    def free(self) -> None:
        """Free the decoder's memory."""
        if self.decoder is None:
            return
        self.decoder = None
        # a decoder and its functions refer to each other
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
