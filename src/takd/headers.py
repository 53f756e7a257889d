"""What the headers of safetensors files say, read without torch."""

import json
import math
import struct
from pathlib import Path
from typing import Any

TOLERANCE = 0.25  # share by which the declared number of parameters may differ
LONGEST = 100_000_000  # bytes of a header, as the format allows
# as families call them
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
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


def positions(folder: Path) -> int | None:
    """Longest text that the model in a folder reads, by its `config.json`; None where that sets no limit."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config") or config
        found = [config[name] for name in POSITIONS if isinstance(config.get(name), int)]
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return found[0] if found else None


def _shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of the tensors of a file, by name."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > LONGEST:
            raise ValueError("no safetensors")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: each["shape"] for name, each in header.items() if not name.endswith(NO_WEIGHTS)}
