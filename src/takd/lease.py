"""Which GPUs a stage takes where several may run side by side.

Slurm gives a job its GPUs. On a machine without it, or within one job that runs a whole workflow, stages that Snakemake
runs side by side would all take the first one. So a stage holds a lock for each GPU that it uses; the system frees it
when the process ends, however that ends.
"""

import contextlib
import errno
import fcntl
import os
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from takd.errors import InputError

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
    folder = _open_own(Path(tempfile.gettempdir()) / f"takd-gpus-{os.getuid()}-{job}")
    waited = False
    while len(held := _take(cards, count, folder)) < count:
        for file in held.values():
            os.close(file)
        if not waited:
            say(f"waiting for {count} of the {len(cards)} GPUs here, which other stages use")
            waited = True
        time.sleep(SECONDS_BETWEEN_TRIES)
    os.close(folder)
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


def _open_own(path: Path) -> int:
    """Open the folder of this user's locks, whose name others know and whose parent they may write to.

    Raises:
        InputError: somebody else made it, or a link in its place.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # a link, or no folder
        raise _foreign(path) from None
    found = os.fstat(folder)
    if found.st_uid != os.getuid():
        os.close(folder)
        raise _foreign(path)
    if found.st_mode & 0o077:
        os.fchmod(folder, 0o700)
    return folder


def _foreign(path: Path) -> InputError:
    return InputError(
        f"{path}: is not a folder or file of yours, where stages keep which GPUs they use; have it removed, or set"
        " TMPDIR to a folder of your own."
    )


def _take(cards: list[str], count: int, folder: int) -> dict[str, int]:
    """Up to `count` GPUs that nobody holds, each with its open lock in an open folder."""
    held: dict[str, int] = {}
    for card in cards:
        if len(held) == count:
            break
        name = card.replace("/", "_")
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            file = os.open(name, flags, 0o600, dir_fd=folder)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR, errno.EACCES, errno.ENXIO):
                raise
            raise _foreign(Path(os.readlink(f"/proc/self/fd/{folder}")) / name) from None
        found = os.fstat(file)
        if found.st_uid != os.getuid() or not stat.S_ISREG(found.st_mode):
            os.close(file)
            raise _foreign(Path(os.readlink(f"/proc/self/fd/{folder}")) / name)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held[card] = file
        except BlockingIOError:
            os.close(file)
    return held
