"""Choice of a model's precision, from its setting, the GPU and the pretraining dtype.

Free of torch, so that plans can use it for a GPU that is known by name only.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BFLOAT16 = (8, 0)  # lowest compute capability that supports it
PRETRAINED = (
    "pretrained_dtype"  # key of config.json that is copied to all models trained from a model
)
Capability = tuple[int, int]


def resolve(setting: str, capability: Capability | None, pretrained: str = "") -> str:
    """Resolve `auto`: fp32 on a CPU, bf16 on GPUs that support it, else fp16; keep other settings.

    Models that were pretrained in bfloat16, such as Qwen2 and Gemma, have activations beyond the
    range of float16, so they use fp32 on GPUs without bfloat16.

    Args:
        capability: compute capability of the GPU; None on a CPU.
        pretrained: as returned by `pretrained_dtype`.
    """
    if setting != "auto":
        return setting
    if capability is None:
        return "fp32"
    if capability >= BFLOAT16:
        return "bf16"
    return "fp32" if pretrained == "bfloat16" else "fp16"


def pretrained_dtype(config: Mapping[str, Any]) -> str:
    """Return the dtype that a model or its ancestor was pretrained in; "" if unknown.

    Args:
        config: contents of `config.json`. Training always writes float32 weights, so the original
            dtype, such as "bfloat16", is stored under a separate key.
    """
    text = config.get("text_config") or {}
    for settings in (config, text):
        for key in (PRETRAINED, "dtype", "torch_dtype"):
            if settings.get(key):
                return str(settings[key]).removeprefix("torch.")
    return ""


def pretrained_in(folder: Path) -> str:
    """Return the `pretrained_dtype` of the model in a folder."""
    return pretrained_dtype(json.loads((folder / "config.json").read_text(encoding="utf-8")))
