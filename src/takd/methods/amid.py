"""AMiD (Shin et al., arXiv 2510.15982): a divergence from the α-mixture of teacher and student.

L = (1/N) Σ_t KL(p ‖ r), or KL(q ‖ r), with r ∝ [ λ p^e + (1 - λ) q^e ]^(1/e) and e = (1 - α)/2. The
mixture r is an assistant distribution between teacher and student, in place of an assistant model.
α = -1 is DistiLLM's mixture; α = 1 has the geometric mean of TAID, through which gradients flow
here. Responses come from any regime of `takd.methods.on_policy`.
"""

from torch import Tensor

from takd.losses.divergences import alpha_mixture, forward_kl
from takd.methods.on_policy import OnPolicyMethod


class Amid(OnPolicyMethod):
    """AMiD, with the divergence of the teacher or of the student from the mixture."""

    def divergence(self, student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
        s = self.settings
        mixed_nv = alpha_mixture(teacher_nv, student_nv, s["skew"], s["alpha"])
        return forward_kl(mixed_nv, teacher_nv if s["from"] == "teacher" else student_nv)


METHOD = Amid
