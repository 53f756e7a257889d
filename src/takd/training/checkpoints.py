"""Checkpoints that survive what Snakemake does to a failed job's outputs, and a lock against a second copy.

Everything lives in `checkpoints/<key>/` beside the declared outputs, undeclared. The key is made of settings, code
and inputs, so that work on other settings is never resumed.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from takd.errors import InputError
from takd.integrity import (
    LAST_WRITTEN,
    PROGRESS,
    DamagedError,
    Record,
    faults,
    read_record,
    sealed,
)
from takd.provenance import canonical_json, file_digest, short_digest
from takd.stage import Stage, write_json

KEPT_CHECKPOINTS = 2
LOG = "metrics.jsonl"
READERS = 4  # threads that compare a checkpoint with its digests
HEARTBEAT_SECONDS = 5.0
SHARE_OF_RUN = 0.05  # of a training that may be lost
SHARE_OF_TIME = 0.02  # that checkpoints may take


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
        """Flush a partial checkpoint to disk, give it its name, and drop what only older ones than two need."""
        partial = self.partial(step)
        for path in partial.rglob("*"):
            if path.is_file():
                flush(path)
        final = self.folder / f"step-{step:09d}"
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        self._keep(KEPT_CHECKPOINTS)

    def drop(self, checkpoint: Path) -> None:
        """Remove a checkpoint that cannot be gone on from, and kept weights that no other one names."""
        shutil.rmtree(checkpoint)
        self._keep(KEPT_CHECKPOINTS)

    def kept(self, step: int) -> Path:
        """Folder of the weights that were best at a step."""
        return self.folder / f"kept-{step:09d}"

    def forget_newer(self, step: int) -> None:
        """Remove kept weights of later steps: they will be made again."""
        for folder in self.folder.glob("kept-*"):
            if folder.name > self.kept(step).name:
                shutil.rmtree(folder)

    def _keep(self, count: int) -> None:
        """Drop all but the newest checkpoints, and kept weights that none of these names and that are not newer."""
        for old in self.all()[:-count]:
            shutil.rmtree(old)
        checkpoints = self.all()
        named = {name for checkpoint in checkpoints for name in kept_by(checkpoint)}
        newest = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
        for folder in self.folder.glob("kept-*"):
            if folder.name not in named and folder.name <= self.kept(newest).name:
                shutil.rmtree(folder)

    def close(self) -> None:
        """The stage's outputs are in place: keep no more than it takes to put them there once more.

        Should the job end badly before Snakemake has noted its success, they are deleted. `sweep` removes the rest.
        """
        self._keep(1)
        (last,) = self.all()
        write_json(last / PROGRESS, sealed({**read_record(last / PROGRESS), "files": {}}))
        for path in last.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != PROGRESS:
                path.unlink()


def examine(checkpoint: Path) -> tuple[Record, list[str]]:
    """The record of a checkpoint, and what is wrong with all that it speaks of: its files, kept weights, the log."""
    try:
        record = read_record(checkpoint / PROGRESS)
    except DamagedError as error:
        return {}, [str(error)]
    folder = checkpoint.parent
    kept = {name: digest for files in record["kept"].values() for name, digest in files.items()}
    found = faults(checkpoint / PROGRESS, record, threads=READERS)
    found += faults(folder / PROGRESS, {"files": kept}, record["kept"], READERS)
    log, state = folder / LOG, record["journal"]
    written = b""
    if log.exists():
        with open(log, "rb") as file:
            written = file.read(state["metrics_bytes"])
    if hashlib.sha256(written).hexdigest() != state["metrics_sha256"]:
        found.append(f"{log}: is not what was written up to step {record['step']}")
    return record, found


def kept_by(checkpoint: Path) -> Record:
    """Digests of the kept weights that a checkpoint names, by folder; of a damaged one, none."""
    try:
        return dict(read_record(checkpoint / PROGRESS)["kept"])
    except DamagedError:
        return {}


def sweep(results: Path) -> None:
    """Remove what finished stages below `results` have left for the case that their success is not noted.

    For the end of a run that succeeded: then it is.
    """
    for root in results.glob("**/checkpoints"):
        done = (root.parent / name for name in LAST_WRITTEN)
        if any(path.exists() for path in done) and not (root / "lock").exists():
            shutil.rmtree(root)


def flush(path: Path) -> None:
    """Have a file on the disk, and not on its way there."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@dataclass
