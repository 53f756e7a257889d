"""Losses that several methods share: cross-entropy on labels, mixed with a divergence."""

from collections.abc import Callable, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from takd.losses.chunked import sum_over_tokens
from takd.losses.divergences import log_likelihood
from takd.losses.teacher_logits import TeacherView
from takd.methods.base import Example, LossFunction, Statistics, laid_out

# log-probabilities of student and teacher, (n, choices) each -> (n,)
Divergence = Callable[[Tensor, Tensor], Tensor]


def label_loss(vocabulary: int, tokens: int) -> LossFunction:
    """Return the loss -log q(y_t), summed over response tokens and divided by `tokens`."""

    def of_tokens(logits_mv: Tensor, columns: dict[str, Tensor]) -> tuple[Tensor, Statistics]:
        return -log_likelihood(logits_mv.log_softmax(-1), columns["target"]), {}

    def loss(student: PreTrainedModel, rows: Sequence[Example]) -> tuple[Tensor, Statistics]:
        layout = laid_out(rows, student.device)
        columns = {"target": layout.targets_n}
        total, _ = sum_over_tokens(of_tokens, student, layout.hidden(student), columns, vocabulary)
        return total / tokens, {}

    return loss


def label_and_divergence_loss(
    teacher: TeacherView, divergence: Divergence, ratio: float, vocabulary: int, tokens: int
) -> LossFunction:
    """Return the loss (1 - ratio) (-log q(y_t)) + ratio D(p, q), summed and divided by `tokens`.

    Args:
        teacher: source of the teacher's distributions.
        divergence: D.
        ratio: weight of the divergence.
        vocabulary: entries to which logits are cut.
        tokens: response tokens of the global batch.
    """

    def of_tokens(logits_mv: Tensor, columns: dict[str, Tensor]) -> tuple[Tensor, Statistics]:
        log_q_mv = logits_mv.log_softmax(-1)
        label_m = -log_likelihood(log_q_mv, columns["target"])
        divergence_m = divergence(*teacher.pair(log_q_mv, columns))
        mixed_m = (1 - ratio) * label_m + ratio * divergence_m
        return mixed_m, {"label_loss": label_m, "divergence": divergence_m}

    def loss(student: PreTrainedModel, rows: Sequence[Example]) -> tuple[Tensor, Statistics]:
        layout = laid_out(rows, student.device)
        columns = {"target": layout.targets_n, **teacher.columns(rows, layout)}
        hidden_nh = layout.hidden(student)
        total, sums = sum_over_tokens(
            of_tokens, student, hidden_nh, columns, vocabulary, prepared=teacher.prepared
        )
        return total / tokens, {name: value / tokens for name, value in sums.items()}

    return loss
