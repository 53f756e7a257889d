"""Supervised fine-tuning: cross-entropy on the reference responses.

L = -(1/N) Σ_t log q(y_t | x, y_<t), over the N response tokens of the global batch. It trains the
teacher, the baseline, and the initial student of on-policy methods.
"""

from takd.methods.base import LabelledRows, LossFunction
from takd.methods.token_losses import label_loss


class Sft(LabelledRows):
    """Cross-entropy on labelled rows."""

    def loss(self, tokens: int) -> LossFunction:
        return label_loss(self.context.vocabulary, tokens)


METHOD = Sft
