"""Assignment of GPUs to stages that run in parallel on one machine.

Slurm assigns GPUs to jobs. Without it, or within one job that runs a whole workflow, all stages
that Snakemake runs in parallel would use the first GPU. So a stage locks a file for each GPU that
it uses; the operating system releases the lock when the process ends, however it ends.
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

from takd.runtime.errors import InputError
from takd.runtime.launch import launched

VISIBLE = "CUDA_VISIBLE_DEVICES"
SECONDS_BETWEEN_TRIES = 0.5


def reserve_gpus(count: int, say: Callable[[str], None]) -> None:
    """Reserve `count` GPUs for this process and its children by setting CUDA_VISIBLE_DEVICES.

    Waits while too few are free. Does nothing without GPUs, or in processes of torchrun, whose
    parent holds the locks.
    """
    if launched():
        return
    gpus = visible()
    if not gpus:
        return
    # if too many are requested, the stage reports that itself
    count = min(count, len(gpus))
    # each Slurm job may number its own GPUs from 0
    job = os.environ.get("SLURM_JOB_ID", "no-job")
    path = Path(tempfile.gettempdir()) / f"takd-gpus-{os.getuid()}-{job}"
    folder = _open_own(path)
    waited = False
    while len(held := _take(gpus, count, path, folder)) < count:
        for file in held.values():
            os.close(file)
        if not waited:
            say(f"waiting for {count} of the {len(gpus)} GPUs here, which other stages use")
            waited = True
        time.sleep(SECONDS_BETWEEN_TRIES)
    os.close(folder)
    for file in held.values():
        os.set_inheritable(file, True)  # stays locked when torchrun replaces this process
    os.environ[VISIBLE] = ",".join(held)


def visible() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if VISIBLE in os.environ:
        return [gpu for gpu in os.environ[VISIBLE].split(",") if gpu not in ("", "-1")]
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return done.stdout.split()


def _open_own(path: Path) -> int:
    """Open this user's folder of locks; other users can create files in its parent.

    Raises:
        InputError: another user created the folder, or it is a link.
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


def _take(gpus: list[str], count: int, path: Path, folder: int) -> dict[str, int]:
    """Lock up to `count` free GPUs in the folder at `path`; return the open lock file of each."""
    held: dict[str, int] = {}
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    for gpu in gpus:
        if len(held) == count:
            break
        name = gpu.replace("/", "_")
        try:
            file = os.open(name, flags, 0o600, dir_fd=folder)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR, errno.EACCES, errno.ENXIO):
                raise
            raise _foreign(path / name) from None
        found = os.fstat(file)
        if found.st_uid != os.getuid() or not stat.S_ISREG(found.st_mode):
            os.close(file)
            raise _foreign(path / name)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held[gpu] = file
        except BlockingIOError:
            os.close(file)
    return held
