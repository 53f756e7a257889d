"""Which GPUs a stage takes where several may run side by side.

Slurm gives a job its GPUs. On a machine without it, or within one job that runs a whole workflow, stages that Snakemake
runs side by side would all take the first one. So a stage holds a lock for each GPU that it uses; the system frees it
when the process ends, however that ends.
"""

import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
SECONDS_BETWEEN_TRIES = 0.5


def lease(count: int, say: Callable[[str], None]) -> None:
    """Take `count` GPUs for this process and those that it becomes or starts, by CUDA_VISIBLE_DEVICES.

    Waits while too few are free. Does nothing without GPUs, and in processes of torchrun, whose parent holds the lease.
    """
    if "RANK" in os.environ:
        return
    cards = visible()
    if not cards:
        return
    # more than there are is the stage's own error to report, with what it was asked for
    count = min(count, len(cards))
    # each Slurm job may count its GPUs from 0, and they are its own
    job = os.environ.get("SLURM_JOB_ID", "no-job")
    folder = Path(tempfile.gettempdir()) / f"takd-gpus-{os.getuid()}-{job}"
    folder.mkdir(mode=0o700, exist_ok=True)
    waited = False
    while len(held := _take(cards, count, folder)) < count:
        for file in held.values():
            os.close(file)
        if not waited:
            say(f"waiting for {count} of the {len(cards)} GPUs here, which other stages use")
            waited = True
        time.sleep(SECONDS_BETWEEN_TRIES)
    for file in held.values():
        os.set_inheritable(file, True)  # torchrun takes this process's place
    os.environ[VISIBLE] = ",".join(held)


def visible() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if VISIBLE in os.environ:
        return [card for card in os.environ[VISIBLE].split(",") if card not in ("", "-1")]
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return done.stdout.split()


def _take(cards: list[str], count: int, folder: Path) -> dict[str, int]:
    """Up to `count` GPUs that nobody holds, each with its open lock."""
    held: dict[str, int] = {}
    for card in cards:
        if len(held) == count:
            break
        file = os.open(
            folder / card.replace("/", "_"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held[card] = file
        except BlockingIOError:
            os.close(file)
    return held
