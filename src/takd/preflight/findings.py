"""Result of one check by `doctor`."""

from functools import partial
from typing import NamedTuple


class Finding(NamedTuple):
    """Result of one check.

    Attributes:
        level: "ok", "warning" (may go wrong, or only costs time) or "error" (will go wrong).
    """

    level: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8}{self.subject:<11}{self.text}"


ok, warning, error = (partial(Finding, level) for level in ("ok", "warning", "error"))
