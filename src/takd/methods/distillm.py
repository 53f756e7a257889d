"""DistiLLM (Ko et al., arXiv 2402.03898): a skewed KL, and adaptive off-policy student responses.

L = (1/N) Σ_t KL(p ‖ λ p + (1 - λ) q), or KL(q ‖ (1 - λ) p + λ q), with λ = `skew` (section 3.1).
Responses come from the adaptive off-policy regime (section 3.2), see `takd.methods.on_policy`.
"""

from torch import Tensor

from takd.losses.divergences import skewed_forward_kl, skewed_reverse_kl
from takd.methods.on_policy import OnPolicyMethod

DIVERGENCES = {"skewed_forward_kl": skewed_forward_kl, "skewed_reverse_kl": skewed_reverse_kl}


class DistiLLM(OnPolicyMethod):
    """DistiLLM, with skewed forward or reverse KL."""

    def divergence(self, student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
        skewed = DIVERGENCES[self.settings["divergence"]]
        return skewed(student_nv, teacher_nv, skew=self.settings["skew"])


METHOD = DistiLLM
