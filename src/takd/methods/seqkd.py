"""Sequence-level knowledge distillation (Kim & Rush, arXiv 1606.07947): the teacher's responses as labels.

L = -(1/N) Σ_t log q(ŷ_t | x, ŷ_<t) over the N tokens of the responses ŷ that the teacher gave to the prompts of the
global batch. A stage draws them once for each teacher, and they come as the training rows.
"""

from typing import Any

from takd.methods.sft import Sft


class SeqKd(Sft):
    """Rows whose labels are the teacher's responses."""

    @staticmethod
    def asks_teacher(settings: dict[str, Any]) -> bool:
        return False


METHOD = SeqKd
