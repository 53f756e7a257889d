"""TAID (Shing et al., arXiv 2501.16937): a target that moves from the student to the teacher.

L = (1/N) Σ_t KL(p_τ ‖ q) with p_τ = softmax((1 - τ) z_q + τ z_p): the logits of the student, through
which no gradient flows, and of the teacher. The target is an assistant distribution in
place of an assistant model. τ grows from `target_start` to 1: linearly with the steps, and faster
where the loss falls:

    δ = (J_before - J) / J_before,  m = β m_before + (1 - β) δ,  Δ = α σ(m) (1 - τ)
    τ_next = min(1, max(linear, τ + Δ))

J is the loss of a step, before weighting by `ratio`. Responses come from any regime of
`takd.methods.on_policy`; the paper trains on fixed data.
"""

import math
from typing import Any

import torch
from torch import Tensor

from takd.losses.divergences import forward_kl
from takd.methods.on_policy import OnPolicyMethod

LOWEST = -1e37  # stands for the logarithm of probability 0


class Taid(OnPolicyMethod):
    """TAID, with its adaptive target.

    Attributes:
        target: τ, the teacher's share of the target's logits.
        momentum: m, the smoothed relative decrease of the loss.
        before: J of the step before; nan before the first.
    """

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.target: float = self.settings["target_start"]
        self.momentum, self.before = 0.0, math.nan

    def divergence(self, student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
        # log-probabilities serve as logits: a constant added to all changes no distribution. They are
        # kept finite, since a weight of 0 times infinity would be nan
        own_nv, teacher_nv = (x.clamp(min=LOWEST) for x in (student_nv.detach(), teacher_nv))
        target_nv = torch.lerp(own_nv, teacher_nv, self.target).log_softmax(-1)
        return forward_kl(student_nv, target_nv)

    def constants(self) -> dict[str, float]:
        return {**super().constants(), "target": self.target}

    def learned(self, step: int, values: dict[str, float]) -> None:
        """Move the target after an optimizer step; a step without a finite gradient leaves it."""
        loss, s = values["divergence"], self.settings
        if not math.isfinite(loss) or not math.isfinite(values["gradient_norm"]):
            return
        if self.before > 0:  # not in the first step, where it is nan
            fall = (self.before - loss) / self.before
            self.momentum = s["target_beta"] * self.momentum + (1 - s["target_beta"]) * fall
        self.before = loss
        more = s["target_alpha"] / (1 + math.exp(-self.momentum)) * (1 - self.target)
        done = (step + 1) / self.total_steps()
        linear = s["target_start"] + (1 - s["target_start"]) * done
        self.target = min(1.0, max(linear, self.target + more))

    def state(self) -> dict[str, Tensor]:
        target = [self.target, self.momentum, self.before]
        return {**super().state(), "target": torch.tensor(target, dtype=torch.float64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        super().restore(state)
        self.target, self.momentum, self.before = state["target"].tolist()


METHOD = Taid
