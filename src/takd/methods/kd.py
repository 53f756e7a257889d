"""Word-level knowledge distillation (Hinton et al., arXiv 1503.02531; Sanh et al., 1910.01108).

L = (1/N) Σ_t [ (1 - λ) (-log q(y_t)) + λ D(p, q) ] with λ = `ratio`, over the N response tokens of
the global batch. p and q are conditioned on the reference response. D is the forward KL by default.
"""

from takd.losses import divergences
from takd.losses.teacher_logits import teacher_view
from takd.methods.base import LabelledRows, LossFunction
from takd.methods.token_losses import Divergence, label_and_divergence_loss

DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": divergences.forward_kl,
    "reverse_kl": divergences.reverse_kl,
    "jensen_shannon": divergences.jensen_shannon,
    "total_variation": divergences.total_variation,
}


class Kd(LabelledRows):
    """Word-level distillation on labelled rows, mixed with cross-entropy on the labels."""

    def loss(self, tokens: int) -> LossFunction:
        s, c = self.settings, self.context
        view = teacher_view(s["teacher_outputs"], c.teacher, c.vocabulary, c.stored.get("train"))
        divergence = DIVERGENCES[s["divergence"]]
        return label_and_divergence_loss(view, divergence, s["ratio"], c.vocabulary, tokens)


METHOD = Kd
