"""Speculative knowledge distillation (SKD; Xu et al., arXiv 2410.11325).

L = (1/N) Σ_t D(p, q) on responses that student and teacher write together (algorithm 1): the student
proposes each token, and one that is not among the teacher's k = `teacher_top_k` likeliest ones there
is replaced by a sample of the teacher. D is the forward KL by default. A k of the whole vocabulary
leaves the student alone; at k = 1 all but the teacher's likeliest token is replaced. Responses come
in any regime of `takd.methods.on_policy`, with the student's replaced by these; the paper has no
other.
"""

from typing import Any

import torch
from torch import Tensor

from takd.decoding.sampling import Prompt, Response
from takd.methods.base import Sampler
from takd.methods.kd import DIVERGENCES
from takd.methods.on_policy import OnPolicyMethod


class Skd(OnPolicyMethod):
    """SKD, with any divergence of `kd`.

    Attributes:
        replaced: expected share of the tokens drawn last that the teacher replaced.
    """

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.replaced = 0.0

    def divergence(self, student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
        return DIVERGENCES[self.settings["divergence"]](student_nv, teacher_nv)

    def draw(self, prompts: list[Prompt], sample: Sampler) -> list[Response]:
        k, temperature = self.settings["teacher_top_k"], self.settings["temperature"]
        if k >= self.context.vocabulary:
            return super().draw(prompts, sample)
        responses = sample(prompts, temperature, 0.0, k)
        self.replaced = torch.cat([response.replaced for response in responses]).mean().item()
        return responses

    def constants(self) -> dict[str, float]:
        return {**super().constants(), "replaced": self.replaced if self.drawn is not None else 0.0}

    def state(self) -> dict[str, Tensor]:
        replaced = torch.tensor([self.replaced], dtype=torch.float64)
        return {**super().state(), "replaced": replaced}

    def restore(self, state: dict[str, Tensor]) -> None:
        super().restore(state)
        self.replaced = state["replaced"].item()


METHOD = Skd
