"""Losses that several methods share: labels, and labels beside the teacher's distribution."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from takd.divergences import cross_entropy, forward_kl, in_chunks
from takd.methods.base import (
    Example,
    LossFunction,
    ResponseBatch,
    Statistics,
    logits_of,
    teacher_logits_of,
)


def label_loss(vocabulary: int, tokens: int) -> LossFunction:
    """Sum of -log q(y_t) over a micro-batch's response tokens, divided by `tokens`."""

    def loss(student: PreTrainedModel, rows: Sequence[Example]) -> tuple[Tensor, Statistics]:
        batch = ResponseBatch.of(rows, student.device)
        logits = logits_of(student, vocabulary)
        (loss_n,) = in_chunks(
            lambda hidden, targets: (cross_entropy(logits(hidden), targets),),
            batch.hidden(student),
            batch.targets_n,
        )
        return loss_n.sum() / tokens, {}

    return loss


def label_and_teacher_loss(
    teacher: PreTrainedModel, ratio: float, vocabulary: int, tokens: int
) -> LossFunction:
    """Σ_t (1 - ratio) (-log q(y_t)) + ratio KL(p ‖ q) over a micro-batch, divided by `tokens`."""

    def loss(student: PreTrainedModel, rows: Sequence[Example]) -> tuple[Tensor, Statistics]:
        batch = ResponseBatch.of(rows, student.device)
        student_logits = logits_of(student, vocabulary)
        teacher_logits = teacher_logits_of(teacher, vocabulary)

        def tokenwise(student_h: Tensor, teacher_h: Tensor, target: Tensor) -> tuple[Tensor, ...]:
            logits = student_logits(student_h)
            return cross_entropy(logits, target), forward_kl(logits, teacher_logits(teacher_h))

        label_n, divergence_n = in_chunks(
            tokenwise, batch.hidden(student), batch.teacher_hidden(teacher), batch.targets_n
        )
        label, divergence = label_n.sum() / tokens, divergence_n.sum() / tokens
        return (1 - ratio) * label + ratio * divergence, {
            "label_loss": label.detach(),
            "forward_kl": divergence.detach(),
        }

    return loss
