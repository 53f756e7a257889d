"""Device and precision of a model, from its setting, the GPU and the pretraining dtype.

Functions import torch where they need it: plans resolve the precision of GPUs known by name only.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from takd.runtime.cuda_arch import check_kernels
from takd.runtime.errors import InputError
from takd.runtime.files import read_json

if TYPE_CHECKING:
    import torch

BFLOAT16 = (8, 0)  # lowest compute capability that supports it
PRETRAINED = "pretrained_dtype"  # key of config.json, copied to all models trained from a model
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
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


def choose_precision(setting: str, pretrained: str = "") -> str:
    """Resolve `auto` for the current device, as `resolve`.

    Raises:
        InputError: float16 on a CPU, or a GPU for which this torch build has no kernels.
    """
    import torch

    if not torch.cuda.is_available():
        if setting == "fp16":
            raise InputError("precision 'fp16' needs a GPU; on a CPU use 'auto', 'fp32' or 'bf16'.")
        return resolve(setting, None, pretrained)
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    check_kernels(capability, torch.cuda.get_arch_list(), name, torch.__version__)
    return resolve(setting, capability, pretrained)


def torch_dtype(precision: str) -> "torch.dtype":
    """Return the dtype of a precision."""
    import torch

    return getattr(torch, DTYPES[precision])


def describe(precision: str, pretrained: str = "") -> str:
    """Describe a precision and its device for the log, and why it is not another one."""
    import torch

    if not torch.cuda.is_available():
        return f"{precision} on the CPU"
    name = torch.cuda.get_device_name()
    lacks = torch.cuda.get_device_capability() < BFLOAT16
    why = ", which has no bfloat16" if lacks else ""
    if precision == "fp16":
        return f"fp16 with dynamic loss scaling on {name}{why}"
    if precision == "fp32" and lacks and pretrained == "bfloat16":
        return f"fp32 on {name}{why}: a model pretrained in it may leave the range of fp16"
    return f"{precision} on {name}"


def current_device() -> "torch.device":
    """Return this process's GPU, or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def device_name() -> str:
    """Return the name of this process's GPU, or "cpu"."""
    import torch

    return torch.cuda.get_device_name(current_device()) if torch.cuda.is_available() else "cpu"


def pretrained_dtype(config: Mapping[str, Any]) -> str:
    """Return the dtype that a model or its ancestor was pretrained in; "" if unknown.

    Args:
        config: contents of `config.json`. Training always writes float32 weights, so the original
            dtype, such as "bfloat16", is stored under a separate key.
    """
    for settings in (config, config.get("text_config") or {}):
        for key in (PRETRAINED, "dtype", "torch_dtype"):
            if settings.get(key):
                return str(settings[key]).removeprefix("torch.")
    return ""


def pretrained_in(folder: Path) -> str:
    """Return the `pretrained_dtype` of the model in a folder."""
    return pretrained_dtype(read_json(folder / "config.json"))
