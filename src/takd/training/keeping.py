"""What a run keeps: the weights that were best on dev, and checkpoints to go on from."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from takd.methods.base import Method
from takd.stage import read_json, write_json
from takd.training.checkpoints import Checkpoints
from takd.training.progress import Journal
from takd.training.student import Student


@dataclass
class Best:
    """The best dev value of a measure so far, and the step that had it."""

    measure: str
    step: int | None = None
    value: float | None = None

    def improves(self, value: float) -> bool:
        if self.value is None:
            return True
        return value < self.value if self.measure == "loss" else value > self.value


@dataclass
class Keeper:
    """Writes and reads what one run keeps, in the folder of its checkpoints.

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
        # weights that do not train are those of the start again; DeepSpeed writes its checkpoints itself
        self.partial = self.accelerator.distributed_type != DistributedType.DEEPSPEED and any(
            not parameter.requires_grad for parameter in self.student.model.parameters()
        )
        if self.partial:
            self.accelerator.register_save_state_pre_hook(_drop_frozen)

    def kept(self, step: int) -> Path:
        """Folder of the weights that were best at a step."""
        return self.checkpoints.folder / f"kept-{step:09d}"

    def observe(self, step: int, values: dict[str, float]) -> None:
        """Keep the weights of now where a measure that picks a model is the best so far."""
        for best in self.best.values():
            if best.improves(values[best.measure]):
                best.step, best.value = step, values[best.measure]
        if any(best.step == step for best in self.best.values()):
            self.student.export(self.kept(step), self.tokenizer)

    def save(self, step: int) -> None:
        """Write a checkpoint; kept weights that no checkpoint names are dropped."""
        partial = self.checkpoints.partial(step)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            partial.mkdir(exist_ok=True)
            state = self.method.state()
            if state:
                save_file(state, partial / "method.safetensors")
            write_json(
                partial / "progress.json",
                {
                    "step": step,
                    "seconds": self.journal.seconds,
                    "tokens": self.journal.tokens,
                    "metrics_bytes": self.journal.size(),
                    "best": {name: [b.step, b.value] for name, b in self.best.items()},
                },
            )
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.checkpoints.commit(step)
            self._drop_unnamed()

    def _drop_unnamed(self) -> None:
        """Remove kept weights that no checkpoint refers to."""
        named = {
            self.kept(best[0]).name
            for checkpoint in self.checkpoints.all()
            for best in read_json(checkpoint / "progress.json")["best"].values()
            if best[0] is not None
        }
        for folder in self.checkpoints.folder.glob("kept-*"):
            if folder.name not in named:
                shutil.rmtree(folder)

    def resume(self) -> int:
        """Go on from the newest checkpoint; returns the number of steps that are done."""
        if not (found := self.checkpoints.all()):
            self.journal.restart()
            return 0
        progress = read_json(found[-1] / "progress.json")
        self.accelerator.load_state(str(found[-1]), **({"strict": False} if self.partial else {}))
        method = found[-1] / "method.safetensors"
        if method.exists():
            self.method.restore(load_file(method))
        for name, (step, value) in progress["best"].items():
            self.best[name].step, self.best[name].value = step, value
        self.journal.resume(progress["metrics_bytes"], progress["seconds"], progress["tokens"])
        return progress["step"]


def _drop_frozen(models: list[Any], weights: list[dict[str, Any]], folder: str) -> None:
    """Take parameters that do not train out of a checkpoint."""
    for model, state in zip(models, weights, strict=True):
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad:
                del state[name]
