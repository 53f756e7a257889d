"""Checkpoints that survive what Snakemake does to a failed job's outputs, and a lock against a second copy.

Everything lives in `checkpoints/<key>/` beside the declared outputs, undeclared. The key is made of settings, code
and inputs, so that work on other settings is never resumed.
"""

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from takd.errors import InputError
from takd.provenance import canonical_json, file_digest, short_digest
from takd.stage import Stage

KEPT_CHECKPOINTS = 2
HEARTBEAT_SECONDS = 5.0


def resume_key(stage: Stage) -> str:
    """Digest of all that decides what a stage computes: its settings, its code, its inputs."""
    inputs = {name: [file_digest(path) for path in paths] for name, paths in stage.inputs.items()}
    return short_digest(canonical_json(stage.spec), stage.code, canonical_json(inputs))


class Checkpoints:
    """The checkpoints of one run of a stage, newest last."""

    def __init__(self, root: Path, key: str) -> None:
        self.root, self.folder = root, root / key

    def open(self) -> None:
        """Make the folder; drop checkpoints of other settings and those that were being written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for other in self.root.iterdir():
            if other.is_dir() and other != self.folder:
                shutil.rmtree(other)
        for partial in self.folder.glob(".*.partial"):
            shutil.rmtree(partial)

    def all(self) -> list[Path]:
        """Folders of whole checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def partial(self, step: int) -> Path:
        """Where the checkpoint of a step is written before it is whole."""
        return self.folder / f".step-{step:09d}.partial"

    def commit(self, step: int) -> None:
        """Flush a partial checkpoint to disk, give it its name, and drop all but the last two."""
        partial = self.partial(step)
        for path in partial.rglob("*"):
            if path.is_file():
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
        final = self.folder / f"step-{step:09d}"
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in self.all()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def close(self) -> None:
        """The stage's outputs are in place: nothing here is needed any more."""
        shutil.rmtree(self.root)


@contextlib.contextmanager
def resumable(stage: Stage, output: Path) -> Iterator[Path]:
    """A folder beside an output for what the next attempt goes on from; gone when the stage is done."""
    root = output.parent / "checkpoints"
    checkpoints = Checkpoints(root, resume_key(stage))
    with Lock(root / "lock", stage.say):
        checkpoints.open()
        yield checkpoints.folder
    checkpoints.close()


class Lock:
    """Keeps a second copy of a stage out, by a file whose time stamp is a heartbeat.

    A head process can die and be started again while its job still runs; without this, two jobs would train into
    one folder. The lock of a process that is gone is taken over: at once on the same host, else when its
    heartbeat has stood still for a while.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = print) -> None:
        self.path, self.say = path, say
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Lock":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            self._wait_for_owner_to_be_gone()
            self.path.unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        try:
            with open(self.path, "x", encoding="utf-8") as file:
                json.dump({"host": socket.gethostname(), "process": os.getpid()}, file)
        except FileExistsError:
            return False
        return True

    def _wait_for_owner_to_be_gone(self) -> None:
        try:
            owner = json.loads(self.path.read_text(encoding="utf-8"))
            seen = self.path.stat().st_mtime
        except (FileNotFoundError, json.JSONDecodeError):
            # just removed, or its writer died between creating and filling it
            owner, seen = {}, None
        if owner.get("host") == socket.gethostname() and not _alive(owner["process"]):
            return
        patience = 6 * HEARTBEAT_SECONDS
        self.say(f"{self.path} is held by {owner}; waiting {patience:.0f} s for a sign of life")
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            time.sleep(HEARTBEAT_SECONDS / 5)
            try:
                now = self.path.stat().st_mtime
            except FileNotFoundError:
                return
            if seen is not None and now != seen:
                raise InputError(
                    f"process {owner.get('process')} on {owner.get('host')} is already at work in"
                    f" {self.path.parent}; wait for it, or end it (scancel), and start again."
                )

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
