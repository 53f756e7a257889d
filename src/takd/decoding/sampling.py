"""Sampling from a language model, alone or mixed with its teacher, with noise keyed by the prompt.

Each token is the argmax of log-probabilities plus Gumbel noise, which is an exact sample of the
distribution. The noise is a pure function of (seed, prompt, position, token), so a response depends
on neither the size nor the order of a batch, nor on padding or the number of devices, except where
rounding changes the order of two nearly equal tokens. Prompts can therefore be sorted by length,
and finished rows replaced at once.

Teacher-mixed sampling is that of MiniLLM (arXiv 2306.08543, section 2.2): tokens come from p̃ = α p
+ (1 - α) q, with teacher p and student q.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import PreTrainedModel

from takd.decoding.gumbel import gumbel_noise
from takd.decoding.kv_cache import RaggedCache
from takd.decoding.ngrams import Repeats
from takd.decoding.prompts import Decoding, Prompt, Response
from takd.losses.batch import by_length
from takd.losses.chunked import chunk_size
from takd.losses.divergences import log_likelihood
from takd.models.logits import project, tempered


def mixed_log_probabilities(student: Tensor, teacher: Tensor | None, teacher_mix: float) -> Tensor:
    """Compute log p̃ = log(α p + (1 - α) q) from log q and log p, elementwise."""
    if teacher is None or teacher_mix == 0:
        return student
    # a mixture of probabilities, not of logits, and computed from logarithms: a token that both
    # models find unlikely keeps its digits
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
    finished: Callable[[int, Response], None] | None = None,
) -> list[Response]:
    """Sample one response per prompt, in the order of the prompts.

    Each model reads a prompt once and then one token per step. Log-probabilities and the teacher's
    hidden states are recorded while decoding, so no second pass is needed. A teacher that does not
    mix takes no part in decoding: it reads all texts at the end.

    Args:
        student, teacher: models in evaluation mode on one device.
        end_token: id of the token that ends a response.
        vocabulary: entries to which logits are cut.
        micro_batch: rows decoded together; affects responses by rounding only.
        teacher_mix: α, the teacher's share of the sampled distribution.
        finished: callback for each response when it ends, with the index of its prompt. It may
            raise an exception to stop the decoding.
    """
    if not prompts:
        return []
    for model in (student, *([teacher] if teacher is not None else [])):
        assert not any(module.training for module in model.modules()), "dropout is on"
    # equal prompts are adjacent, to be read once, and so are equal lengths, to avoid padding
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].tokens), prompts[i].tokens))
    mixing = teacher is not None and teacher_mix > 0
    decoder = _Decoder(
        [student, cast(PreTrainedModel, teacher)] if mixing else [student],
        decoding,
        end_token,
        vocabulary,
        teacher_mix,
        min(micro_batch, len(prompts)),
        scored=teacher is not None,
    )
    found: dict[int, Response] = {}
    for index, response in decoder.run(deque((i, prompts[i]) for i in order)):
        found[index] = response
        if finished is not None:
            finished(index, response)
    responses = [found[i] for i in range(len(prompts))]
    if teacher is not None and not mixing:
        _read(teacher, prompts, responses, decoding.temperature, vocabulary, micro_batch)
    return responses


def _read(
    teacher: PreTrainedModel,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    temperature: float,
    vocabulary: int,
    micro_batch: int,
) -> None:
    """Fill in log-probabilities and hidden states of a teacher that took no part in sampling."""
    texts = [(p.tokens, r.tokens.tolist()) for p, r in zip(prompts, responses, strict=True)]
    # in chunks, so that the logits of all tokens never exist at once
    size = chunk_size(vocabulary, teacher.device)
    for chosen, batch in by_length(texts, micro_batch, teacher.device):
        hidden_nh = batch.hidden(teacher)
        pieces = zip(hidden_nh.split(size), batch.targets_n.split(size), strict=True)
        logs = []
        for hidden_mh, targets_m in pieces:
            logits_mv = tempered(project(teacher, hidden_mh, vocabulary), temperature)
            logs.append(log_likelihood(logits_mv.log_softmax(-1), targets_m))
        parts = zip(chosen, batch.split(torch.cat(logs).cpu()), batch.split(hidden_nh), strict=True)
        for index, log_t, hidden_th in parts:
            responses[index].teacher, responses[index].teacher_hidden = log_t, hidden_th


@dataclass
class _Place:
    """A row of the batch: the response that is being sampled there."""

    index: int
    limit: int
    repeats: Repeats | None
    drawn: int = 0


class _Decoder:
    """Rows that are decoded together; a finished row is replaced by the next prompt."""

    def __init__(
        self,
        models: list[PreTrainedModel],
        decoding: Decoding,
        end_token: int,
        vocabulary: int,
        teacher_mix: float,
        rows: int,
        scored: bool,
    ) -> None:
        self.models, self.decoding, self.teacher_mix = models, decoding, teacher_mix
        self.end_token, self.vocabulary, self.scored = end_token, vocabulary, scored
        self.warpers = decoding.warpers()
        self.rows: list[_Place | None] = [None] * rows
        self.caches = [RaggedCache(model, rows) for model in models]
        device, steps = models[0].device, decoding.max_new_tokens
        # the three keys of each row's noise: the seed, the prompt's key, the position
        self.seeds_b, self.keys_b, self.drawn_b = (
            torch.zeros(rows, dtype=torch.long, device=device) for _ in range(3)
        )
        self.tokens_bt = torch.zeros(rows, steps, dtype=torch.long, device=device)
        # log-probabilities of each token under student, teacher and mixture
        self.scores_kbt = torch.zeros(3, rows, steps, device=device)
        # hidden: per model, the state that predicts each row's next token; teacher_bth: the
        # teacher's states for all tokens of the response
        self.hidden: list[Tensor] = []
        self.teacher_bth = torch.zeros(0, device=device)

    def run(self, queue: deque[tuple[int, Prompt]]) -> Iterator[tuple[int, Response]]:
        """Yield finished responses with the indices of their prompts."""
        while queue or any(self.rows):
            free = [place for place, row in enumerate(self.rows) if row is None]
            # reading one prompt costs about as much as a step of all rows: wait to read several
            # together
            if queue and (len(free) >= max(1, len(self.rows) // 8) or not any(self.rows)):
                self.admit(free, queue)
            next_b = self.sample()
            # the only regular transfer from the device in a step
            yield from self.retire(next_b.tolist())
            if not any(self.rows):
                continue
            # shrinking the batch copies the caches, which costs about as much as a step: only when
            # a quarter of the rows is free, and no prompt is left to fill them
            taken = [place for place, row in enumerate(self.rows) if row is not None]
            if not queue and len(taken) <= 0.75 * len(self.rows):
                self.keep(taken)
                next_b = next_b[taken]
            # both models read the same token, whichever of them made it likely
            self.hidden = [cache.step(next_b) for cache in self.caches]

    def admit(self, free: list[int], queue: deque[tuple[int, Prompt]]) -> None:
        """Read the next prompts into free rows."""
        places = free[: len(queue)]
        admitted = [queue.popleft() for _ in places]
        prompts = [prompt for _, prompt in admitted]
        hidden = [cache.read([p.tokens for p in prompts], places) for cache in self.caches]
        if not self.hidden:
            rows, steps = self.tokens_bt.shape
            self.hidden = [h.new_zeros(rows, h.shape[1]) for h in hidden]
            if len(hidden) > 1:
                self.teacher_bth = hidden[1].new_zeros(rows, steps, hidden[1].shape[1])
        for held, new in zip(self.hidden, hidden, strict=True):
            held[places] = new
        size, limit = self.decoding.no_repeat_ngram, self.decoding.max_new_tokens
        for place, (index, prompt) in zip(places, admitted, strict=True):
            repeats = Repeats(size, prompt.tokens) if size else None
            self.rows[place] = _Place(index, min(limit, prompt.limit or limit), repeats)
        device = self.drawn_b.device
        self.seeds_b[places] = torch.tensor([p.seed for p in prompts], device=device)
        self.keys_b[places] = torch.tensor([p.key for p in prompts], device=device)
        self.drawn_b[places] = 0

    def sample(self) -> Tensor:
        """Sample the next token of each row, (rows,)."""
        logs = [
            self.scaled(project(model, hidden_bh, self.vocabulary))
            for model, hidden_bh in zip(self.models, self.hidden, strict=True)
        ]
        # without a second model, logs[-1] is the student's, and so is the mixture
        mixed_bv = mixed_log_probabilities(logs[0], logs[-1], self.teacher_mix)
        if self.decoding.no_repeat_ngram or self.warpers:
            mixed_bv = self.cut(mixed_bv)
        # Gumbel-max trick: the argmax of log-probabilities plus Gumbel noise is a sample. A
        # constant added to a row changes no argmax, so unnormalised logits do as well
        noisy_bv = mixed_bv
        if self.decoding.sample:
            noise_bv = gumbel_noise(self.seeds_b, self.keys_b, self.drawn_b, self.vocabulary)
            noisy_bv = noise_bv.add_(mixed_bv)
        next_b = noisy_bv.argmax(-1)
        # free rows keep counting: clamp their column; the next response overwrites it before it is
        # read
        last = self.tokens_bt.shape[1] - 1
        here = torch.arange(len(self.rows), device=next_b.device), self.drawn_b.clamp(max=last)
        self.tokens_bt[here] = next_b
        if self.scored:
            # under q, p and p̃: for rewards log p - log q, and weights w = q / p̃ (MiniLLM, 2.2)
            three = logs[0], logs[-1], mixed_bv
            for scores_bt, log_bv in zip(self.scores_kbt, three, strict=True):
                scores_bt[here] = log_likelihood(log_bv, next_b)
        if len(self.hidden) > 1:
            self.teacher_bth[here] = self.hidden[1]
        self.drawn_b += 1
        return next_b

    def scaled(self, logits_bv: Tensor) -> Tensor:
        """Return log-probabilities if they are recorded, else logits: the argmax is the same."""
        logits_bv = tempered(logits_bv, self.decoding.temperature)
        return logits_bv.log_softmax(-1) if self.scored else logits_bv

    def cut(self, mixed_bv: Tensor) -> Tensor:
        """Apply n-gram blocking, top-k and top-p to the distribution."""
        mixed_bv = mixed_bv.clone()
        for place, row in enumerate(self.rows):
            if row is not None and row.repeats is not None and (banned := row.repeats.banned()):
                mixed_bv[place, banned] = -math.inf
        # top-k and top-p do not use the previous tokens
        before = cast(LongTensor, self.tokens_bt[:, :0])
        cut_bv = self.warpers(before, cast(FloatTensor, mixed_bv))
        return cut_bv.log_softmax(-1) if self.scored else cut_bv

    def retire(self, next_tokens: list[int]) -> Iterator[tuple[int, Response]]:
        """Yield the responses that end with these tokens, and free their rows."""
        ended: list[tuple[int, _Place]] = []
        for place, (row, token) in enumerate(zip(self.rows, next_tokens, strict=True)):
            if row is None:
                continue
            row.drawn += 1
            if row.repeats is not None:
                row.repeats.add(token)
            if token == self.end_token or row.drawn == row.limit:
                ended.append((place, row))
        if not ended:
            return
        places = [place for place, _ in ended]
        longest = max(row.drawn for _, row in ended)
        tokens_bt = self.tokens_bt[places, :longest].cpu()
        scores_kbt = self.scores_kbt[:, places, :longest].cpu()
        with_teacher = len(self.models) > 1
        for line, (place, row) in enumerate(ended):
            # cloned, since a slice would keep the tensors of all rows in memory
            length = row.drawn
            scored, taught = length * self.scored, length * with_teacher
            states = self.teacher_bth[place, :length] if with_teacher else self.teacher_bth
            response = Response(
                tokens=tokens_bt[line, :length].clone(),
                finished=next_tokens[place] == self.end_token,
                student=scores_kbt[0, line, :scored].clone(),
                teacher=scores_kbt[1, line, :taught].clone(),
                mixed=scores_kbt[2, line, :scored].clone(),
                teacher_hidden=states.clone(),
            )
            yield row.index, response
            self.rows[place] = None
        for cache in self.caches:
            cache.free(places)

    def keep(self, places: list[int]) -> None:
        """Drop all rows but the given ones."""
        for cache in self.caches:
            cache.keep(places)
        self.rows = [self.rows[place] for place in places]
        # teacher_bth is empty without a teacher in the decoding
        self.seeds_b, self.keys_b, self.drawn_b, self.tokens_bt, self.teacher_bth = (
            held[places] if len(held) else held
            for held in (self.seeds_b, self.keys_b, self.drawn_b, self.tokens_bt, self.teacher_bth)
        )
        self.scores_kbt = self.scores_kbt[:, places]
