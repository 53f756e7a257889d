"""Sampling the next token of each row: logits, mixture, noise and argmax, in tensors that stay where they are.

The noise of several positions is computed at once, from words that are mixed when a prompt is
admitted, because a few large operations take less time than many small ones.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import PreTrainedModel

from takd.decoding.amounts import noisy_positions
from takd.decoding.compiled import Compiled, Kind, served
from takd.decoding.gumbel import negative_noise_, noise_words
from takd.decoding.mixing import mixture, shares, speculative
from takd.decoding.prompts import Decoding, Prompt
from takd.models.logits import Head


class NextTokens:
    """Samples tokens from the last hidden states of one model, or of a student and its teacher mixed.

    Args:
        models: the student; and its teacher, if it mixes.
        rows: most rows that are decoded together.
        ahead: steps that `prepare` prepares together.
        scored: whether log-probabilities are recorded.
        captured: whether graphs hold the addresses of tensors, so that these must stay.
    """

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        decoding: Decoding,
        vocabulary: int,
        teacher_mix: float,
        rows: int,
        ahead: int,
        scored: bool,
        captured: bool,
    ) -> None:
        self.decoding, self.vocabulary = decoding, vocabulary
        self.ahead, self.scored, self.captured = ahead, scored, captured
        self.device = models[0].device
        self.heads = [Head(model, vocabulary) for model in models]
        self.warpers = decoding.warpers()
        self.shares_k11 = torch.zeros(0, 1, 1, device=self.device)
        if len(models) > 1 and not decoding.teacher_top_k:
            self.shares_k11 = shares(teacher_mix, self.device).to(self.heads[0].result)
        self.compiled: Compiled | None = None
        separate = self.warpers or decoding.no_repeat_ngram or decoding.teacher_top_k
        if served(self.device) and not separate and (decoding.sample or scored):
            kind = vocabulary, len(models), decoding.temperature, decoding.sample, scored
            self.compiled = Compiled(Kind(*kind))
        # the words of each row's noise at all positions
        steps = decoding.max_new_tokens
        self.words_2bt = torch.zeros(2, rows, steps, dtype=torch.int32, device=self.device)
        self.tensors: dict[int, _Tensors] = {}

    def restart(self, rows: int) -> None:
        """Take over the models' weights as they are now."""
        for head in self.heads:
            head.refresh()
        self.resize(rows)

    def resize(self, rows: int) -> None:
        """Use the tensors for a number of rows."""
        if rows not in self.tensors:
            if not self.captured:
                self.tensors.clear()
            self.tensors[rows] = _Tensors(self, rows)
        self.now = self.tensors[rows]
        self.now.noise_used = self.now.positions

    def admit(self, places: Tensor, prompts: Sequence[Prompt]) -> None:
        """Set the noise of rows to that of new prompts."""
        if not self.decoding.sample:
            return
        # mixed on the host: these are about eighty operations on a few numbers
        seeds_b1 = torch.tensor([[prompt.seed] for prompt in prompts])
        keys_b1 = torch.tensor([[prompt.key] for prompt in prompts])
        words = noise_words(seeds_b1, keys_b1, torch.arange(self.words_2bt.shape[-1])[None])
        self.words_2bt[:, places] = words.to(self.device)
        self.now.noise_used = self.now.positions

    def keep(self, places: Tensor) -> None:
        """Drop all rows but the given ones."""
        self.words_2bt[:, : len(places)] = self.words_2bt[:, places]
        self.resize(len(places))

    def prepare(self, drawn: Sequence[int]) -> None:
        """Write down on the device which positions come next, if their noise is not there yet.

        Args:
            drawn: how many tokens each row has.
        """
        now, last = self.now, self.words_2bt.shape[-1] - 1
        if not self.decoding.sample or (self.ahead == 1 and now.noise_used < now.positions):
            return
        count = max(self.ahead, now.positions)
        positions = [[min(first + step, last) for first in drawn] for step in range(count)]
        now.drawn_pb.copy_(torch.tensor(positions), non_blocking=True)
        now.noise_used = now.positions

    def sample(
        self, step: int, hidden: Sequence[Tensor], banned: Sequence[tuple[int, list[int]]] = ()
    ) -> Tensor:
        """Sample the next token of each row, (rows,).

        Args:
            step: which one of the prepared steps this is.
            hidden: last hidden states of each model, (rows, hidden size).
            banned: rows with tokens that may not follow.
        """
        self._logits(hidden)
        if self.compiled is not None and self.compiled.ready(len(hidden[0])):
            self._compiled(step)
        else:
            self._one_by_one(step, banned)
        return self.now.found.tokens_kb[step]

    def compile(self, hidden: Sequence[Tensor]) -> bool:
        """Compile what is behind the logits once that is worth it, and check it for each number of rows.

        Returns:
            whether `sample` runs other kernels than before.
        """
        now = self.now
        if self.compiled is None or not self.compiled.due(len(now.rows_b), self.ahead):
            return False
        self._logits(hidden)
        noisy_bv = self._one_by_one(0, ()).clone()
        now.noise_used = now.positions
        self._logits(hidden)
        found = now.found.tokens_kb[0], now.found.scores_k4b[0]
        self.compiled.compare(lambda: self._compiled(0), noisy_bv, *found)
        return True

    def _logits(self, hidden: Sequence[Tensor]) -> None:
        logits_kbv = self.now.logits_kbv
        for head, hidden_bh, logits_bv in zip(self.heads, hidden, logits_kbv, strict=True):
            head(hidden_bh, logits_bv)

    def _compiled(self, step: int) -> None:
        assert self.compiled is not None
        now = self.now
        words_2b = self.words_2bt[:, now.rows_b, now.drawn_pb[step]]
        tokens_b, scores_3b = self.compiled(now.logits_kbv, self.shares_k11, words_2b)
        now.found.tokens_kb[step].copy_(tokens_b)
        if scores_3b is not None:
            now.found.scores_k4b[step, :3].copy_(scores_3b)

    def _one_by_one(self, step: int, banned: Sequence[tuple[int, list[int]]]) -> Tensor:
        """Find tokens and scores from logits; return what the tokens are the argmax of."""
        now = self.now
        logs_kbv = now.logits_kbv
        if self.decoding.temperature != 1:
            logs_kbv.div_(self.decoding.temperature)
        if self.scored:
            # the argmax of logits is the same, but these are recorded
            logs_kbv = logs_kbv.log_softmax(-1)
        replaced_b = None
        if len(self.heads) == 1:
            mixed_bv = logs_kbv[0]
        elif self.decoding.teacher_top_k:
            mixed_bv, replaced_b = speculative(logs_kbv, self.decoding.teacher_top_k)
        else:
            # log-probabilities are there, so the memory of the logits is free
            mixed_bv = mixture(logs_kbv, self.shares_k11, now.logits_kbv)
        if self.warpers or self.decoding.no_repeat_ngram:
            mixed_bv = self.cut(mixed_bv, banned)
        # Gumbel-max trick: the argmax of log-probabilities plus Gumbel noise is a sample. A
        # constant added to a row changes no argmax, so unnormalised logits do as well
        noisy_bv = mixed_bv
        if self.decoding.sample:
            # in the memory of the last model's logits, which nobody reads any more
            noisy_bv = torch.sub(mixed_bv, self.negative_noise(step), out=now.logits_kbv[-1])
        next_b = torch.argmax(noisy_bv, -1, out=now.found.tokens_kb[step])
        if self.scored:
            # under q, p and p̃: for rewards log p - log q, and weights w = q / p̃ (MiniLLM, 2.2)
            scores_4b1 = now.found.scores_k4b[step, ..., None]
            index_kb1 = next_b[:, None].expand(len(logs_kbv), -1, -1)
            torch.gather(logs_kbv, -1, index_kb1, out=scores_4b1[: len(logs_kbv)])
            torch.gather(mixed_bv, -1, next_b[:, None], out=scores_4b1[2])
            if replaced_b is not None:
                torch.exp(replaced_b, out=scores_4b1[3, :, 0])
        return noisy_bv

    def negative_noise(self, step: int) -> Tensor:
        """Return the negative noise of a step, (rows, vocabulary)."""
        now = self.now
        if now.noise_used == now.positions:
            drawn_pb = now.drawn_pb[step : step + now.positions]
            words_2pb = self.words_2bt[:, now.rows_b, drawn_pb]
            negative_noise_(now.noise_pbv.flatten(0, 1), words_2pb.flatten(1))
            now.noise_used = 0
        now.noise_used += 1
        return now.noise_pbv[now.noise_used - 1]

    def cut(self, mixed_bv: Tensor, banned: Sequence[tuple[int, list[int]]]) -> Tensor:
        """Apply n-gram blocking, top-k and top-p to the distribution."""
        if banned:
            mixed_bv = mixed_bv.clone()
        for row, tokens in banned:
            mixed_bv[row, tokens] = -math.inf
        # top-k and top-p do not use the previous tokens
        before = cast(LongTensor, self.now.rows_b[:, None][:, :0])
        cut_bv = self.warpers(before, cast(FloatTensor, mixed_bv))
        return cut_bv.log_softmax(-1) if self.scored else cut_bv

    def bytes(self) -> int:
        """Return the bytes that are kept between two draws."""
        return sum(now.logits_kbv.nbytes + now.noise_pbv.nbytes for now in self.tensors.values())


