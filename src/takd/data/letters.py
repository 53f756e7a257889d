"""Demonstration data whose distribution is known: short sequences of letters, so few that all can be listed.

A prompt is two letters, a response up to `LENGTH` tokens: letters, then the end token unless the length is reached.
The next token y after the letters c_1 … c_n, those of the prompt and of the response so far, is drawn from

    p(y | c) ∝ exp Σ_{k=0}^{n} SCALE · DECAY^k · u_k(c_{n-k+1} … c_n, y)

where the entries of each table u_k are drawn evenly from [-1, 1] with the seed. So a distribution has a part that
depends on the last letter, one that depends on the last two, and so on up to all of them: a larger model learns more of
these parts.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from random import Random
from typing import Any

TOPIC = "letters"
LETTERS = ("a", "b", "c", "d")
ASKED = 2  # letters of a prompt
LENGTH = 6  # tokens of a response, the end token included
SCALE, DECAY = 3.0, 0.8


class World:
    """The distribution of a seed. Letters are numbers from 0; the number after the last letter is the end."""

    def __init__(self, seed: int) -> None:
        random = Random(seed)
        size = len(LETTERS) + 1
        self._tables = [
            [[2 * random.random() - 1 for _ in range(size)] for _ in range(len(LETTERS) ** order)]
            for order in range(ASKED + LENGTH)
        ]

    def next(self, letters: Sequence[int]) -> list[float]:
        """Probability of each letter, and of the end, after the letters of the prompt and of the response so far."""
        logits, place = [0.0] * (len(LETTERS) + 1), 0
        for order in range(len(letters) + 1):
            if order:  # the last `order` letters as a number, the last one of them its last digit
                place += letters[-order] * len(LETTERS) ** (order - 1)
            weight = SCALE * DECAY**order
            for token, value in enumerate(self._tables[order][place]):
                logits[token] += weight * value
        most = max(logits)
        odds = [math.exp(value - most) for value in logits]
        total = math.fsum(odds)
        return [value / total for value in odds]


def are_draws(source: Mapping[str, Any]) -> bool:
    """Whether a source is one of letters: prompts repeat, and an empty response is one of those that can be drawn."""
    return TOPIC in source.get("demo", {}).get("topics", ())


def truth(source: Mapping[str, Any]) -> dict[str, int]:
    """Return what the distribution of a source is known by: the seed of `letters`, and nothing of others."""
    return {TOPIC: source["demo"]["seed"]} if are_draws(source) else {}


world = functools.cache(World)
"""The distribution of a seed."""


def rows(part: str, rows: int, seed: int) -> Iterator[tuple[str, str]]:
    """Draw prompts, in turn all that there are, and a response to each, which may be empty.

    The responses of each part, "train", "dev" or "test", are draws of their own.
    """
    random, drawn_from = Random(f"{seed} {part}"), world(seed)
    prompts = list(product(range(len(LETTERS)), repeat=ASKED))
    for number in range(rows):
        prompt = prompts[number % len(prompts)]
        said: list[int] = []
        while len(said) < LENGTH:
            share, token = random.random(), 0  # by the distribution's parts of the unit interval
            for probability in drawn_from.next([*prompt, *said])[:-1]:
                share -= probability
                if share < 0:
                    break
                token += 1
            if token == len(LETTERS):
                break
            said.append(token)
        yield _text(prompt), _text(said)


def _text(letters: Sequence[int]) -> str:
    return " ".join(LETTERS[letter] for letter in letters)
