"""Division of work among processes: each does every n-th piece, and the first combines the results.

The result of a piece depends on that piece only (up to rounding), so results do not depend on the
number of processes. The only collective operation is a barrier: each process writes its results to
a file of its own, and the first reads all files.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from takd.runtime.checkpoints import Checkpoints, resume_key
from takd.runtime.launch import rank, world_size
from takd.runtime.metrics_log import Journal, Progress, timed
from takd.runtime.stage import Interrupted, Stage
from takd.runtime.stage_lock import Lock

Piece = TypeVar("Piece")

PATIENCE = timedelta(days=7)  # timeout of the barrier, beyond the time limit of any job


@dataclass(frozen=True)
class Shard:
    """This process's shard of the work."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that combines the results."""
        return self.rank == 0

    def of(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """Return the pieces that this process has to do."""
        return pieces[self.rank :: self.count]

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        if self.count > 1:
            import torch.distributed

            torch.distributed.barrier()


@contextlib.contextmanager
def resumable(stage: Stage, output: Path) -> Iterator[tuple[Path, Shard, Journal]]:
    """Open a folder beside an output for partial results, from which the next attempt resumes.

    The first process holds the folder's lock; `checkpoints.sweep` removes the folder later. The
    process group ends with the stage (`takd.runtime.shutdown`).

    Yields:
        The folder, this process's shard of the work, and the log with the time of all attempts.
    """
    shard = Shard(rank(), world_size())
    if shard.count > 1:
        # the judge, which is one process, needs no torch
        import torch.distributed

        torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    checkpoints = Checkpoints(output.parent / "checkpoints", resume_key(stage))
    with contextlib.ExitStack() as stack:
        if shard.first:
            stack.enter_context(Lock(checkpoints.root / "lock", stage.say))
            checkpoints.open()
        shard.wait()
        journal = stack.enter_context(timed(checkpoints.folder, active=shard.first))
        yield checkpoints.folder, shard, journal


class JsonlStore:
    """Saved results, one JSON record per line: `NAME.jsonl`, `NAME.1.jsonl`, ... by process.

    Records are saved immediately, each after a digest of its line. A killed process may leave half
    a line, which is ignored, and results on damaged lines are computed again.

    Attributes:
        say: prints a message.
    """

    def __init__(
        self, folder: Path, name: str, shard: Shard, say: Callable[[str], None] = print
    ) -> None:
        self._folder, self._name, self._shard, self.say = folder, name, shard, say
        mark = "" if shard.first else f".{shard.rank}"
        self._file = folder / f"{name}{mark}.jsonl"

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the undamaged records of all processes, of this and earlier attempts."""
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
    def saving(
        self, stage: Stage, title: str, what: str, total: int, done: int = 0
    ) -> Iterator[Callable[..., None]]:
        """Open this process's file, and show how many of `total` pieces of work are done.

        Yields:
            A function that saves the records of `count` pieces (1). It raises Interrupted if the
                stage has to stop before its last piece.
        """
        progress = Progress(title, total, done, active=self._shard.first)
        with open(self._file, "ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # to the end of the last complete record

            def save(*records: dict[str, Any], count: int = 1) -> None:
                nonlocal done
                for record in records:
                    line = json.dumps(record).encode()
                    file.write(b"%s %s\n" % (_digest(line).encode(), line))
                file.flush()
                done += count
                progress.step(done, {})
                if done < total and stage.should_stop():
                    raise Interrupted(f"{title}: {done} of {total} {what} are kept.")

            yield save
        progress.close()


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:16]
