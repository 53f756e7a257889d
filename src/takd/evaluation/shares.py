"""Work that several processes share: each does every n-th piece, the first one puts the results together.

What a piece comes to depends on nothing but itself, so neither does the result depend on the number of processes. They
need no collective operation but a barrier: each writes what it found into a file of its own, and the first reads all.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed

from takd.stage import Stage
from takd.training.checkpoints import resumable, resume_key

Piece = TypeVar("Piece")

PATIENCE = timedelta(days=7)  # of the first to be done for the last: the job's own time ends before


@dataclass(frozen=True)
class Share:
    """Which of the processes this one is."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that puts the results together."""
        return self.rank == 0

    def of(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """The pieces that are this process's to do."""
        return pieces[self.rank :: self.count]

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            torch.distributed.barrier()


@contextlib.contextmanager
def shared(stage: Stage, output: Path) -> Iterator[tuple[Path, Share]]:
    """The folder for what the next attempt goes on from (`checkpoints.resumable`), the same for all processes.

    The first process holds its lock, and leaves last.
    """
    share = Share(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    if share.count == 1:
        with resumable(stage, output) as folder:
            yield folder, share
        return
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        if share.first:
            with resumable(stage, output) as folder:
                share.wait()
                yield folder, share
        else:
            share.wait()
            yield output.parent / "checkpoints" / resume_key(stage), share
    finally:
        torch.distributed.destroy_process_group()


class Store:
    """Records that were found, one a line of JSON, a file for each process: `NAME.jsonl`, `NAME.1.jsonl`, ...

    Written down as they are found, each after a digest of its line. A process that is killed may leave half a line,
    which is no record; what a damaged line held is found once more.

    Attributes:
        say: tells the one who waits.
    """

    def __init__(
        self, folder: Path, name: str, share: Share, say: Callable[[str], None] = print
    ) -> None:
        self._folder, self._name, self.say = folder, name, say
        mark = "" if share.first else f".{share.rank}"
        self._file = folder / f"{name}{mark}.jsonl"

    def read(self) -> Iterator[dict[str, Any]]:
        """The whole records of all processes of this and of earlier attempts."""
        for path in sorted(self._folder.glob(f"{self._name}*.jsonl")):
            with open(path, "rb") as file:
                for number, line in enumerate(file, 1):
                    digest, _, record = line.rstrip(b"\n").partition(b" ")
                    if not line.endswith(b"\n"):
                        continue
                    if digest.decode(errors="replace") == _digest(record):
                        yield json.loads(record)
                    else:
                        self.say(f"{path}, line {number}: damaged; what it held is done again")

    @contextlib.contextmanager
    def appending(self) -> Iterator["Store"]:
        """Go on after the last whole record of this process's file."""
        if self._file.exists():
            whole = self._file.read_bytes()
            with open(self._file, "rb+") as file:
                file.truncate(whole.rfind(b"\n") + 1)
        with open(self._file, "a", encoding="utf-8") as self._open:
            yield self

    def add(self, *records: dict[str, Any]) -> None:
        """Write down records that were found together."""
        for line in map(json.dumps, records):
            self._open.write(f"{_digest(line.encode())} {line}\n")
        self._open.flush()


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:16]
