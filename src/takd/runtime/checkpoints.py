"""Checkpoints that survive when Snakemake deletes a failed job's outputs, and a lock on a stage.

Checkpoints are in `checkpoints/<key>/` beside the outputs, and are not declared to Snakemake. The
key is a digest of settings, code and inputs, so a run never resumes from a checkpoint of other
ones.
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

from takd.runtime.digests import canonical_json, file_digest, short_digest
from takd.runtime.errors import InputError
from takd.runtime.records import (
    LAST_WRITTEN,
    PROGRESS,
    DamagedError,
    Record,
    faults,
    read_record,
    sealed,
)
from takd.runtime.stage import Stage, write_json

KEPT_CHECKPOINTS = 2
LOG = "metrics.jsonl"
READERS = 4  # threads that compute digests of a checkpoint
HEARTBEAT_SECONDS = 5.0
SHARE_OF_RUN = 0.05  # of the training between two checkpoints, which a crash may lose
SHARE_OF_TIME = 0.02  # of the time that checkpoints may take


def resume_key(stage: Stage) -> str:
    """Return the digest of all that determines a stage's result: settings, code and inputs."""
    inputs = {name: [file_digest(path) for path in paths] for name, paths in stage.inputs.items()}
    return short_digest(canonical_json(stage.spec), stage.code, canonical_json(inputs))


class Checkpoints:
    """Checkpoints and kept weights of one run of a stage."""

    def __init__(self, root: Path, key: str) -> None:
        self.root, self.folder = root, root / key

    def open(self) -> None:
        """Create the folder; remove checkpoints of other keys, and incomplete ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for other in self.root.iterdir():
            if other.is_dir() and other != self.folder:
                shutil.rmtree(other)
        for partial in self.folder.glob(".*.partial"):
            shutil.rmtree(partial)

    def all(self) -> list[Path]:
        """Return the folders of complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def partial(self, step: int) -> Path:
        """Return the folder in which a step's checkpoint is written until it is complete."""
        return self.folder / f".step-{step:09d}.partial"

    def commit(self, step: int) -> None:
        """Flush a partial checkpoint to disk, rename it to its final name, and remove old ones."""
        # flushed before the rename, so that a folder with a final name is complete even after a
        # crash
        partial = self.partial(step)
        for path in partial.rglob("*"):
            if path.is_file():
                flush(path)
        final = self.folder / f"step-{step:09d}"
        # os.replace cannot replace a folder that is not empty
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        self._keep(KEPT_CHECKPOINTS)

    def drop(self, checkpoint: Path) -> None:
        """Remove a damaged checkpoint, and kept weights that no other checkpoint refers to."""
        shutil.rmtree(checkpoint)
        self._keep(KEPT_CHECKPOINTS)

    def kept(self, step: int) -> Path:
        """Return the folder of the weights kept at a step, the best on dev."""
        return self.folder / f"kept-{step:09d}"

    def forget_newer(self, step: int) -> None:
        """Remove kept weights of later steps, which will run again."""
        for folder in self.folder.glob("kept-*"):
            if folder.name > self.kept(step).name:
                shutil.rmtree(folder)

    def _keep(self, count: int) -> None:
        """Remove all but the `count` newest checkpoints, and old kept weights that none uses."""
        for old in self.all()[:-count]:
            shutil.rmtree(old)
        checkpoints = self.all()
        named = {name for checkpoint in checkpoints for name in kept_by(checkpoint)}
        newest = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
        for folder in self.folder.glob("kept-*"):
            # newer weights belong to the next checkpoint, which is not written yet
            if folder.name not in named and folder.name <= self.kept(newest).name:
                shutil.rmtree(folder)

    def close(self) -> None:
        """Remove all but what is needed to restore the outputs, once they are in place.

        If the job fails before Snakemake has recorded its success, Snakemake deletes the outputs.
        `sweep` removes the rest later.
        """
        self._keep(1)
        # the record of the last step and the kept weights are enough: a rerun finds no step left to
        # do, and publishes the weights again. Its list of files is emptied, as they are deleted
        (last,) = self.all()
        write_json(last / PROGRESS, sealed({**read_record(last / PROGRESS), "files": {}}))
        for path in last.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != PROGRESS:
                path.unlink()


def examine(checkpoint: Path) -> tuple[Record, list[str]]:
    """Return a checkpoint's record, and the faults of its files, kept weights and log."""
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
        # the log may be longer: lines after the checkpoint are cut off on resume
        with open(log, "rb") as file:
            written = file.read(state["metrics_bytes"])
    if hashlib.sha256(written).hexdigest() != state["metrics_sha256"]:
        found.append(f"{log}: is not what was written up to step {record['step']}")
    return record, found


def kept_by(checkpoint: Path) -> Record:
    """Return the digests of a checkpoint's kept weights, by folder; empty if it is damaged."""
    try:
        return dict(read_record(checkpoint / PROGRESS)["kept"])
    except DamagedError:
        return {}


def sweep(results: Path) -> None:
    """Remove the checkpoints of all finished stages below `results`.

    Called at the end of a successful run, when Snakemake has recorded the success of all stages.
    """
    for root in results.glob("**/checkpoints"):
        done = (root.parent / name for name in LAST_WRITTEN)
        # with a lock, the stage is running again
        if any(path.exists() for path in done) and not (root / "lock").exists():
            shutil.rmtree(root)


def flush(path: Path) -> None:
    """Write a file's buffered content to the disk (fsync)."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@dataclass
class Pace:
    """Interval between checkpoints.

    It is 5 % of the training or `longest`, whichever is less, which bounds the work that a crash
    can lose. Where checkpoints would take more than 2 % of the time, it grows, up to `longest`.

    Attributes:
        longest: longest interval in seconds.
        cost: seconds that training waited for the last checkpoint.
    """

    longest: float
    cost: float = 0.0

    def __post_init__(self) -> None:
        self._saved = time.monotonic()

    def saved(self, cost: float) -> None:
        """Record that a checkpoint was just written."""
        self.cost, self._saved = cost, time.monotonic()

    def interval(self, seconds: float, done: int, total: int) -> float:
        """Return the seconds between two checkpoints, if the first `done` steps took `seconds`."""
        share = SHARE_OF_RUN * seconds / max(done, 1) * total
        return min(self.longest, max(share, self.cost / SHARE_OF_TIME))

    def due(self, seconds: float, done: int, total: int) -> bool:
        """Return whether a checkpoint is due."""
        return time.monotonic() - self._saved >= self.interval(seconds, done, total)


@contextlib.contextmanager
def resumable(stage: Stage, output: Path) -> Iterator[Path]:
    """Lock and yield a folder beside an output for partial results, which `sweep` removes.

    The next attempt of the stage resumes from them.
    """
    root = output.parent / "checkpoints"
    checkpoints = Checkpoints(root, resume_key(stage))
    with Lock(root / "lock", stage.say):
        checkpoints.open()
        yield checkpoints.folder


class Lock:
    """Lock file that prevents two copies of a stage; its time stamp is a heartbeat.

    If Snakemake's main process dies and is restarted while its job still runs, two jobs would
    otherwise write to the same folder. The lock of a dead process is taken over: at once on the
    same host, else if its heartbeat has stopped for a while.
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
            # mode x fails if the file exists, so only one process can create the lock
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
        # process ids are only comparable on the same host; elsewhere only the heartbeat is visible
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
        """Return the owner of the lock and its last heartbeat; ({}, None) if there is no lock."""
        try:
            # opened first: network file systems refresh a cached time stamp when a file is opened
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
