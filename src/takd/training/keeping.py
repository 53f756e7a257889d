"""What a run keeps: the weights that were best on dev, and checkpoints to go on from."""

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType, broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from takd.errors import InputError
from takd.methods.base import Method
from takd.stage import read_json, write_json
from takd.training.checkpoints import PROGRESS, Checkpoints, flush
from takd.training.progress import Journal
from takd.training.student import Student

Tensors = dict[str, dict[str, Tensor]]  # by file and name


@dataclass
class Best:
    """The best dev value of a measure so far, and the step that had it."""

    measure: str
    step: int | None = None
    value: float | None = None

    def improves(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.value is None:
            return True
        return value < self.value if self.measure == "loss" else value > self.value


@dataclass
class Keeper:
    """Writes and reads what one run keeps, in the folder of its checkpoints.

    A checkpoint is copied to main memory while training waits, and written while it goes on. DeepSpeed writes its
    own, each process its part, and training waits.

    Attributes:
        best: names of outputs ("model", "init") and the dev measure that picks their weights.
    """

    student: Student
    method: Method
    tokenizer: PreTrainedTokenizerBase
    journal: Journal
    checkpoints: Checkpoints
    best: dict[str, Best]

    def __post_init__(self) -> None:
        self.accelerator = self.student.accelerator
        self.sharded = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def observe(self, step: int, values: dict[str, float]) -> None:
        """Keep the weights of now where a measure that picks a model is the best so far."""
        for best in self.best.values():
            if best.improves(values[best.measure]):
                best.step, best.value = step, values[best.measure]
        if any(best.step == step for best in self.best.values()):
            self.student.export(self.checkpoints.kept(step), self.tokenizer)

    def save(self, step: int) -> float:
        """Make a checkpoint; returns the seconds that training waited for it.

        Raises:
            InputError: this one or the one before could not be written.
        """
        began = time.monotonic()
        self.finish()
        if self.sharded:
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self.checkpoints.partial(step).mkdir(exist_ok=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(self.checkpoints.partial(step)))
            self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            tensors: Tensors = {} if self.sharded else self.student.state()
            tensors["method"] = self.method.state()
            scaler = self.accelerator.scaler
            progress = {
                "step": step,
                "best": {name: [b.step, b.value] for name, b in self.best.items()},
                "scaler": None if scaler is None else scaler.state_dict(),
                "journal": self.journal.state(),
            }
            self._writing = self._writer.submit(self._write, step, tensors, progress)
        if self.sharded:
            self.finish()
        waited = time.monotonic() - began
        self.journal.checkpoints += 1
        self.journal.checkpoint_seconds += waited
        return waited

    def finish(self) -> None:
        """Wait until the last checkpoint is on the disk.

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

    def _write(self, step: int, tensors: Tensors, progress: dict[str, Any]) -> None:
        partial = self.checkpoints.partial(step)
        partial.mkdir(exist_ok=True)
        for name, values in tensors.items():
            if values:
                save_file(values, partial / f"{name}.safetensors")
        write_json(partial / PROGRESS, progress)
        flush(self.journal.path)  # as long as the checkpoint says
        self.checkpoints.commit(step)

    def resume(self, total: int) -> int:
        """Go on from the newest checkpoint; returns the number of the `total` steps that are done."""
        newest = [path.name for path in self.checkpoints.all()[-1:]]
        # on a network file system, processes may see different ones
        (name,) = broadcast_object_list([*newest, None][:1])
        if name is None:
            self.journal.restart()
            return 0
        folder = self.checkpoints.folder / name
        progress = read_json(folder / PROGRESS)
        if progress["step"] == total:
            pass  # what is kept is all that is asked for, and may be all that is there
        elif self.sharded:
            self.accelerator.load_state(str(folder))
        else:
            parts = ("model", "optimizer")
            self.student.restore({part: _tensors(folder, part) for part in parts})
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(progress["scaler"])
        if method := _tensors(folder, "method"):
            self.method.restore(method)
        for output, (step, value) in progress["best"].items():
            self.best[output].step, self.best[output].value = step, value
        self.journal.resume(progress["journal"])
        return progress["step"]


def _tensors(folder: Path, part: str) -> dict[str, Tensor]:
    path = folder / f"{part}.safetensors"
    return load_file(path) if path.exists() else {}
