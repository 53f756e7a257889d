"""Likelihoods and confidences of a model on given texts, and divergences between two models.

Logits are computed in chunks, so that no (tokens, vocabulary) tensor of a whole batch exists;
results are a few numbers per text.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from takd.losses.batch import RightPadded
from takd.losses.chunked import chunk_size
from takd.losses.divergences import forward_kl, log_likelihood, reverse_kl
from takd.metrics import calibration
from takd.models.logits import project

DIGITS = 8

# for one text: "row", "index", "tokens" (number of predicted tokens), and sums over them, in nats
Record = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """A response to a row's prompt: a reference, or a sampled response.

    `row` is that of the data set; `index` is the reference's number, or the response's seed.
    """

    row: int
    index: int
    prompt: Sequence[int]
    response: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def key(self) -> tuple[int, int]:
        return self.row, self.index


@torch.no_grad()
def likelihoods(model: PreTrainedModel, texts: Sequence[Text], *, vocabulary: int) -> list[Record]:
    """Compute likelihoods and calibration counts of texts.

    Returns:
        For each text, `nll`, -Σ log q(y_t), and `bins`, the `calibration.packed` counts of its
            next-token predictions.
    """

    def measured(log_mv: Tensor, targets_m: Tensor) -> list[Tensor]:
        most_m, likeliest_m = log_mv.max(-1)
        return [-log_likelihood(log_mv, targets_m), most_m.exp(), likeliest_m == targets_m]

    found = []
    for head, (nll, confidence, correct) in _by_text(texts, [model], vocabulary, measured):
        bins = calibration.packed(calibration.count(confidence, correct > 0))
        found.append({**head, "nll": _short(nll.sum()), "bins": bins})
    return found


@torch.no_grad()
def comparison(
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    texts: Sequence[Text],
    *,
    vocabulary: int,
    steps: bool,
) -> list[Record]:
    """Compare a model q with a teacher p on texts, exactly over the vocabulary.

    Args:
        vocabulary: entries to which the logits of both models are cut.
        steps: whether `forward_kl` is the list of its terms instead of their sum.

    Returns:
        For each text, `nll`, -Σ log q(y_t), and `teacher_nll`, -Σ log p(y_t); `forward_kl`, Σ_t
            KL(p ‖ q), and `reverse_kl`, Σ_t KL(q ‖ p), of the next token after each y_<t.
    """

    def measured(log_q_mv: Tensor, log_p_mv: Tensor, targets_m: Tensor) -> list[Tensor]:
        # a divergence is not negative, but rounding may make the sum so
        kls = [kl(log_q_mv, log_p_mv).clamp(min=0) for kl in (forward_kl, reverse_kl)]
        return [-log_likelihood(log_mv, targets_m) for log_mv in (log_q_mv, log_p_mv)] + kls

    names = ("nll", "teacher_nll", "forward_kl", "reverse_kl")
    found = []
    for head, values in _by_text(texts, [model, teacher], vocabulary, measured):
        record: Record = {name: _short(v.sum()) for name, v in zip(names, values, strict=True)}
        if steps:
            record["forward_kl"] = [_short(value) for value in values[2]]
        found.append({**head, **record})
    return found


def _by_text(
    texts: Sequence[Text],
    models: Sequence[PreTrainedModel],
    vocabulary: int,
    measured: Callable[..., list[Tensor]],
) -> Iterator[tuple[Record, list[np.ndarray]]]:
    """Yield row, index and length of each text, with the measures of its tokens in float64.

    Args:
        measured: measures of some tokens, (m,) each, from the log-probabilities of each model, (m,
            vocabulary), and the tokens.
    """
    batch = RightPadded.of([(text.prompt, text.response) for text in texts], models[0].device)
    hidden = [batch.hidden(model) for model in models]
    size = chunk_size(vocabulary, hidden[0].device)
    parts = []
    for start in range(0, max(1, len(batch.targets_n)), size):
        piece = slice(start, start + size)
        logs = [
            project(model, hidden_nh[piece], vocabulary).log_softmax(-1)
            for model, hidden_nh in zip(models, hidden, strict=True)
        ]
        parts.append(measured(*logs, batch.targets_n[piece]))
    columns = [batch.split(torch.cat(column).double().cpu()) for column in zip(*parts, strict=True)]
    for text, *values in zip(texts, *columns, strict=True):
        head = {"row": text.row, "index": text.index, "tokens": len(values[0])}
        yield head, [value.numpy() for value in values]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
