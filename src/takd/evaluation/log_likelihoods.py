"""Likelihoods and confidences of a model on given texts, and divergences between two models.

Logits are computed in chunks, so that no (tokens, vocabulary) tensor of a whole batch exists;
results are a few numbers per text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from takd.losses.batch import Layout
from takd.losses.chunked import chunk_size
from takd.losses.divergences import forward_kl, reverse_kl
from takd.metrics import calibration
from takd.models.causal_lm import project

DIGITS = 8


@dataclass(frozen=True)
class Text:
    """A response to a row's prompt: a reference, or a sampled response.

    Attributes:
        row: row of the data set.
        index: number of the reference, or seed of the sampled response.
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


# for one text: "row", "index", "tokens" (number of predicted tokens), and sums over them, in nats
Record = dict[str, Any]


@torch.no_grad()
def likelihoods(model: PreTrainedModel, texts: Sequence[Text], *, vocabulary: int) -> list[Record]:
    """Compute likelihoods and calibration counts of texts.

    Returns:
        For each text, `nll`, -Σ log q(y_t), and `bins`, the `calibration.packed` counts of its
            next-token predictions.
    """
    layout = _layout(texts, model)
    parts: list[list[Tensor]] = []
    for (hidden_mh,), targets_m in _chunks(layout, [model], vocabulary):
        log_mv = project(model, hidden_mh, vocabulary).log_softmax(-1)
        most_m, likeliest_m = log_mv.max(-1)
        parts.append([-_of(log_mv, targets_m), most_m.exp(), likeliest_m == targets_m])
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    found = []
    for text, (nll, confidence, correct) in _by_text(texts, layout, columns):
        bins = calibration.packed(calibration.count(confidence, correct > 0))
        found.append({**_head(text, nll), "nll": _short(nll.sum()), "bins": bins})
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
    """Compare a model with a teacher on texts, exactly over the vocabulary.

    Args:
        model: the model q.
        teacher: the teacher p.
        texts: texts to read.
        vocabulary: entries to which the logits of both models are cut.
        steps: whether `forward_kl` is the list of its terms instead of their sum.

    Returns:
        For each text, `nll`, -Σ log q(y_t), and `teacher_nll`, -Σ log p(y_t); `forward_kl`, Σ_t
            KL(p ‖ q), and `reverse_kl`, Σ_t KL(q ‖ p), of the next token after each y_<t.
    """
    layout = _layout(texts, model)
    parts: list[list[Tensor]] = []
    for (hidden_mh, teacher_mh), targets_m in _chunks(layout, [model, teacher], vocabulary):
        log_q_mv = project(model, hidden_mh, vocabulary).log_softmax(-1)
        log_p_mv = project(teacher, teacher_mh, vocabulary).log_softmax(-1)
        # a divergence is not negative, but rounding may make the sum so
        kls = [kl(log_q_mv, log_p_mv).clamp(min=0) for kl in (forward_kl, reverse_kl)]
        parts.append([-_of(log_q_mv, targets_m), -_of(log_p_mv, targets_m), *kls])
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    found = []
    for text, (nll, teacher_nll, forward, reverse) in _by_text(texts, layout, columns):
        found.append(
            {
                **_head(text, nll),
                "nll": _short(nll.sum()),
                "teacher_nll": _short(teacher_nll.sum()),
                "forward_kl": [_short(x) for x in forward] if steps else _short(forward.sum()),
                "reverse_kl": _short(reverse.sum()),
            }
        )
    return found


def _layout(texts: Sequence[Text], model: PreTrainedModel) -> Layout:
    return Layout.of([(text.prompt, text.response) for text in texts], model.device)


def _chunks(
    layout: Layout, models: Sequence[PreTrainedModel], vocabulary: int
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield hidden states of each model, and the tokens that they predict, chunk by chunk."""
    hidden = [layout.hidden(model) for model in models]
    size = chunk_size(vocabulary, hidden[0].device)
    for start in range(0, max(1, len(layout.targets_n)), size):
        piece = slice(start, start + size)
        yield [hidden_nh[piece] for hidden_nh in hidden], layout.targets_n[piece]


def _by_text(
    texts: Sequence[Text], layout: Layout, columns: Sequence[Tensor]
) -> Iterator[tuple[Text, list[np.ndarray]]]:
    """Yield each text with its part of (n,) columns, in float64."""
    counts = layout.rows_n.bincount(minlength=len(texts)).tolist()
    parts = [column.double().cpu().split(counts) for column in columns]
    for text, *values in zip(texts, *parts, strict=True):
        yield text, [value.numpy() for value in values]


def _of(log_mv: Tensor, targets_m: Tensor) -> Tensor:
    return log_mv.gather(-1, targets_m[:, None])[:, 0]


def _head(text: Text, values: np.ndarray) -> Record:
    return {"row": text.row, "index": text.index, "tokens": len(values)}


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
