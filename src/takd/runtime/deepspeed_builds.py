"""Wait for locks on DeepSpeed's kernels, which it compiles on first use, one process at a time."""

import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from takd.runtime.errors import InputError

LONGEST_BUILD = 600.0  # seconds; one takes a minute or two


def locks() -> list[Path]:
    """Return the locks on builds of DeepSpeed's kernels, in use or left behind."""
    from deepspeed.ops.op_builder.all_ops import ALL_OPS
    from torch.utils.cpp_extension import get_default_build_root

    place, pattern = os.environ.get("TORCH_EXTENSIONS_DIR"), "*/lock"
    if not place:
        python = f"py{sys.version_info.major}{sys.version_info.minor}"
        place, pattern = get_default_build_root(), f"{python}*/*/lock"
    return [lock for lock in Path(place).glob(pattern) if lock.parent.name in ALL_OPS]


def await_builds(say: Callable[[str], None], longest: float = LONGEST_BUILD) -> None:
    """Wait for builds in other processes.

    Args:
        say: prints a message.
        longest: age in seconds above which a lock is taken to be left behind by a killed build.

    Raises:
        InputError: a lock was left behind, and torch would wait for it forever.
    """
    announced = False
    while held := locks():
        for lock in held:
            try:
                age = time.time() - lock.stat().st_mtime
            except FileNotFoundError:  # the build has finished
                continue
            if age > longest:
                raise InputError(
                    f"{lock} is {age / 60:.0f} minutes old: a build of DeepSpeed's kernels was killed and left it, and"
                    f" each later one waits for it; delete it (rm {shlex.quote(str(lock))}) and start again."
                )
            if not announced:
                say(f"DeepSpeed's kernels are being built by another process ({lock}); waiting")
                announced = True
        time.sleep(0.5)
