"""What the headers of safetensors files say, read without torch."""

import json
import math
import struct
from pathlib import Path
from typing import Any

LONGEST = 100_000_000  # bytes of a header, as the format allows
# masks and tables that older versions of GPT-2, GPT-NeoX and Llama saved beside their weights
NO_WEIGHTS = (
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".inv_freq",
)


def safetensors_parameters(folder: Path) -> int | None:
    """Number of parameters in a model's folder, shared ones once; None where its safetensors are not all there.

    Of weights that are saved once more under another name, as a tied output embedding may be, one is counted.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        files = [folder / "model.safetensors"]
        if not files[0].is_file():
            index = json.loads((folder / f"{files[0].name}.index.json").read_text(encoding="utf-8"))
            files = sorted({folder / name for name in index["weight_map"].values()})
        shapes = {name: shape for file in files for name, shape in _shapes(file).items()}
        if config.get("tie_word_embeddings", True) and len(shapes) > 1:
            shapes.pop("lm_head.weight", None)
        return sum(map(math.prod, shapes.values())) or None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, struct.error):
        return None  # the stage that reads them says what is wrong


def _shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of the tensors of a file, by name."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > LONGEST:
            raise ValueError("no safetensors")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: each["shape"] for name, each in header.items() if not name.endswith(NO_WEIGHTS)}
