"""A safetensors file that is filled piece by piece, so that it may be larger than the memory."""

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
    """The file at a path with tensors of known names, types and shapes.

    Format (https://huggingface.co/docs/safetensors): the length of the header as a 64-bit number, the header as
    JSON, the tensors' bytes one after the other.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    ) -> None:
        self.path, self._tensors, self._begins = path, tensors, dict[str, int]()
        header, end = {}, 0
        # wide numbers first: each begins at a multiple of its width
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
        """Make the file, all zeros."""
        with open(self.path, "wb") as file:
            file.write(self._head)
            file.truncate(self._size)

    def begun(self) -> bool:
        """Whether the file is there, and is one of these tensors."""
        if not self.path.exists() or self.path.stat().st_size != self._size:
            return False
        with open(self.path, "rb") as file:
            return file.read(len(self._head)) == self._head

    def digest(self, names: Iterable[str], first: int, after: int) -> str:
        """sha256 of the rows `first` to `after` (not included) of some tensors, as they lie in the file."""
        total = hashlib.sha256()
        with open(self.path, "rb") as file:
            for name in sorted(names):
                start, width = self._place(name, first)
                file.seek(start)
                total.update(file.read((after - first) * width))
        return total.hexdigest()

    def _place(self, name: str, row: int) -> tuple[int, int]:
        """Where a row of a tensor begins, and the bytes of a row."""
        dtype, shape = self._tensors[name]
        width = math.prod(shape[1:]) * dtype.itemsize
        return len(self._head) + self._begins[name] + row * width, width

    def write(self, first: int, pieces: Mapping[str, Tensor]) -> None:
        """Write a piece of each tensor, from its row `first` on, and flush them to the disk."""
        with open(self.path, "rb+") as file:
            for name, piece in pieces.items():
                dtype, shape = self._tensors[name]
                assert piece.dtype == dtype and piece.shape[1:] == shape[1:]
                file.seek(self._place(name, first)[0])
                file.write(piece.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