class Pace:
    """When a checkpoint is due.

    After 5 % of the training or `longest`, whichever is less, so that no more is lost with a node; but where that is
    a matter of seconds, not so often that training waits for checkpoints more than 2 % of the time.

    Attributes:
        longest: seconds.
        cost: seconds that training waited for the last checkpoint.
    """

    longest: float
    cost: float = 0.0

    def __post_init__(self) -> None:
        self._saved = time.monotonic()

    def saved(self, cost: float) -> None:
        """A checkpoint was made just now."""
        self.cost, self._saved = cost, time.monotonic()

    def interval(self, seconds: float, done: int, total: int) -> float:
        """Seconds between two checkpoints of a training whose first `done` steps took `seconds`."""
        share = SHARE_OF_RUN * seconds / max(done, 1) * total
        return min(self.longest, max(share, self.cost / SHARE_OF_TIME))

    def due(self, seconds: float, done: int, total: int) -> bool:
        """Whether it is time."""
        return time.monotonic() - self._saved >= self.interval(seconds, done, total)


@contextlib.contextmanager
def resumable(stage: Stage, output: Path) -> Iterator[Path]:
    """A folder beside an output for what the next attempt goes on from; `sweep` removes it."""
    root = output.parent / "checkpoints"
    checkpoints = Checkpoints(root, resume_key(stage))
    with Lock(root / "lock", stage.say):
        checkpoints.open()
        yield checkpoints.folder


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
                owner = {"host": socket.gethostname(), "process": os.getpid()}
                json.dump({**owner, "job": os.environ.get("SLURM_JOB_ID")}, file)
        except FileExistsError:
            if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
                raise InputError(
                    f"{self.path}: is a link, a folder or a pipe, and no lock of a stage; remove it and start again."
                ) from None
            return False
        return True

    def _wait_for_owner_to_be_gone(self) -> None:
        owner, seen = self._read()
        if owner.get("host") == socket.gethostname() and not _alive(owner["process"]):
            return
        patience = 6 * HEARTBEAT_SECONDS
        holder = owner or "something that does not say who it is"
        self.say(f"{self.path} is held by {holder}; waiting {patience:.0f} s for a sign of life")
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            time.sleep(HEARTBEAT_SECONDS / 5)
            _, now = self._read()
            if now is None:
                return
            if seen is not None and now != seen:
                job = f" (Slurm job {owner['job']})" if owner.get("job") else ""
                if not owner:
                    raise InputError(
                        f"{self.path}: is written to by a program that is no stage; end it, remove the file and start"
                        " again."
                    )
                raise InputError(
                    f"process {owner.get('process')} on {owner.get('host')}{job} is already at work in"
                    f" {self.path.parent}; wait for it, or end it (scancel), and start again."
                )

    def _read(self) -> tuple[dict[str, Any], float | None]:
        """Who holds the lock, and its last heartbeat; None if nobody does."""
        try:
            # opened, since a network file system may answer for an open file only what is true now
            with open(self.path, encoding="utf-8") as file:
                seen = os.fstat(file.fileno()).st_mtime
                owner = json.load(file)
        except FileNotFoundError:
            return {}, None
        except (ValueError, RecursionError):
            # its writer died between creating and filling it, or another program wrote it
            return {}, seen
        process = owner.get("process") if isinstance(owner, dict) else None
        if type(process) is not int or not 0 < process < 2**31:
            return {}, seen
        return owner, seen

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
