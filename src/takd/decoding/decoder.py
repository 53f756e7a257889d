"""Rows that are decoded together: admission, steps of fixed shape, and the end of responses.

Nothing that a step computes decides where its tokens go, so the host writes down columns and
positions of several steps beforehand, and looks at their tokens afterwards: on a CPU after each
step, where a row that waits costs time, on a GPU after eight, where the look does. A row that ends
in between goes on, and what follows its end is ignored.
"""

import contextlib
import math
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from takd.decoding.amounts import AHEAD
from takd.decoding.graphs import Graphs
from takd.decoding.kv_cache import RaggedCache
from takd.decoding.next_tokens import NextTokens
from takd.decoding.ngrams import Repeats
from takd.decoding.prompts import Decoding, Prompt, Response
from takd.models.lowered import LoweredWeights


@dataclass
class _Place:
    """A row of the batch: the response that is being sampled there.

    Attributes:
        began: the step of its first token.
    """

    index: int
    limit: int
    repeats: Repeats | None
    began: int
    length: int = 0
    finished: bool = False
    ended: bool = False


class Decoder:
    """Decodes prompts with one model, or with a student and its teacher mixed.

    A finished row is replaced by the next prompt. A decoder can be used again, also after its
    models' weights have changed: its tensors keep their addresses.

    Args:
        models: the student; and its teacher, if it mixes.
        rows: most rows that are decoded together.
        columns: tokens of the longest text, prompt and response.
        scored: whether log-probabilities are recorded.
    """

    def __init__(
        self,
        models: list[PreTrainedModel],
        decoding: Decoding,
        end_token: int | tuple[int, ...],
        vocabulary: int,
        teacher_mix: float,
        rows: int,
        columns: int,
        scored: bool,
    ) -> None:
        self.models, self.decoding = models, decoding
        self.ends = {end_token} if isinstance(end_token, int) else {*end_token}
        self.device, self.most, self.columns = models[0].device, rows, columns
        # banned n-grams depend on the last token, which Python must see
        ahead = AHEAD.get(self.device.type, AHEAD["cuda"])
        self.ahead = 1 if decoding.no_repeat_ngram else ahead
        self.graphs = Graphs(self.device)
        self.caches = [RaggedCache(model, rows, columns, self.ahead) for model in models]
        self.weights = [LoweredWeights(model) for model in models]
        captured = self.graphs.capture is not None
        self.next = NextTokens(
            *(models, decoding, vocabulary, teacher_mix, rows, self.ahead, scored, captured)
        )
        # What the last steps found, each at its step's number modulo the length, so that a row that
        # ends finds all of its tokens. The teacher's hidden states stay on the device
        self.slots = math.ceil(decoding.max_new_tokens / self.ahead) * self.ahead
        self.tokens_tb = torch.zeros(self.slots, rows, dtype=torch.long)
        self.scores_t4b = torch.zeros(self.slots, 4, rows)
        self.teacher_tbh = torch.zeros(0, device=self.device)
        # last hidden states of each model, (rows, hidden size), and the teacher's of the last steps
        # at the end of the list, (steps, rows, hidden size); by number of rows
        self.states: dict[int, list[Tensor]] = {}
        self.restart()

    def restart(self) -> None:
        """Free all rows, and take over the models' weights as they are now."""
        self.rows: list[_Place | None] = [None] * self.most
        self.now = 0
        moved = [cache.restart() for cache in self.caches]
        if any(moved):
            self.graphs.forget()
        self.next.restart(self.most)

    @property
    def hidden(self) -> list[Tensor]:
        """Per model, the state that predicts each row's next token, (rows, hidden size)."""
        return self.states[len(self.rows)][: len(self.models)]

    def run(self, queue: deque[tuple[int, Prompt]]) -> Generator[tuple[int, Response]]:
        """Yield finished responses with the indices of their prompts."""
        with contextlib.ExitStack() as stack:
            for weights in self.weights:
                stack.enter_context(weights.used())
            yield from self._run(queue)

    def _run(self, queue: deque[tuple[int, Prompt]]) -> Iterator[tuple[int, Response]]:
        while queue or any(self.rows):
            free = [place for place, row in enumerate(self.rows) if row is None]
            # reading one prompt costs about as much as a step of all rows: wait to read several
            # together
            if queue and (len(free) >= max(1, len(self.rows) // 8) or not any(self.rows)):
                self.admit(free, queue)
            self.steps()
            yield from self.retire()
            taken = [place for place, row in enumerate(self.rows) if row is not None]
            if not taken:
                continue
            tokens_b = self.next.now.found.tokens_kb[-1]
            # rows are dropped only if no prompt is left to fill them
            kept = [] if queue else self.fewer(taken)
            if kept:
                tokens_b = tokens_b[kept]
                self.keep(kept)
            if self.ahead == 1:
                # both models read the same token, whichever of them made it likely
                for held, cache in zip(self.hidden, self.caches, strict=True):
                    held.copy_(cache.step(tokens_b))

    def fewer(self, taken: list[int]) -> list[int]:
        """Return the rows to keep if few are left; nothing if all should stay."""
        size = len(self.rows)
        if self.device.type == "cpu":
            # dropping rows copies the caches, which costs about as much as a step
            return taken if len(taken) <= 0.75 * size else []
        # each number of rows has graphs of its own, so there are few: halves, with free rows
        while len(taken) <= size // 2:
            size //= 2
        free = [place for place, row in enumerate(self.rows) if row is None]
        kept = sorted([*taken, *free[: size - len(taken)]])
        return kept if size < len(self.rows) else []

    def admit(self, free: list[int], queue: deque[tuple[int, Prompt]]) -> None:
        """Read the next prompts into free rows."""
        places = free[: len(queue)]
        admitted = [queue.popleft() for _ in places]
        prompts = [prompt for _, prompt in admitted]
        read = [[p.tokens for p in prompts], [p.teacher_tokens for p in prompts]]
        hidden = [cache.read(own, places) for cache, own in zip(self.caches, read, strict=False)]
        rows, where = len(self.rows), torch.tensor(places, device=self.device)
        if rows not in self.states:
            self.states[rows] = self._states(rows, hidden)
        if len(hidden) > 1 and not len(self.teacher_tbh):
            self.teacher_tbh = hidden[1].new_zeros(self.slots, self.most, hidden[1].shape[1])
        for held, new in zip(self.hidden, hidden, strict=True):
            held[where] = new
        self.next.admit(where, prompts)
        size, limit = self.decoding.no_repeat_ngram, self.decoding.max_new_tokens
        for place, (index, prompt) in zip(places, admitted, strict=True):
            repeats = Repeats(size, prompt.tokens) if size else None
            self.rows[place] = _Place(index, min(limit, prompt.limit or limit), repeats, self.now)

    def _states(self, rows: int, like: list[Tensor]) -> list[Tensor]:
        states = [h.new_zeros(rows, h.shape[1]) for h in like]
        return states + [h.new_zeros(self.ahead, rows, h.shape[1]) for h in like[1:]]

    def steps(self) -> None:
        """Sample the next tokens of each row; with several, read them too."""
        self.next.prepare([0 if row is None else self.now - row.began for row in self.rows])
        if self.ahead == 1:
            banned = [
                (place, tokens)
                for place, row in enumerate(self.rows)
                if row is not None and row.repeats is not None and (tokens := row.repeats.banned())
            ]
            self.next.sample(0, self.hidden, banned)
            self._note_teacher(0, self.hidden)
            return
        if self.next.compile(self.hidden):
            self.graphs.forget()
        for cache in self.caches:
            cache.prepare()
        self.graphs((len(self.rows), self.caches[0].columns), self._several)
        for cache in self.caches:
            cache.appended()

    def _several(self) -> None:
        """Sample and read some tokens of each row, without a look at them."""
        for cache in self.caches:
            cache.see()
        hidden = self.hidden
        for step in range(self.ahead):
            tokens_b = self.next.sample(step, hidden)
            self._note_teacher(step, hidden)
            hidden = [cache.append(tokens_b, step) for cache in self.caches]
        for held, new in zip(self.hidden, hidden, strict=True):
            held.copy_(new)

    def _note_teacher(self, step: int, hidden: list[Tensor]) -> None:
        if len(self.models) > 1:
            self.states[len(self.rows)][-1][step].copy_(hidden[1])

    def retire(self) -> Iterator[tuple[int, Response]]:
        """Yield the responses that end with the last steps' tokens, and free their rows."""
        found = self.next.now.found.on_host()  # the only regular transfer from the device
        rows, slot = len(self.rows), self.now % self.slots
        here = slice(slot, slot + self.ahead)
        self.tokens_tb[here, :rows] = found.tokens_kb
        if self.next.scored:
            self.scores_t4b[here, :, :rows] = found.scores_k4b
        if len(self.models) > 1:
            self.teacher_tbh[here, :rows] = self.states[rows][-1]
        self.now += self.ahead
        ended: list[tuple[int, _Place]] = []
        for tokens in found.tokens_kb.tolist():
            for place, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
                if row is None or row.ended:
                    continue
                row.length += 1
                if row.repeats is not None:
                    row.repeats.add(token)
                row.finished = token in self.ends
                row.ended = row.finished or row.length == row.limit
                if row.ended:
                    ended.append((place, row))
        for place, row in ended:
            self.rows[place] = None
            yield row.index, self._response(place, row)
        for cache in self.caches:
            cache.free([place for place, _ in ended])

    def _response(self, place: int, row: _Place) -> Response:
        """Collect the tokens of a response, and what was recorded of them."""
        at = torch.arange(row.began, row.began + row.length) % self.slots
        student = teacher = mixed = replaced = self.scores_t4b[:0, 0, 0]
        if self.next.scored:
            # copies, since slices would keep the tensors of all rows in memory
            student, found, mixed, replaced = self.scores_t4b[at, :, place].T.contiguous()
            teacher = found if len(self.models) > 1 else teacher
        states_th = self.teacher_tbh
        if len(self.models) > 1:
            states_th = states_th[at.to(self.device), place]
        tokens = self.tokens_tb[at, place]
        return Response(tokens, row.finished, student, teacher, mixed, states_th, replaced)

    def keep(self, places: list[int]) -> None:
        """Drop all rows but the given ones."""
        before, count = self.hidden, len(places)
        where = torch.tensor(places, device=self.device)
        for cache in self.caches:
            cache.keep(places)
        self.next.keep(where)
        self.rows = [self.rows[place] for place in places]
        if count not in self.states:
            self.states[count] = self._states(count, before)
        for held, hidden in zip(self.hidden, before, strict=True):
            held.copy_(hidden[where])
        self.tokens_tb[:, :count] = self.tokens_tb[:, places]
        self.scores_t4b[..., :count] = self.scores_t4b[..., places]
        if len(self.models) > 1:
            self.teacher_tbh[:, :count] = self.teacher_tbh[:, where]

    def bytes(self) -> int:
        """Return the bytes that are kept between two draws."""
        held = [self.teacher_tbh, *(state for states in self.states.values() for state in states)]
        kept = sum(cache.bytes() for cache in self.caches) + sum(w.bytes() for w in self.weights)
        return kept + self.next.bytes() + sum(tensor.nbytes for tensor in held)
