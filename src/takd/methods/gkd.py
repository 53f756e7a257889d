"""Generalised knowledge distillation (GKD; Agarwal et al., arXiv 2306.13649).

L = (1/N) Σ_t D_β(p, q) with the generalised Jensen-Shannon divergence D_β = β KL(p ‖ m) + (1 - β)
KL(q ‖ m), m = β p + (1 - β) q (section 3). β = 0 is KL(p ‖ q), β = 1 is KL(q ‖ p). Each step uses
new on-policy responses with probability λ = `on_policy_share`, else the data (algorithm 1).
"""

from functools import partial

from takd.losses.divergences import jensen_shannon
from takd.methods.on_policy import StudentRows
from takd.methods.token_losses import Divergence


class Gkd(StudentRows):
    """GKD, with the generalised Jensen-Shannon divergence."""

    @property
    def divergence(self) -> Divergence:
        return partial(jensen_shannon, beta=self.settings["beta"])


METHOD = Gkd
