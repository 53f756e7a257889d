"""Speculative knowledge distillation (SKD; Xu et al., arXiv 2410.11325).

L = (1/N) Σ_t D(p, q) on responses that student and teacher write together (algorithm 1): the student
proposes each token, and one that is not among the teacher's k = `teacher_top_k` likeliest ones there
is replaced by a sample of the teacher. D is the forward KL by default. A k of the whole vocabulary
leaves the student alone; at k = 1 all but the teacher's likeliest token is replaced. Responses come
in any regime of `takd.methods.on_policy`, with the student's replaced by these.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from takd.decoding.sampling import Prompt, Response
from takd.losses.teacher_logits import KeptTeacher, TeacherView
from takd.methods.base import Part, Sampler
from takd.methods.kd import DIVERGENCES
from takd.methods.on_policy import OnPolicyMethod


class Skd(OnPolicyMethod):
    """SKD, with any divergence of `kd`.

    Attributes:
        replaced: expected share of the tokens drawn last that the teacher replaced.
        hidden: the teacher's last hidden states of the responses that were drawn for this step.
    """

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.replaced = 0.0
        self.hidden: list[Tensor] = []

    def divergence(self, student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
        return DIVERGENCES[self.settings["divergence"]](student_nv, teacher_nv)

    def uses(self) -> list[list[int]]:
        alone = self.settings["teacher_top_k"] >= self.context.vocabulary
        return [] if alone else [list(range(self.settings["batch_size"]))]

    def prepare(self, step: int, sample: Sampler) -> None:
        if step != self.step:
            self.hidden = []
        super().prepare(step, sample)

    def draw(self, prompts: list[Prompt], sample: Sampler) -> list[Response]:
        if not self.uses():
            return super().draw(prompts, sample)
        responses = sample(
            prompts, self.settings["temperature"], 0.0, self.settings["teacher_top_k"]
        )
        self.replaced = torch.cat([response.replaced for response in responses]).mean().item()
        self.hidden = [response.teacher_hidden for response in responses]
        return responses

    def view(self) -> TeacherView:
        if not self.hidden:
            return super().view()
        # what the teacher saw while it decoded, so that it need not read the responses again
        pairs = zip(self.drawn or [], self.hidden, strict=True)
        # rows are replaced where the teacher reads other prompts, their responses are not
        kept = {id(row.response): hidden_th for row, hidden_th in pairs}
        return KeptTeacher(
            self.teacher, self.context.vocabulary, of=lambda row: kept[id(row.response)]
        )

    def parts(self, step: int) -> list[Part]:
        outputs = "kept" if self.hidden else ""
        return [replace(part, outputs=outputs) for part in super().parts(step)]

    def constants(self) -> dict[str, float]:
        return {**super().constants(), "replaced": self.replaced if self.drawn is not None else 0.0}

    def state(self) -> dict[str, Tensor]:
        replaced = torch.tensor([self.replaced], dtype=torch.float64)
        return {**super().state(), "replaced": replaced}

    def restore(self, state: dict[str, Tensor]) -> None:
        super().restore(state)
        self.replaced = state["replaced"].item()


METHOD = Skd
