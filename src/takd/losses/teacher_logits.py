"""Sources of the teacher's distributions at the tokens of a batch.

The teacher runs beside the student; or its hidden states were kept when responses were sampled, and
one matrix product gives its distributions; or a stage stored its outputs for the training rows,
once for all students.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from takd.losses.amounts import KEPT_SHARE
from takd.losses.batch import RightPadded, moved
from takd.losses.divergences import coarsen, log_tail
from takd.models.logits import project, tempered


class TeacherView(Protocol):
    """Interface: the teacher's distributions at the response tokens of a batch."""

    def columns(self, rows: Sequence[Any], layout: RightPadded) -> dict[str, Tensor]:
        """Return what `prepared` needs of each token, (n, ...)."""
        ...

    def prepared(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what `pair` needs of the tokens of a chunk, (m, ...), computed for all of them together."""
        ...

    def pair(self, student_nv: Tensor, columns: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of student and teacher for the same choices, (n, choices)."""
        ...


@dataclass
class LiveTeacher:
    """Teacher that runs beside the student."""

    model: PreTrainedModel
    vocabulary: int
    temperature: float = 1.0

    @torch.no_grad()
    def columns(self, rows: Sequence[Any], layout: RightPadded) -> dict[str, Tensor]:
        if any(row.asked is not None for row in rows):
            texts = [(row.asked or row.prompt, row.response) for row in rows]
            layout = RightPadded.of(texts, layout.ids_bt.device)
        return {"teacher_hidden": layout.hidden(self.model)}

    def prepared(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        # of a chunk of tokens: all logits of a batch never exist at once
        hidden_mh = columns.pop("teacher_hidden", None)
        if hidden_mh is None:  # the loss compares no distributions
            return columns
        return {**columns, "teacher_logits": project(self.model, hidden_mh, self.vocabulary)}

    def pair(self, student_nv: Tensor, columns: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            # taken out, so that they are gone when the distributions are compared
            logits_nv = tempered(columns.pop("teacher_logits"), self.temperature)
            return student_nv, logits_nv.log_softmax(-1)


@dataclass
class KeptTeacher(LiveTeacher):
    """Teacher whose hidden states were kept with the rows.

    Attributes:
        of: finds those of a row, (length, hidden size); by default its `teacher_hidden`.
    """

    of: Callable[[Any], Tensor] = operator.attrgetter("teacher_hidden")

    def columns(self, rows: Sequence[Any], layout: RightPadded) -> dict[str, Tensor]:
        device = layout.ids_bt.device
        kept = [self.of(row).to(device, non_blocking=True) for row in rows]
        return {"teacher_hidden": torch.cat(kept).to(self.model.dtype)}


def kept(hidden_th: Tensor, device: torch.device, size: float) -> Tensor:
    """Return hidden states of a response where they are kept until the end of its round.

    That is the device, or pinned main memory for a card that the round would fill too far.

    Args:
        hidden_th: the teacher's hidden states, (length, hidden size).
        size: bytes of all hidden states of the round, at most.
    """
    if device.type != "cuda":
        return hidden_th.to(device)
    if size <= KEPT_SHARE * torch.cuda.get_device_properties(device).total_memory:
        return hidden_th.to(device, non_blocking=True)
    return hidden_th.cpu().pin_memory()


class StoredOutputs:
    """Stored teacher outputs, read from disk row by row.

    A safetensors file holds `offsets`, (rows + 1,), the token at which each row begins, and either
    `hidden`, (tokens, hidden size), or `tokens` and `log_probabilities`, (tokens, k), of the k
    likeliest tokens.
    """

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, "pt")
        self.names = set(self._file.keys()) - {"offsets"}
        self.offsets = self._file.get_tensor("offsets").tolist()

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return the outputs of some rows, concatenated: (tokens, ...) each."""
        found: dict[str, Tensor] = {}
        for name in self.names:
            part = self._file.get_slice(name)
            found[name] = torch.cat([part[self.offsets[i] : self.offsets[i + 1]] for i in indices])
        return found


@dataclass
class StoredTeacher:
    """Stored log-probabilities of the k likeliest tokens; the teacher model is not needed."""

    stored: StoredOutputs

    def columns(self, rows: Sequence[Any], layout: RightPadded) -> dict[str, Tensor]:
        found = self.stored.read([row.index for row in rows])
        device = layout.ids_bt.device
        (tokens_nk,), (log_nk,) = (
            moved([found[name]], device) for name in ("tokens", "log_probabilities")
        )
        return {"teacher_tokens": tokens_nk.long(), "teacher_log": log_nk.float()}

    def prepared(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        return columns

    def pair(self, student_nv: Tensor, columns: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        named_nk = columns["teacher_log"]
        student_nc = coarsen(student_nv, columns["teacher_tokens"])
        return student_nc, torch.cat([named_nk, log_tail(named_nk)], -1)


@dataclass
class StoredHidden(LiveTeacher):
    """Stored hidden states, from which the teacher's head computes full distributions."""

    stored: StoredOutputs | None = None

    def columns(self, rows: Sequence[Any], layout: RightPadded) -> dict[str, Tensor]:
        assert self.stored is not None
        found = self.stored.read([row.index for row in rows])
        (hidden_nh,) = moved([found["hidden"]], layout.ids_bt.device)
        return {"teacher_hidden": hidden_nh.to(self.model.dtype)}


def teacher_view(
    outputs: str, model: PreTrainedModel | None, vocabulary: int, stored: StoredOutputs | None
) -> TeacherView:
    """Return the source for `outputs`: "live" runs the teacher; "top_k" and "hidden" are stored.

    The teacher may be None for "top_k", and the stored outputs for "live".
    """
    if outputs == "top_k":
        assert stored is not None
        return StoredTeacher(stored)
    assert model is not None
    if outputs == "hidden":
        return StoredHidden(model, vocabulary, stored=stored)
    return LiveTeacher(model, vocabulary)
