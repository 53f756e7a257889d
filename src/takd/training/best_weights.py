"""Saving and resuming of a training run: best weights on dev, and checkpoints."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import DistributedType, broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from takd.methods.base import Method
from takd.runtime.checkpoints import Checkpoints, examine, flush
from takd.runtime.errors import InputError
from takd.runtime.files import write_json
from takd.runtime.metrics_log import Journal
from takd.runtime.records import PROGRESS, Record, digests, sealed
from takd.training.exporting import Exported
from takd.training.student import Student

Tensors = dict[str, dict[str, Tensor]]  # by file and name


@dataclass
class Best:
    """The best dev value of a measure so far, its step, and the dev loss at that step.

    Of equal values the one with the lower loss is better; of equal losses, the earlier one.
    """

    measure: str
    step: int | None = None
    value: float | None = None
    loss: float | None = None

    def improves(self, values: dict[str, float]) -> bool:
        """Return whether dev values, which include `loss`, are better than the best so far."""
        value, loss = values[self.measure], values["loss"]
        if not math.isfinite(value):
            return False
        if self.value is None or self.loss is None:
            return True
        if value == self.value:
            # a finite loss is better than one that is not
            return loss < self.loss or (math.isfinite(loss) and not math.isfinite(self.loss))
        return value < self.value if self.measure == "loss" else value > self.value


@dataclass
class Keeper:
    """Writer and reader of a run's best weights and checkpoints.

    A checkpoint is copied to main memory while training waits, and written in the background.
    DeepSpeed writes its own checkpoints, one part per process, while training waits. Digests of all
    files are computed in the background.

    Attributes:
        best: best dev value by output ("model", "init"), which selects its weights.
        say: prints a message.
        kept: digests of kept weights, by folder and file; in the main process only.
    """

    student: Student
    method: Method
    exported: Exported
    journal: Journal
    checkpoints: Checkpoints
    best: dict[str, Best]
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        self.accelerator = self.student.accelerator
        self.sharded = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self.kept: dict[str, dict[str, str]] = {}

    def observe(self, step: int, values: dict[str, float]) -> None:
        """Export the current weights if they are the best so far by a selecting measure."""
        for best in self.best.values():
            if best.improves(values):
                best.step, best.value, best.loss = step, values[best.measure], values["loss"]
        if any(best.step == step for best in self.best.values()):
            self.student.export(self.checkpoints.kept(step), self.exported)

    def save(self, step: int) -> float:
        """Write a checkpoint; return the seconds that training waited for it.

        Raises:
            InputError: this checkpoint or the previous one could not be written.
        """
        began = time.monotonic()
        self.finish()
        main = self.accelerator.is_main_process
        if self.sharded:
            partial = self.checkpoints.partial(step)
            self.accelerator.wait_for_everyone()
            if main:
                partial.mkdir(exist_ok=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(partial))
            self.accelerator.wait_for_everyone()
        if main:
            tensors: Tensors = {} if self.sharded else self.student.state()
            tensors["method"] = self.method.state()
            scaler = self.accelerator.scaler
            progress = {
                "step": step,
                "best": {name: [b.step, b.value, b.loss] for name, b in self.best.items()},
                "scaler": None if scaler is None else scaler.state_dict(),
                "journal": self.journal.state(),
            }
            # the tensors are copies, so training can change the weights while they are written
            self._writing = self._writer.submit(self._write, step, tensors, progress)
        waited = time.monotonic() - began
        self.journal.checkpoints += 1
        self.journal.checkpoint_seconds += waited
        return waited

    def finish(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            InputError: it could not be written.
        """
        if self._writing is None:
            return
        try:
            self._writing.result()
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"a checkpoint could not be written to {self.checkpoints.folder} ({error}); make room there, and start"
                " again: what came before it is whole."
            ) from error
        finally:
            self._writing = None

    def _write(self, step: int, tensors: Tensors, progress: Record) -> None:
        partial = self.checkpoints.partial(step)
        partial.mkdir(exist_ok=True)
        for name, values in tensors.items():
            if values:
                save_file(values, partial / f"{name}.safetensors")
        folders = [self.checkpoints.kept(b[0]) for b in progress["best"].values() if b[0]]
        self.kept = {f.name: self.kept.get(f.name) or digests([f], f.parent) for f in folders}
        record = {**progress, "kept": self.kept, "files": digests([partial], partial)}
        write_json(partial / PROGRESS, sealed(record))
        # the log must be on disk up to the length that the checkpoint records
        flush(self.journal.path)
        self.checkpoints.commit(step)

    def resume(self, over: Callable[[int], bool]) -> int:
        """Load the newest undamaged checkpoint; return the number of completed steps.

        A checkpoint's digests are checked before anything of it is used.

        Args:
            over: whether the run ends after a number of steps, by the counts of the journal.

        Raises:
            InputError: there are checkpoints, but all are damaged.
        """
        # the main process chooses: on a network file system, others may see other checkpoints
        chosen = self._choose() if self.accelerator.is_main_process else None
        folder, progress, error = broadcast_object_list([chosen])[0]
        if error:
            raise InputError(error)
        if folder is None:
            self.journal.restart()
            return 0
        self.journal.resume(progress["journal"])
        # of a finished run, only kept weights are needed, and `Checkpoints.close` removes the rest
        finished = over(progress["step"])
        if self.sharded and not finished:
            self.accelerator.load_state(str(folder))
        elif not finished:
            parts = ("model", "optimizer")
            self.student.restore({part: _tensors(folder, part) for part in parts})
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(progress["scaler"])
        if method := _tensors(folder, "method"):
            self.method.restore(method)
        for output, (step, value, loss) in progress["best"].items():
            self.best[output] = Best(self.best[output].measure, step, value, loss)
        self.kept = progress["kept"]
        return progress["step"]

    def _choose(self) -> tuple[Path | None, Record, str | None]:
        """Return the newest undamaged checkpoint and its record, or an error if all are damaged.

        Removes damaged checkpoints if an undamaged one exists.
        """
        damaged: list[Path] = []
        said = ""
        for folder in reversed(self.checkpoints.all()):
            record, found = examine(folder)
            if not found:
                for each in damaged:
                    self.checkpoints.drop(each)
                self.checkpoints.forget_newer(record["step"])
                if damaged:
                    self.say(f"{said}; the training resumes from step {record['step']}.")
                return folder, record, None
            damaged.append(folder)
            said = said or f"Damaged checkpoint: {found[0]}"
        if not damaged:
            return None, {}, None
        advice = f"delete {self.checkpoints.folder} and start again, from the first step"
        return None, {}, f"no checkpoint is whole ({found[0]}); {advice}."


def _tensors(folder: Path, part: str) -> dict[str, Tensor]:
    path = folder / f"{part}.safetensors"
    return load_file(path) if path.exists() else {}
