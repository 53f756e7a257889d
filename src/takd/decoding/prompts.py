"""Prompts, decoding settings and responses."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True)
class Decoding:
    """Decoding settings of all kinds of sampling, shown in the report.

    Attributes:
        teacher_top_k: k, if a teacher replaces tokens of the student that are not among its k
            likeliest ones (`takd.decoding.mixing.speculative`); 0 if it replaces none.
    """

    max_new_tokens: int
    sample: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram: int = 0
    teacher_top_k: int = 0

    def warpers(self) -> LogitsProcessorList:
        """Return the top-k and top-p processors, in the order of `transformers.generate`."""
        warpers = LogitsProcessorList()
        if self.sample and self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.sample and self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        return warpers


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids, with the keys of its noise, `key` and `seed`.

    `limit` is the longest response, if shorter than the decoding's `max_new_tokens`. `asked` is what
    a teacher reads in place of `tokens`, as many tokens; None for the same.
    """

    tokens: Sequence[int]
    key: int
    seed: int
    limit: int | None = None
    asked: Sequence[int] | None = None

    @property
    def teacher_tokens(self) -> Sequence[int]:
        """The tokens that a teacher reads."""
        return self.tokens if self.asked is None else self.asked


@dataclass
class Response:
    """The response to one prompt.

    Attributes:
        tokens: sampled tokens, (length,), including the end token if it was sampled.
        finished: whether the end token was sampled.
        student: log q of each token, (length,), float32, at the decoding's temperature.
        teacher: log p of each token.
        mixed: log p̃ of each token, for the distribution that it was sampled from.
        teacher_hidden: the teacher's last hidden states that predict each token, (length, hidden
            size), on its device, from which its distributions can be computed with one matrix
            product.
        replaced: probability that the teacher replaced the student's token there; 0 where it mixes.

    All but `tokens` and `finished` are empty if there is no teacher.
    """

    tokens: Tensor
    finished: bool
    student: Tensor
    teacher: Tensor
    mixed: Tensor
    teacher_hidden: Tensor
    replaced: Tensor = field(default_factory=lambda: torch.zeros(0))
