"""A method that adapts to its own training loss through `Method.learned`, as a method of the library could.

The weight of the teacher in the loss grows with the decrease of the loss, as in TAID (arXiv 2501.16937).
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from takd.losses.divergences import forward_kl
from takd.losses.teacher_logits import LiveTeacher
from takd.methods.base import LabelledRows, LossFunction
from takd.methods.token_losses import label_and_divergence_loss
from takd.runtime import code_digest


class LossAdaptive(LabelledRows):
    share, before, momentum, seen = 0.1, 0.0, 0.0, -1

    def loss(self, tokens: int) -> LossFunction:
        vocabulary = self.context.vocabulary
        teacher = LiveTeacher(self.teacher, vocabulary)
        plain = label_and_divergence_loss(teacher, forward_kl, self.share, vocabulary, tokens)
        share = self.share

        def loss(student, rows):  # type: ignore[no-untyped-def]
            value, statistics = plain(student, rows)
            part = sum(len(row.response) for row in rows) / tokens
            return value, {**statistics, "share": value.new_tensor(part * share)}

        return loss

    def learned(self, step: int, values: dict[str, float]) -> None:
        assert step == self.seen + 1, "each step once, in order"
        if dist.is_initialized():
            everywhere: list[object] = [None] * dist.get_world_size()
            dist.all_gather_object(everywhere, values)
            assert all(other == values for other in everywhere)
        change = (self.before - values["loss"]) / self.before if step else 0.0
        self.momentum = 0.9 * self.momentum + 0.1 * change
        self.share = min(1.0, max(self.share + 0.2 * self.momentum, 0.1 * (step + 1) / 16))
        self.before, self.seen = values["loss"], step

    def state(self) -> dict[str, Tensor]:
        values = [self.share, self.before, self.momentum, self.seen]
        return {"adaptive": torch.tensor(values, dtype=torch.float64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.share, self.before, self.momentum, seen = state["adaptive"].tolist()
        self.seen = int(seen)


METHOD = LossAdaptive
# where methods and their code are looked up
NAME = "takd.methods.loss_adaptive"
sys.modules[NAME] = sys.modules[__name__]
_file = code_digest._module_file
code_digest._module_file = lambda module: Path(__file__) if module == NAME else _file(module)
