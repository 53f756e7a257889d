"""Parameter counts and context lengths of model folders, read from file headers without torch."""

import json
import math
import struct
from pathlib import Path
from typing import Any

TOLERANCE = 0.25  # share by which the declared number of parameters may differ
LONGEST = 100_000_000  # bytes of a header, the limit of the format
# names of the setting in different model families
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
# buffers (masks, tables) that older versions of GPT-2, GPT-NeoX and Llama saved with their weights
NO_WEIGHTS = (
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".inv_freq",
)


def safetensors_parameters(folder: Path) -> int | None:
    """Count the parameters in a model folder; None if its safetensors are missing or incomplete.

    Shared parameters count once, also where a tied output embedding was saved a second time.
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
        return None  # the stage that reads the files reports the error


def positions(folder: Path) -> int | None:
    """Return the longest text that a model can read, by `config.json`; None without a limit."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config") or config
        found = [config[name] for name in POSITIONS if isinstance(config.get(name), int)]
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return found[0] if found else None


def _shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of the tensors in a file, by name."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > LONGEST:
            raise ValueError("no safetensors")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: each["shape"] for name, each in header.items() if not name.endswith(NO_WEIGHTS)}
