"""Blocking of n-grams that would occur twice in a text."""

from collections import defaultdict
from collections.abc import Sequence


class Repeats:
    """Tokens that would repeat an n-gram of a growing text.

    Keeps what followed each n - 1 tokens so far, so a step costs the same in texts of any length.
    """

    def __init__(self, size: int, prompt: Sequence[int]) -> None:
        self._before, self._count = size - 1, 0
        self._last: tuple[int, ...] = ()
        self._followers: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for token in prompt:
            self.add(token)

    def add(self, token: int) -> None:
        """Append a token to the text."""
        if self._count >= self._before:
            self._followers[self._last].append(token)
        self._count += 1
        self._last = (*self._last, token)[-self._before :] if self._before else ()

    def banned(self) -> list[int]:
        """Return the tokens that may not follow."""
        return self._followers.get(self._last, []) if self._count >= self._before else []