class _Tensors:
    """Tensors of steps with a number of rows.

    Attributes:
        noise_used: positions of the noise that have been used already.
        drawn_pb: positions of the next tokens in their responses.
    """

    def __init__(self, of: NextTokens, rows: int) -> None:
        device, vocabulary, kind = of.device, of.vocabulary, of.heads[0].result
        count = len(of.heads)
        self.logits_kbv = torch.empty(count, rows, vocabulary, dtype=kind, device=device)
        self.positions = min(noisy_positions(rows, vocabulary, device.type), 8)
        shape = self.positions, rows * of.decoding.sample, vocabulary
        self.noise_pbv = torch.empty(shape, device=device)
        self.noise_used = self.positions
        length = max(of.ahead, self.positions)
        self.drawn_pb = torch.zeros(length, rows, dtype=torch.long, device=device)
        self.rows_b = torch.arange(rows, device=device)
        self.found = Found(of.ahead, rows, device, kind)


class Found:
    """What some steps found, in one buffer, so that it reaches the host in one transfer.

    Attributes:
        tokens_kb: the tokens, (steps, rows).
        scores_k4b: their log-probabilities under student, teacher and mixture, and the probability
            that the teacher replaced them, (steps, 4, rows).
    """

    def __init__(
        self,
        steps: int,
        rows: int,
        device: torch.device,
        kind: torch.dtype,
        buffer: Tensor | None = None,
    ) -> None:
        self.shape, self.kind, split = (steps, rows), kind, 8 * steps * rows
        if buffer is None:
            size = split + 4 * kind.itemsize * steps * rows
            buffer = torch.zeros(size, dtype=torch.uint8, device=device)
        self.buffer = buffer
        self.tokens_kb = buffer[:split].view(torch.long).view(steps, rows)
        self.scores_k4b = buffer[split:].view(kind).view(steps, 4, rows)

    def on_host(self) -> "Found":
        """Copy the buffer to the host, if it is not there."""
        if self.buffer.device.type == "cpu":
            return self
        return Found(*self.shape, torch.device("cpu"), self.kind, self.buffer.cpu())
