"""A safetensors file that is written in pieces, so that it may be larger than the memory."""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

NAMES = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


class TensorFile:
    """A safetensors file with tensors of known names, dtypes and shapes, mapped into memory.

    Format (https://huggingface.co/docs/safetensors): the length of the header as a 64-bit integer,
    the header as JSON, and the bytes of the tensors one after the other.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    ) -> None:
        self.path, self._tensors, header, end = path, tensors, {}, 0
        self._shapes: dict[str, tuple[int, int, int]] = {}  # where it begins, rows, bytes of a row
        # tensors with wide dtypes first, so that each begins at a multiple of its item size
        for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: -item[1][0].itemsize):
            width = math.prod(shape[1:]) * dtype.itemsize
            self._shapes[name] = end, shape[0], width
            place = [end, end := end + shape[0] * width]
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": place}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._head = struct.pack("<Q", len(text)) + text
        self._size = len(self._head) + end

    def begin(self) -> None:
        """Create the file, filled with zeros."""
        with open(self.path, "wb") as file:
            file.write(self._head)
            file.flush()
            # reserved now: on a full disk, writing to mapped memory would kill the process
            os.posix_fallocate(file.fileno(), 0, self._size)

    def begun(self) -> bool:
        """Return whether the file exists and has the header of these tensors."""
        if not self.path.exists() or self.path.stat().st_size != self._size:
            return False
        with open(self.path, "rb") as file:
            return file.read(len(self._head)) == self._head

    def _mapped(self, name: str) -> np.memmap:
        """Bytes of a tensor, (rows, bytes of a row); numpy has no bfloat16."""
        begin, rows, width = self._shapes[name]
        return np.memmap(self.path, np.uint8, "r+", len(self._head) + begin, (rows, width))

    def digest(self, names: Iterable[str], first: int, after: int) -> str:
        """Return the sha256 of the rows `first` to `after` (exclusive) of some tensors."""
        total = hashlib.sha256()
        for name in sorted(names):
            total.update(self._mapped(name)[first:after].data)
        return total.hexdigest()

    def write(self, first: int, pieces: Mapping[str, Tensor]) -> None:
        """Write a piece of each tensor, beginning with its row `first`, and flush it to disk."""
        for name, piece in pieces.items():
            # other types of the same width would fit, and be read as other numbers
            dtype, shape = self._tensors[name]
            assert piece.dtype == dtype and piece.shape[1:] == shape[1:]
            mapped = self._mapped(name)
            values = piece.contiguous().reshape(-1).view(torch.uint8).numpy()
            mapped[first : first + len(piece)] = values.reshape(len(piece), mapped.shape[1])
            mapped.flush()
