"""Check whether a PyTorch build supports a GPU.

This module does not import torch, so a stage can run the check before loading anything and a test
needs no GPU. Other data about GPUs belong in `takd.preflight.gpus`, where a change reruns no
stage.
"""

import re
from collections.abc import Sequence

from takd.runtime.errors import InputError

VOLTA = "make env TARGET=volta"


def has_kernels(capability: tuple[int, int], arch_list: Sequence[str]) -> bool:
    """Return whether a PyTorch build has code for a GPU of the given compute capability.

    Machine code (`sm_XY`) runs on GPUs of the same major version and an equal or higher minor
    version; with a letter (`sm_90a`), on exactly that version. PTX (`compute_XY`) is compiled for
    any newer GPU.

    Args:
        capability: `torch.cuda.get_device_capability()`.
        arch_list: `torch.cuda.get_arch_list()`.
    """
    for arch in arch_list:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", arch)
        if match is None:
            continue
        built = int(match[2]), int(match[3])
        if match[4]:
            fits = built == capability
        else:
            same_major = built[0] == capability[0]
            fits = built <= capability and (same_major or match[1] == "compute")
        if fits:
            return True
    return False


def check_kernels(
    capability: tuple[int, int], arch_list: Sequence[str], name: str, torch_version: str
) -> None:
    """Raise InputError, which names a build that is right, if PyTorch was not built for the GPU called `name`.

    Args:
        capability, arch_list: as of `has_kernels`.
    """
    if has_kernels(capability, arch_list):
        return
    major, minor = capability
    if capability == (7, 0):
        right = f"install a build against CUDA 12.6 ({VOLTA}), which PyTorch's index cu126 has up to torch 2.14"
    elif major == 7:
        right = "install a build against CUDA 12.6, from PyTorch's index cu126"
    elif major < 7:
        right = "this card is older than takd supports; ask for a V100 or newer"
    else:
        right = f"install a newer torch, built for sm_{major}{minor}"
    raise InputError(
        f"torch {torch_version} has no kernels for {name} (sm_{major}{minor}), only for"
        f" {', '.join(arch_list) or 'no card'}: {right}."
    )
