"""Exact divergences between distributions over whole responses, by enumeration of all that a response can begin with.

A model's distribution over responses to a prompt x is that of drawing token after token from q(· | x, y_<t), at
temperature 1 and without top-k or top-p, until the end token or `tokens` tokens; a response that reaches this length
need not have an end token. The same holds for the other side of a comparison, p. With the sum over all prefixes y_<t of
fewer than `tokens` tokens, none of them the end,

    KL(q ‖ p) = Σ_{y_<t} q(y_<t | x) KL(q(· | x, y_<t) ‖ p(· | x, y_<t)),    in nats a response,

which is Σ_y q(y | x) log(q(y | x) / p(y | x)) over all responses y. Everything is computed in float64.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from takd.data import letters
from takd.evaluation.log_likelihoods import Record, Text
from takd.losses.divergences import forward_kl, reverse_kl
from takd.models.causal_lm import hidden_states
from takd.models.logits import project
from takd.models.tokenizer_check import end_tokens

Distributions = list[Tensor]
"""By the length t of the prefix: log-probabilities of the next token, (prefixes of that length, vocabulary).

Prefixes are in the order of their tokens, the last one varying fastest.
"""
Source = Callable[[Sequence[int]], Distributions]
"""Distributions after a prompt."""
KINDS = ("reverse_kl", "forward_kl")
TRUTH = "truth"
ROWS = 4096  # sequences that a model reads at once
KEPT = 16  # prompts whose distributions are kept from one comparison to the next


class Responses(NamedTuple):
    """All responses of up to `tokens` tokens.

    Attributes:
        tokens: tokens of the longest, the end token included.
        vocabulary: number of tokens, whose ids begin at 0.
        ends: ids of the tokens that end a response.
    """

    tokens: int
    vocabulary: int
    ends: tuple[int, ...]

    @property
    def others(self) -> list[int]:
        """Ids of the tokens that a response goes on after."""
        return [token for token in range(self.vocabulary) if token not in self.ends]

    def of_model(self, model: PreTrainedModel) -> Source:
        """Distributions of a model, which is in float64."""

        @torch.no_grad()
        def distributions(prompt: Sequence[int]) -> Distributions:
            texts = list(product(self.others, repeat=self.tokens - 1))
            longest = torch.tensor(texts, dtype=torch.long)
            ids_bt = torch.cat([torch.tensor([prompt]).expand(len(longest), -1), longest], 1)
            parts = []
            for part_bt in ids_bt.to(model.device).split(ROWS):
                hidden_bth = hidden_states(model, part_bt)[:, len(prompt) - 1 :]
                parts.append(project(model, hidden_bth, self.vocabulary).log_softmax(-1).cpu())
            log_btv = torch.cat(parts)
            # sequences that begin alike lie side by side: the first of them has their distribution
            alike = [len(self.others) ** (self.tokens - 1 - t) for t in range(self.tokens)]
            return [log_btv[::step, t] for t, step in enumerate(alike)]

        return distributions

    def of_letters(self, seed: int, ids: Sequence[int]) -> Source:
        """Distributions of the data source `letters`; `ids` are those of its letters in their order."""
        world, number = letters.world(seed), {token: at for at, token in enumerate(ids)}
        places = torch.tensor([*ids, *self.ends])

        def distributions(prompt: Sequence[int]) -> Distributions:
            asked, found = [number[token] for token in prompt], []
            for length in range(self.tokens):
                said = product(self.others, repeat=length)
                given = [world.next([*asked, *(number[token] for token in each)]) for each in said]
                known = torch.tensor(given, dtype=torch.float64)
                found.append(torch.empty_like(known).index_copy_(1, places, known).log())
            return found

        return distributions

    def divergences(self, student: Distributions, other: Distributions) -> tuple[float, float]:
        """Return the reverse KL(q ‖ p) and the forward KL(p ‖ q) of q, the student's distributions, and p."""
        sides = (student, reverse_kl), (other, forward_kl)
        found = []
        for drawn_from, kl in sides:
            total, reached_n = 0.0, torch.ones(1, dtype=torch.float64)
            for log_q_nv, log_p_nv, drawn_nv in zip(student, other, drawn_from, strict=True):
                # a divergence is not negative, but rounding may make the sum so
                total += float((reached_n * kl(log_q_nv, log_p_nv).clamp(min=0)).sum())
                reached_n = (reached_n[:, None] * drawn_nv[:, self.others].exp()).flatten()
            found.append(total)
        return found[0], found[1]


def comparisons(
    spec: dict[str, Any], tokenizer: Any, load: Callable[..., Any], parts: Sequence[str]
) -> Iterator[tuple[str, Callable[[Sequence[Text]], list[Record]]]]:
    """Yield each part with the function that compares the model after prompts, texts without a response.

    Args:
        spec: settings of the stage, whose `exact` has `tokens` and, where the data are `letters`, their seed.
        load: function of an input's name, a lineage and a precision that returns a model and its vocabulary.
        parts: "direct/exact", "first/exact" and "truth/exact", or some of them.
    """
    if not parts:
        return
    model, vocabulary = load("model", spec["lineage"], "fp32")
    responses = Responses(spec["exact"]["tokens"], vocabulary, end_tokens(tokenizer))
    student = functools.lru_cache(KEPT)(responses.of_model(model.double()))

    def compared(other: Source, texts: Sequence[Text]) -> list[Record]:
        records = []
        for text in texts:
            prompt = tuple(text.prompt)
            found = responses.divergences(student(prompt), other(prompt))
            records.append({"row": text.row, "index": 0, **dict(zip(KINDS, found, strict=True))})
        return records

    for part in parts:
        role = part.partition("/")[0]
        if role == TRUTH:
            ids = tokenizer.convert_tokens_to_ids(list(letters.LETTERS))
            other = responses.of_letters(spec["exact"]["letters"], ids)
        else:
            teacher, _ = load(role, spec["teachers"][role][0], "fp32")
            other = responses.of_model(teacher.double())
        yield part, functools.partial(compared, other)
