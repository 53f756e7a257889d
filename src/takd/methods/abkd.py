"""ABKD (Wang et al., arXiv 2505.04560): the α-β divergence, which includes both KL divergences.

L = (1/N) Σ_t D_αβ(p, q) with D_αβ = -1/(αβ) Σ_v [ p^α q^β - α/(α+β) p^(α+β) - β/(α+β) q^(α+β) ]
(definition 4.1). The paper trains with it on fixed data, and also in the regimes of GKD and
DistiLLM (see `takd.methods.on_policy`).
"""

from torch import Tensor

from takd.losses.divergences import alpha_beta
from takd.methods.on_policy import OnPolicyMethod


class Abkd(OnPolicyMethod):
    """ABKD, in any on-policy regime."""

    def divergence(self, student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
        s = self.settings
        return alpha_beta(student_nv, teacher_nv, alpha=s["alpha"], beta=s["beta"])


METHOD = Abkd
