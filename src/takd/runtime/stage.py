"""A run of a stage: its settings, inputs and outputs, its messages, and the record that it leaves.

A stage is a function `run(stage)` in a module of this package. It does not depend on Snakemake.
"""

import contextlib
import functools
import os
import shutil
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from takd.runtime.digests import file_digest
from takd.runtime.errors import InputError
from takd.runtime.files import write_json
from takd.runtime.launch import rank
from takd.runtime.records import digests, sealed

PIECE = "piece"  # name of inputs that are pieces of the result, such as parts of generations
LOG = "metrics"  # name of the output that is a log
CHECKPOINT_SECONDS = 600.0
VERSIONED = (
    *("torch", "transformers", "accelerate", "deepspeed", "peft", "datasets", "tokenizers"),
    "rouge_score",
)


class Interrupted(Exception):
    """Raised when a stage stops early, on SIGTERM or at its time limit; its progress is saved."""


@dataclass
class Stage:
    """One run of a stage: its settings, the digest of its code, named paths, and resources.

    Attributes:
        threads: of each process.
        processes: on each node, one per GPU.
        micro_batch: rows that a process handles at once.
        max_tokens: tokens that it handles at once, padding included; 0 for no limit.
        deadline: Unix time at which the stage must stop; None for no limit.
        checkpoint_seconds: longest time between two checkpoints.
        stop_requested: whether SIGTERM was received.
    """

    spec: dict[str, Any]
    code: str
    inputs: dict[str, list[Path]] = field(default_factory=dict)
    outputs: dict[str, Path] = field(default_factory=dict)
    threads: int = 1
    processes: int = 1
    micro_batch: int = 8
    max_tokens: int = 0
    gradient_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = False
    deadline: float | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    stop_requested: bool = False
    git_commit: str | None = None

    def input(self, name: str) -> Path:
        """Return the only input called `name`."""
        paths = self.many(name)
        if len(paths) != 1:
            raise InputError(
                f"--input {name}=PATH must be given once, but is given {len(paths)} times."
            )
        return paths[0]

    def many(self, name: str) -> list[Path]:
        """Return all inputs called `name`, in the given order."""
        return self.inputs.get(name, [])

    def origin(self) -> dict[str, str | None]:
        """Return commit and code digest for the last line of a log.

        Manifests hold no commit, since stages that read them would rerun after each commit.
        """
        return {"commit": self.git_commit, "code": self.code}

    def say(self, text: str) -> None:
        """Print a message to log (stderr) and console (stdout), in the first process only."""
        for stream in (sys.stdout, sys.stderr) if rank() == 0 else ():
            with contextlib.suppress(OSError):  # the log's disk may be full, not the console's
                print(text, file=stream, flush=True)

    def should_stop(self) -> bool:
        """Return whether to save a checkpoint and stop, on SIGTERM or at the time limit."""
        return self.stop_requested or (self.deadline is not None and time.time() > self.deadline)

    def temporary(self, path: Path) -> Path:
        """Create an empty folder beside `path`, to be filled and then moved there with `commit`."""
        work = path.with_name(f".{path.name}.partial")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        return work

    def commit(self, path: Path) -> None:
        """Move the folder from `temporary(path)` to `path`, replacing what was there.

        Files get the default permissions: safetensors creates some that only their owner may read.
        """
        work = path.with_name(f".{path.name}.partial")
        mode = work.stat().st_mode & 0o666  # that of a new folder, which follows the umask
        for file in work.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(mode)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(work, path)

    def write_manifest(
        self,
        path: Path,
        files: dict[str, str] | None = None,
        known_by_content: Collection[str] = (),
        **fields: Any,
    ) -> None:
        """Write the manifest that identifies the result of this stage.

        It holds no times and no machine names, so that equal work gives equal bytes and stages that
        read it do not rerun. It is written last: if a manifest exists, all other outputs do.

        Args:
            files: digests of the outputs, if already known.
            known_by_content: settings to leave out because the digests of the result already
                identify them, such as where a source lies or what was only checked.
        """
        versions = {name: _version(name) for name in VERSIONED}
        spec = {key: value for key, value in self.spec.items() if key not in known_by_content}
        more = {"spec": spec, "code": self.code, "versions": versions}
        self.write_record(path, files, **fields, **more)

    def write_record(self, path: Path, files: dict[str, str] | None = None, **fields: Any) -> None:
        """Write facts, the digests of inputs and outputs, and a digest of the record itself.

        Inputs that are pieces of the result are left out, so that the number of pieces does not
        change the record.
        """
        sources = {
            name: [file_digest(path) for path in paths if path.is_file()]
            for name, paths in self.inputs.items()
            if name != PIECE
        }
        files = self.digests(path) if files is None else files
        log = {"log": self.outputs[LOG].name} if LOG in self.outputs else {}
        write_json(path, sealed({**fields, **log, "inputs": sources, "files": files}))

    def digests(self, record: Path) -> dict[str, str]:
        """Return the sha256 of each output file, by its path from the folder of the record.

        The log is left out, since its times differ between equal runs; its last line holds its own
        digest.
        """
        paths = [p for name, p in self.outputs.items() if name != LOG and p != record]
        return digests(paths, record.parent, self.threads)


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
