"""Checkpoints that survive when Snakemake deletes a failed job's outputs.

Checkpoints are in `checkpoints/<key>/` beside the outputs, and are not declared to Snakemake. The
key is a digest of settings, code and inputs, so a run never resumes from a checkpoint of other
ones.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from takd.runtime.digests import canonical_json, file_digest, short_digest
from takd.runtime.files import write_json
from takd.runtime.records import (
    LAST_WRITTEN,
    PROGRESS,
    DamagedError,
    Record,
    faults,
    read_record,
    sealed,
)
from takd.runtime.stage import Stage

KEPT_CHECKPOINTS = 2
LOG = "metrics.jsonl"
READERS = 4  # threads that compute digests of a checkpoint
SHARE_OF_RUN = 0.05  # of the training between two checkpoints, which a crash may lose
SHARE_OF_TIME = 0.02  # of the time that checkpoints may take


def resume_key(stage: Stage) -> str:
    """Return the digest of all that determines a stage's result: settings, code and inputs."""
    inputs = {name: [file_digest(path) for path in paths] for name, paths in stage.inputs.items()}
    return key_of(stage.spec, stage.code, inputs)


def key_of(spec: Mapping[str, Any], code: str, inputs: Mapping[str, list[str]]) -> str:
    """Return the digest of settings, code, and the digests of inputs by name."""
    return short_digest(canonical_json(spec), code, canonical_json(inputs))


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
