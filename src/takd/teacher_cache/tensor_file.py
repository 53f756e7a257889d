"""A safetensors file that is written in pieces, so that it may be larger than the memory."""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

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
    """A safetensors file with tensors of known names, dtypes and shapes.

    Format (https://huggingface.co/docs/safetensors): the length of the header as a 64-bit integer,
    the header as JSON, and the bytes of the tensors one after the other.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    ) -> None:
        self.path, self._tensors, self._begins = path, tensors, dict[str, int]()
        header, end = {}, 0
        # tensors with wide dtypes first, so that each begins at a multiple of its item size
        for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: -item[1][0].itemsize):
            self._begins[name] = end
            end += math.prod(shape) * dtype.itemsize
            place = [self._begins[name], end]
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": place}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._head = struct.pack("<Q", len(text)) + text
        self._size = len(self._head) + end

    def begin(self) -> None:
        """Create the file, filled with zeros."""
        with open(self.path, "wb") as file:
            file.write(self._head)
            file.truncate(self._size)

    def begun(self) -> bool:
        """Return whether the file exists and has the header of these tensors."""
        if not self.path.exists() or self.path.stat().st_size != self._size:
            return False
        with open(self.path, "rb") as file:
            return file.read(len(self._head)) == self._head

    def digest(self, names: Iterable[str], first: int, after: int) -> str:
        """Return the sha256 of the rows `first` to `after` (exclusive) of some tensors."""
        total = hashlib.sha256()
        with open(self.path, "rb") as file:
            for name in sorted(names):
                start, width = self._place(name, first)
                file.seek(start)
                total.update(file.read((after - first) * width))
        return total.hexdigest()

    def _place(self, name: str, row: int) -> tuple[int, int]:
        """Position of a tensor's row in the file, and its size in bytes."""
        dtype, shape = self._tensors[name]
        width = math.prod(shape[1:]) * dtype.itemsize
        return len(self._head) + self._begins[name] + row * width, width

    def write(self, first: int, pieces: Mapping[str, Tensor]) -> None:
        """Write a piece of each tensor, beginning with its row `first`, and flush it to disk."""
        with open(self.path, "rb+") as file:
            for name, piece in pieces.items():
                dtype, shape = self._tensors[name]
                assert piece.dtype == dtype and piece.shape[1:] == shape[1:]
                file.seek(self._place(name, first)[0])
                file.write(piece.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
