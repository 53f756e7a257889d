"""Supervised fine-tuning: cross-entropy on the reference responses.

L = -(1/N) Σ_t log q(y_t | x, y_<t), over the N response tokens of the global batch. It makes the teacher, the
baseline, and the student that on-policy methods start from.
"""

from takd.methods.base import LabelledRows, LossFunction
from takd.methods.losses import label_loss


class Sft(LabelledRows):
    """Labelled rows and their labels."""

    def loss(self, tokens: int) -> LossFunction:
        return label_loss(self.context.vocabulary, tokens)


METHOD = Sft
