"""Sequence-level knowledge distillation (Kim & Rush, arXiv 1606.07947) on teacher responses.

L = -(1/N) Σ_t log q(ŷ_t | x, ŷ_<t) over the N tokens of the teacher's responses ŷ to the prompts of
the global batch. A stage samples them once per teacher, and they replace the training rows.
"""

from takd.methods.sft import Sft


class SeqKd(Sft):
    """Cross-entropy on rows whose labels are the teacher's responses."""


METHOD = SeqKd
