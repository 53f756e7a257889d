"""On-policy regimes: responses from the data, from the student, or from its earlier responses.

`off` uses the data. `mixed` (GKD, arXiv 2306.13649, algorithm 1) uses on-policy responses with
probability λ. `adaptive` (DistiLLM, arXiv 2402.03898, section 3.2 and algorithm 1) uses student
responses with a probability φ that grows whenever the dev loss has risen. It keeps them in a
buffer, and samples new ones in a share of the steps that falls to 0 over the run; other steps use
off-policy responses from the buffer.

The choice holds for the whole global batch of a step, and is a pure function of (seed, step, φ).
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from takd.decoding.sampling import Prompt, Response
from takd.losses.teacher_logits import LiveTeacher, TeacherView
from takd.methods.base import (
    Example,
    LabelledRows,
    LossFunction,
    Sampler,
    Statistics,
    generator,
    packed,
    permutation,
    prompts_of,
    response_tokens,
    unpacked,
)
from takd.methods.token_losses import label_and_divergence_loss


class OnPolicyMethod(LabelledRows):
    """Base class of methods that train on rows of the data or on student responses.

    L = (1/N) Σ_t [ (1 - λ) (-log q(y_t)) + λ D(p, q) ] with λ = `ratio` on rows of the data, and D
    alone on student responses, which are no labels. Sampling is not differentiated.

    Attributes:
        share: φ, the probability that a step uses student responses (`adaptive`).
        dev_loss: the dev loss when φ last grew, or at the start.
        buffer: the latest student responses (`adaptive`).
        step: the step that `drawn` belongs to.
        drawn: the student responses of this step's batch; None if it uses the data.
    """

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.share: float = self.settings["initial_share"]
        self.dev_loss = math.inf
        self.buffer: deque[Example] = deque(maxlen=self.settings["capacity"])
        self.step = -1
        self.drawn: list[Example] | None = None

    @classmethod
    def needs_answers(cls, settings: Mapping[str, Any]) -> bool:
        return not (settings["on_policy"] == "mixed" and settings["on_policy_share"] == 1)

    def divergence(self, student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
        """Compute D of log-probabilities, (n, choices) each, per token, (n,)."""
        raise NotImplementedError

    def student_share(self) -> float:
        """Return the probability that a step uses student responses."""
        shares = {"off": 0.0, "mixed": self.settings["on_policy_share"], "adaptive": self.share}
        return shares[self.settings["on_policy"]]

    def source(self, step: int) -> str:
        """Return the source of a step's responses: "data", "student" or "buffer"."""
        s, share = self.settings, self.student_share()
        chance = torch.rand((), generator=generator(self.context.seed, step, 1)).item()
        if chance >= share:
            return "data"
        # share of new responses: φ at the first step, falling linearly to 0
        falling = share * (1 - step / self.total_steps())
        filled = s["on_policy"] == "adaptive" and len(self.buffer) == s["capacity"]
        return "buffer" if filled and chance >= falling else "student"

    def prepare(self, step: int, sample: Sampler) -> None:
        """Sample the responses of a step, or take them from the buffer."""
        if step == self.step:
            return
        s, seed, source = self.settings, self.context.seed, self.source(step)
        self.step, self.drawn = step, None
        if source == "student":
            asked = self.asked(super().rows(step), step)
            responses = self.draw(prompts_of(asked, seed, step), sample)
            self.drawn = [
                Example(row.id, -1, row.prompt, response.tokens.tolist())
                for row, response in zip(asked, responses, strict=True)
            ]
            if s["on_policy"] == "adaptive":
                self.buffer.extend(self.drawn)
        elif source == "buffer":
            chosen = permutation(len(self.buffer), seed, step, 2)[: s["batch_size"]]
            self.drawn = [self.buffer[i] for i in chosen.tolist()]

    def draw(self, prompts: list[Prompt], sample: Sampler) -> list[Response]:
        """Sample responses to prompts."""
        return sample(prompts, self.settings["temperature"], None)

    def observe(self, step: int, dev_loss: float) -> None:
        """Increase φ if the dev loss rose by `loss_rise` since φ last grew, or since the start.

        As in the authors' code, a falling dev loss changes nothing.
        """
        s = self.settings
        if step == 0:
            self.dev_loss = dev_loss
        elif dev_loss >= self.dev_loss + s["loss_rise"]:
            self.share = min(self.share + s["share_step"], 1.0)
            self.dev_loss = dev_loss

    def rows(self, step: int) -> list[Example]:
        assert step == self.step
        return super().rows(step) if self.drawn is None else self.drawn

    def constants(self) -> dict[str, float]:
        """Return what the log gets of each step beside the statistics of its tokens."""
        return {
            "student_share": self.student_share(),
            "student_responses": float(self.drawn is not None),
        }

    def view(self) -> TeacherView:
        """Return the source of the teacher's distributions at this step's rows."""
        return LiveTeacher(self.teacher, self.context.vocabulary)

    def loss(self, tokens: int) -> LossFunction:
        vocabulary = self.context.vocabulary
        ratio = self.settings["ratio"] if self.drawn is None else 1.0
        plain = label_and_divergence_loss(self.view(), self.divergence, ratio, vocabulary, tokens)
        constants = self.constants()

        def loss(student: PreTrainedModel, rows: Sequence[Example]) -> tuple[Tensor, Statistics]:
            value, statistics = plain(student, rows)
            part = response_tokens(rows) / tokens
            shares = {name: value.new_tensor(part * c) for name, c in constants.items()}
            return value, {**statistics, **shares}

        return loss

    def state(self) -> dict[str, Tensor]:
        """Return φ, its reference dev loss, the buffer, and this step's batch.

        The batch is saved because the weights that sampled it no longer exist after the step.
        """
        return {
            "step": torch.tensor([self.step]),
            "share": torch.tensor([self.share, self.dev_loss], dtype=torch.float64),
            **packed(self.buffer, "buffer."),
            **(packed(self.drawn, "drawn.") if self.drawn is not None else {}),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        self.step = int(state["step"])
        self.share, self.dev_loss = state["share"].tolist()
        self.buffer.extend(unpacked(state, "buffer."))
        self.drawn = unpacked(state, "drawn.") if "drawn.rows" in state else None
