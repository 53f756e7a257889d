"""Word-level knowledge distillation on the labelled rows (Hinton et al., arXiv 1503.02531; Sanh et al., 1910.01108).

L = (1/N) Σ_t [ (1 - λ) (-log q(y_t)) + λ KL(p ‖ q) ] with λ = `ratio`, over the N response tokens of the global
batch; p and q are conditioned on the reference response.
"""

from takd.methods.base import LabelledRows, LossFunction
from takd.methods.losses import label_and_teacher_loss


class Kd(LabelledRows):
    """Labelled rows with the teacher's distribution beside the labels."""

    def loss(self, tokens: int) -> LossFunction:
        ratio = self.settings["ratio"]
        return label_and_teacher_loss(self.teacher, ratio, self.context.vocabulary, tokens)


METHOD = Kd
