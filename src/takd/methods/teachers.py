"""Where the teacher's distributions at a batch's tokens come from.

The teacher runs; or its last hidden states were kept when it drew the responses, and its distributions are one
matrix product away; or a stage wrote down what it says of the training rows, once for all students.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from takd.divergences import coarsen, log_tail
from takd.layout import Layout
from takd.models import project, tempered


class TeacherView(Protocol):
    """The teacher's distributions at the response tokens of a batch."""

    def columns(self, rows: Sequence[Any], layout: Layout) -> dict[str, Tensor]:
        """What is needed of each token, (n, ...)."""
        ...

    def pair(self, student_nv: Tensor, columns: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of student and teacher over the same choices, (n, choices) each."""
        ...


@dataclass
class LiveTeacher:
    """The teacher runs beside the student."""

    model: PreTrainedModel
    vocabulary: int
    temperature: float = 1.0

    @torch.no_grad()
    def columns(self, rows: Sequence[Any], layout: Layout) -> dict[str, Tensor]:
        return {"teacher_hidden": layout.hidden(self.model)}

    @torch.no_grad()
    def _log(self, hidden_nh: Tensor) -> Tensor:
        return tempered(
            project(self.model, hidden_nh, self.vocabulary), self.temperature
        ).log_softmax(-1)

    def pair(self, student_nv: Tensor, columns: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return student_nv, self._log(columns["teacher_hidden"])


class KeptTeacher(LiveTeacher):
    """The rows carry the teacher's hidden states, `teacher_hidden` of (length, hidden size) each."""

    def columns(self, rows: Sequence[Any], layout: Layout) -> dict[str, Tensor]:
        kept = torch.cat([row.teacher_hidden for row in rows])
        return {"teacher_hidden": kept.to(layout.ids_bt.device, self.model.dtype)}


class StoredOutputs:
    """Teacher outputs on disk: one row after the other, read where they are needed.

    A safetensors file holds `offsets` (rows + 1,), the token at which each row begins, and either `hidden`
    (tokens, hidden size), or `tokens` and `log_probabilities` (tokens, k) of the likeliest tokens.
    """

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, "pt")
        self.names = set(self._file.keys()) - {"offsets"}
        self.offsets = self._file.get_tensor("offsets").tolist()

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The outputs of some rows, joined: (tokens, ...) each."""
        found: dict[str, Tensor] = {}
        for name in self.names:
            part = self._file.get_slice(name)
            found[name] = torch.cat([part[self.offsets[i] : self.offsets[i + 1]] for i in indices])
        return found


@dataclass
class StoredTeacher:
    """The k likeliest tokens and the tail, as a stage wrote them down: no teacher is needed."""

    stored: StoredOutputs

    def columns(self, rows: Sequence[Any], layout: Layout) -> dict[str, Tensor]:
        found = self.stored.read([row.index for row in rows])
        device = layout.ids_bt.device
        return {
            "teacher_tokens": found["tokens"].long().to(device),
            "teacher_log": found["log_probabilities"].float().to(device),
        }

    def pair(self, student_nv: Tensor, columns: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        named_nk = columns["teacher_log"]
        student_nc = coarsen(student_nv, columns["teacher_tokens"])
        return student_nc, torch.cat([named_nk, log_tail(named_nk)], -1)


@dataclass
class StoredHidden(LiveTeacher):
    """The teacher's hidden states, as a stage wrote them down: its whole distributions."""

    stored: StoredOutputs | None = None

    def columns(self, rows: Sequence[Any], layout: Layout) -> dict[str, Tensor]:
        assert self.stored is not None
        found = self.stored.read([row.index for row in rows])
        return {"teacher_hidden": found["hidden"].to(layout.ids_bt.device, self.model.dtype)}


def teacher_view(
    outputs: str, model: PreTrainedModel | None, vocabulary: int, stored: StoredOutputs | None
) -> TeacherView:
    """The teacher as it runs (`outputs` "live"), or as a stage wrote it down ("top_k", "hidden").

    Args:
        model: the teacher; None is enough for "top_k".
        stored: what the stage wrote; None is enough for "live".
    """
    if outputs == "top_k":
        assert stored is not None
        return StoredTeacher(stored)
    assert model is not None
    if outputs == "hidden":
        return StoredHidden(model, vocabulary, stored=stored)
    return LiveTeacher(model, vocabulary)
