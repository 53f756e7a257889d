"""Whether a build of torch can compute on a card at all.

Pure and without torch, so that a stage can ask it before anything is loaded, and a test without a GPU. What else is
known of cards stands in `takd.preflight.datasheets`: a line there should make no stage run again.
"""

import re
from collections.abc import Sequence

from takd.errors import InputError

VOLTA = "envs/volta"


def has_kernels(capability: tuple[int, int], arch_list: Sequence[str]) -> bool:
    """Whether a build whose `torch.cuda.get_arch_list()` is given runs on a card of a compute capability.

    Machine code (`sm_XY`) runs on cards of the same major version and a minor version that is not lower; with a letter
    (`sm_90a`) on that very version. Intermediate code (`compute_XY`, PTX) is translated for all newer cards.
    """
    for arch in arch_list:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", arch)
        if match is None:
            continue
        kind, major, minor, letter = match[1], int(match[2]), int(match[3]), match[4]
        if letter:
            if (major, minor) == capability:
                return True
        elif kind == "compute":
            if (major, minor) <= capability:
                return True
        elif major == capability[0] and minor <= capability[1]:
            return True
    return False


def check_kernels(
    capability: tuple[int, int], arch_list: Sequence[str], name: str, torch_version: str
) -> None:
    """Refuse a card for which torch was not built.

    Args:
        capability: `torch.cuda.get_device_capability()`.
        arch_list: `torch.cuda.get_arch_list()`.
        name: the card's, for the message.

    Raises:
        InputError: there are no kernels for the card; says what to install.
    """
    if has_kernels(capability, arch_list):
        return
    major, minor = capability
    if capability[0] == 7:
        right = (
            f"install a build against CUDA 12.6 ({VOLTA}), which PyTorch's index cu126 has up to torch 2.14"
            if capability == (7, 0)
            else "install a build against CUDA 12.6, from PyTorch's index cu126"
        )
    elif capability < (7, 0):
        right = "this card is older than takd supports; ask for a V100 or newer"
    else:
        right = f"install a newer torch, built for sm_{major}{minor}"
    raise InputError(
        f"torch {torch_version} has no kernels for {name} (sm_{major}{minor}), only for"
        f" {', '.join(arch_list) or 'no card'}: {right}."
    )
