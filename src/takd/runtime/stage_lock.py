"""Lock on a stage's folder that shows whether its owner is alive, also from another node."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from takd.runtime.errors import InputError

HEARTBEAT_SECONDS = 5.0
MISSED = 6  # heartbeats after which an owner on another host counts as gone


class InUseError(InputError):
    """Another process holds the lock, and is alive."""


class Lock:
    """Lock file that prevents two copies of a stage; its time stamp is a heartbeat.

    If Snakemake's main process dies and is restarted while its job still runs, two jobs would
    otherwise write to the same folder. The lock of a dead process is taken over: at once on the
    same host, else if its heartbeat has stopped for a while. It needs no more of a file system than
    exclusive creation and time stamps, which network file systems have, too (docs/design.md).
    The lock of another that took it over, while this process was suspended, is left to it.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = print) -> None:
        self.path, self.say = path, say
        self._owner: dict[str, Any] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lock":
        self._acquire()
        self._thread.start()
        return self

    def keep(self) -> None:
        """Hold the lock until this process ends, also if it becomes another program (exec).

        A child process beats for it, and takes the lock away at the end.
        """
        self._acquire()
        owner = os.getpid()
        if os.fork():
            return
        try:
            # meant for the owner, which may go on for a while
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            # whoever reads the output of this process should not wait for the child
            nothing = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(nothing, stream)
            while os.getppid() == owner and self._mine():
                os.utime(self.path)
                time.sleep(HEARTBEAT_SECONDS / 5)
            self._take_away()
        finally:
            os._exit(0)

    def _acquire(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            seen = self._wait_for_owner_to_be_gone()
            if read_lock(self.path)[1] == seen:  # else another process has just taken the lock over
                self.path.unlink(missing_ok=True)

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._take_away()

    def _take_away(self) -> None:
        if self._mine():
            self.path.unlink(missing_ok=True)

    def _mine(self) -> bool:
        """Whether this process still holds the lock."""
        return read_lock(self.path)[0] == self._owner

    def _create(self) -> bool:
        owner = {"host": socket.gethostname(), "process": os.getpid()}
        self._owner = {**owner, "job": os.environ.get("SLURM_JOB_ID")}
        try:
            # mode x fails if the file exists, so only one process can create the lock
            with open(self.path, "x", encoding="utf-8") as file:
                # others who share a store need to read whose it is, whatever the umask; a file system
                # without permissions refuses, and needs none
                with contextlib.suppress(OSError):
                    os.fchmod(file.fileno(), os.fstat(file.fileno()).st_mode | 0o40)
                json.dump(self._owner, file)
        except FileExistsError:
            if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
                raise InputError(
                    f"{self.path}: is a link, a folder or a pipe, and no lock of a stage; remove it and start again."
                ) from None
            return False
        return True

    def _wait_for_owner_to_be_gone(self) -> float | None:
        """Return the last heartbeat of an owner that is gone; None if it took its lock away."""
        owner, seen = read_lock(self.path)
        # process ids are only comparable on the same host; elsewhere only the heartbeat is visible
        dead = owner.get("host") == socket.gethostname() and not is_alive(owner["process"])
        if seen is None or dead:
            return seen
        patience = MISSED * HEARTBEAT_SECONDS
        holder = owner or "an unknown process"
        self.say(
            f"{self.path} is held by {holder}; waiting {patience:.0f} s to see whether it is alive"
        )
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            time.sleep(HEARTBEAT_SECONDS / 5)
            owner, now = read_lock(self.path)
            if now is None:
                return None
            if now != seen:
                raise self._in_use(owner)
        return seen

    def _in_use(self, owner: dict[str, Any]) -> InUseError:
        if not owner:
            return InUseError(
                f"{self.path}: is written to by a program that is no stage; end it, remove the file and start again."
            )
        job = f" (Slurm job {owner['job']})" if owner.get("job") else ""
        return InUseError(
            f"process {owner['process']} on {owner.get('host')}{job} is already at work in {self.path.parent}; wait"
            " for it, or end it (scancel), and start again."
        )

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS) and self._mine():
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.path)


def read_lock(path: Path) -> tuple[dict[str, Any], float | None]:
    """Return the owner of a lock and its last heartbeat; ({}, None) if there is no lock."""
    try:
        # opened first: network file systems refresh a cached time stamp when a file is opened
        with open(path, encoding="utf-8") as file:
            seen = os.fstat(file.fileno()).st_mtime
            owner = json.load(file)
    except FileNotFoundError:
        return {}, None
    except (ValueError, RecursionError):
        # its writer died between creating and filling it, or another program wrote it
        return {}, seen
    process = owner.get("process") if isinstance(owner, dict) else None
    sound = type(process) is int and 0 < process < 2**31
    return owner if sound else {}, seen


def is_alive(process: int) -> bool:
    """Return whether a process of this host exists."""
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # a process of somebody else
    return True
