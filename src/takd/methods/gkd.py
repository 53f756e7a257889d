"""Generalised knowledge distillation (GKD; Agarwal et al., arXiv 2306.13649).

L = (1/N) Σ_t D_β(p, q) with the generalised Jensen-Shannon divergence D_β = β KL(p ‖ m) + (1 - β)
KL(q ‖ m), m = β p + (1 - β) q (section 3). β = 0 is KL(p ‖ q), β = 1 is KL(q ‖ p). Each step uses
new on-policy responses with probability λ = `on_policy_share`, else the data (algorithm 1).
"""

from torch import Tensor

from takd.losses.divergences import jensen_shannon
from takd.methods.on_policy import OnPolicyMethod


class Gkd(OnPolicyMethod):
    """GKD, with the generalised Jensen-Shannon divergence."""

    def divergence(self, student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
        return jensen_shannon(student_nv, teacher_nv, beta=self.settings["beta"])


METHOD = Gkd
