"""In which numbers a model computes: decided here for stages and for plans, which know the card by its name alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BFLOAT16 = (8, 0)  # compute capability from which a card has it
PRETRAINED = "pretrained_dtype"  # key of config.json that goes on to all models that are trained from a model
Capability = tuple[int, int]


def resolve(setting: str, capability: Capability | None, pretrained: str = "") -> str:
    """What `auto` comes to: fp32 on a CPU, bf16 where the card has it, else fp16; other settings stay.

    A model that was pretrained in bfloat16 has activations beyond float16's range, as Qwen2's and Gemma's: on a card
    without bfloat16 it gets fp32.

    Args:
        capability: compute capability of the card; None on a CPU.
        pretrained: as `pretrained_dtype`.
    """
    if setting != "auto":
        return setting
    if capability is None:
        return "fp32"
    if capability >= BFLOAT16:
        return "bf16"
    return "fp32" if pretrained == "bfloat16" else "fp16"


def pretrained_dtype(config: Mapping[str, Any]) -> str:
    """Type that a model, or the one that it was trained from, was pretrained in, such as "bfloat16"; "" if unknown.

    Args:
        config: contents of its config.json. What training writes are float32 weights, so that their own type says
            nothing; the origin's stands beside it.
    """
    text = config.get("text_config") or {}
    for settings in (config, text):
        for key in (PRETRAINED, "dtype", "torch_dtype"):
            if settings.get(key):
                return str(settings[key]).removeprefix("torch.")
    return ""


def pretrained_in(folder: Path) -> str:
    """The same of the model in a folder."""
    return pretrained_dtype(json.loads((folder / "config.json").read_text(encoding="utf-8")))
