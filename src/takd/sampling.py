"""Sampling from a language model, alone or mixed with its teacher, with noise that belongs to the prompt.

A token is drawn as the argmax of log-probabilities plus Gumbel noise, where the noise is a pure function of
(seed, prompt, position, token). What a prompt gets as its text therefore does not depend on the size or the
order of a batch, on padding, or on the number of devices; rows can be sorted by length and leave when done.

Teacher-mixed sampling is that of MiniLLM (arXiv 2306.08543, section 2.2): every token comes from
p̃ = α p + (1 - α) q, teacher p, student q.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from takd.models import hidden_states, project

CACHED_WORDS = 2**16


@dataclass(frozen=True)
class Decoding:
    """How text is drawn. One record for all uses, and printed in the report."""

    max_new_tokens: int
    sample: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram: int = 0

    def warpers(self) -> LogitsProcessorList:
        """What cuts the distribution, in the order of `transformers.generate`."""
        warpers = LogitsProcessorList()
        if self.no_repeat_ngram:
            warpers.append(NoRepeatNGramLogitsProcessor(self.no_repeat_ngram))
        if self.sample and self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.sample and self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        return warpers


@dataclass(frozen=True)
class Prompt:
    """A prompt and what its noise is keyed by."""

    tokens: Sequence[int]
    key: int
    seed: int


@dataclass
class Response:
    """What one prompt got.

    Attributes:
        tokens: drawn tokens, (length,), with the end token if it was drawn.
        finished: whether the end token was drawn.
        student: log q of each token, (length,), float32, at the decoding's temperature.
        teacher: log p of each token; empty without a teacher.
        mixed: log p̃ of each token, the distribution that it was drawn from.
    """

    tokens: Tensor
    finished: bool
    student: Tensor
    teacher: Tensor
    mixed: Tensor


def _int32(words: Tensor) -> Tensor:
    """Words of 32 bits as signed integers of the same bits, whose products wrap around."""
    words = words & 0xFFFFFFFF
    return (words - ((words & 0x80000000) << 1)).int()


def _mix_(x: Tensor) -> Tensor:
    """Scatter every bit of 32-bit words, in place: the finaliser of MurmurHash3, a bijection."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
    x.mul_(0x85EBCA6B - 2**32)
    x.bitwise_xor_((x >> 13).bitwise_and_(0x7FFFF))
    x.mul_(0xC2B2AE35 - 2**32)
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def gumbel_noise(seeds_b: Tensor, keys_b: Tensor, positions_b: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise that is a pure function of its keys, (batch, vocabulary), float32.

    Args:
        seeds_b, keys_b, positions_b: (batch,) int64, of which the lower 32 bits count.
    """
    first_b, second_b = (_int32(torch.full_like(seeds_b, c)) for c in (0x243F6A88, 0x13198A2E))
    for words_b in map(_int32, (seeds_b, keys_b, positions_b)):
        first_b = _mix_((first_b ^ words_b) + (0x9E3779B9 - 2**32))
        second_b = _mix_((second_b + words_b) * 0x27D4EB2F)
    device = seeds_b.device
    tokens_v = _mix_(torch.arange(1, vocabulary + 1, dtype=torch.int32, device=device))
    noise_bv = torch.empty(len(seeds_b), vocabulary, device=device)
    # a CPU is ten times as fast on pieces that stay in its cache
    rows = max(1, CACHED_WORDS // vocabulary) if device.type == "cpu" else len(seeds_b)
    for start in range(0, len(seeds_b), rows):
        piece = slice(start, start + rows)
        words = (tokens_v ^ first_b[piece, None]).add_(second_b[piece, None])
        _mix_(words).bitwise_and_(0x7FFFFFFF)
        # v in (0, 1) and E = -log(1 - v): float32 is finest near 0, where the winners of the race are
        minus_v = noise_bv[piece].copy_(words).add_(0.5).mul_(-(2.0**-31)).clamp_(min=2.0**-24 - 1)
        minus_v.log1p_().neg_().log_().neg_()
    return noise_bv


def mixed_log_probabilities(student: Tensor, teacher: Tensor | None, teacher_mix: float) -> Tensor:
    """log p̃ = log(α p + (1 - α) q) from log q and log p, elementwise."""
    if teacher is None or teacher_mix == 0:
        return student
    return torch.logaddexp(teacher + math.log(teacher_mix), student + math.log1p(-teacher_mix))


@torch.no_grad()
def draw(
    student: PreTrainedModel,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    *,
    end_token: int,
    vocabulary: int,
    micro_batch: int,
    teacher: PreTrainedModel | None = None,
    teacher_mix: float = 0.0,
) -> list[Response]:
    """One response for each prompt, in the order of the prompts.

    Each model reads a prompt once and then one token a step; log-probabilities come out of that decoding, so
    that nothing has to be scored again.

    Args:
        student, teacher: models in evaluation mode on one device.
        micro_batch: rows that are decoded together; it changes no text.
        teacher_mix: α, the teacher's share of the distribution that is sampled.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].tokens))
    responses: dict[int, Response] = {}
    for start in range(0, len(order), micro_batch):
        chunk = order[start : start + micro_batch]
        models = [student] if teacher is None else [student, teacher]
        batch = _Batch(models, [prompts[i] for i in chunk], decoding, end_token, vocabulary)
        responses.update(zip(chunk, batch.run(teacher_mix), strict=True))
    return [responses[i] for i in range(len(prompts))]


class _Batch:
    """Rows that are decoded together; those that are finished leave."""

    def __init__(
        self,
        models: list[PreTrainedModel],
        prompts: list[Prompt],
        decoding: Decoding,
        end_token: int,
        vocabulary: int,
    ) -> None:
        self.models, self.decoding = models, decoding
        self.end_token, self.vocabulary = end_token, vocabulary
        device = models[0].device
        width = max(len(prompt.tokens) for prompt in prompts)
        padded = [[end_token] * (width - len(p.tokens)) + list(p.tokens) for p in prompts]
        real = [[0] * (width - len(p.tokens)) + [1] * len(p.tokens) for p in prompts]
        self.ids_bt = torch.tensor(padded, device=device)
        self.mask_bt = torch.tensor(real, device=device)
        self.seeds_b = torch.tensor([p.seed for p in prompts], device=device)
        self.keys_b = torch.tensor([p.key for p in prompts], device=device)
        self.caches: list[Any] = [DynamicCache(config=model.config) for model in models]
        self.width = width

    def run(self, teacher_mix: float) -> list[Response]:
        device, rows = self.ids_bt.device, self.ids_bt.shape[0]
        steps = self.decoding.max_new_tokens
        warpers = self.decoding.warpers()
        tokens_bt = torch.zeros(rows, steps, dtype=torch.long, device=device)
        # student, teacher, mixed
        scores_kbt = torch.zeros(3, rows, steps, device=device)
        lengths_b = torch.full((rows,), steps, device=device)
        finished_b = torch.zeros(rows, dtype=torch.bool, device=device)
        here_b = torch.arange(rows, device=device)  # row of each line that is still in the batch
        going_b = torch.ones_like(here_b, dtype=torch.bool)
        new_bt = self.ids_bt
        for step in range(steps):
            logs = [
                (project(model, hidden_states(model, new_bt, self.mask_bt, cache)[:, -1], self.vocabulary)
                 / self.decoding.temperature).log_softmax(-1)
                for model, cache in zip(self.models, self.caches, strict=True)
            ]  # fmt: skip
            mixed_bv = mixed_log_probabilities(logs[0], logs[-1], teacher_mix)
            if warpers:
                mixed_bv = warpers(
                    cast(LongTensor, self.ids_bt), cast(FloatTensor, mixed_bv)
                ).log_softmax(-1)
            noisy_bv = mixed_bv
            if self.decoding.sample:
                positions_b = torch.full_like(self.keys_b, step)
                noise_bv = gumbel_noise(self.seeds_b, self.keys_b, positions_b, self.vocabulary)
                noisy_bv = mixed_bv + noise_bv
            next_b = noisy_bv.argmax(-1)
            tokens_bt[here_b, step] = next_b
            for index, log_bv in enumerate((logs[0], logs[-1], mixed_bv)):
                scores_kbt[index, here_b, step] = log_bv.gather(-1, next_b[:, None])[:, 0]
            ended_b = going_b & (next_b == self.end_token)
            lengths_b[here_b[ended_b]] = step + 1
            finished_b[here_b[ended_b]] = True
            going_b = going_b & ~ended_b
            left = int(going_b.sum())
            if left == 0:
                break
            self.ids_bt = torch.cat([self.ids_bt, next_b[:, None]], 1)
            self.mask_bt = torch.cat([self.mask_bt, torch.ones_like(next_b)[:, None]], 1)
            # copying the caches costs about as much as a step: wait until it pays
            if left <= 0.75 * len(here_b):
                here_b, going_b = here_b[going_b], self._keep(going_b)
            new_bt = self.ids_bt[:, -1:]
        lengths = lengths_b.tolist()
        tokens_bt, scores_kbt = tokens_bt.cpu(), scores_kbt.cpu()
        with_teacher = len(self.models) > 1
        return [
            Response(
                tokens=tokens_bt[row, :length],
                finished=bool(finished_b[row]),
                student=scores_kbt[0, row, :length],
                teacher=scores_kbt[1, row, : length if with_teacher else 0],
                mixed=scores_kbt[2, row, :length],
            )
            for row, length in enumerate(lengths)
        ]

    def _keep(self, going_b: Tensor) -> Tensor:
        """Drop the other rows; returns the mask of those that remain."""
        for cache in self.caches:
            cache.batch_select_indices(going_b.nonzero()[:, 0])
        self.ids_bt, self.mask_bt = self.ids_bt[going_b], self.mask_bt[going_b]
        self.seeds_b, self.keys_b = self.seeds_b[going_b], self.keys_b[going_b]
        return torch.ones(len(self.ids_bt), dtype=torch.bool, device=going_b.device)
