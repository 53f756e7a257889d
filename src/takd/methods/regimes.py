"""Where the responses of a step come from: from the data, from the student, or from what the student said before.

`fixed` takes the rows of the data set. `mixed` (GKD, arXiv 2306.13649, algorithm 1) lets the student of now answer the
prompts of a step with probability λ. `adaptive` (DistiLLM, arXiv 2402.03898, section 3.2 and algorithm 1) lets the
probability φ of taking the student's responses grow each time that the dev loss has risen, keeps them in a buffer, and
draws new ones for a share of the steps that falls over the run; the other steps take old ones out of the buffer.

Which it is holds for the whole global batch of a step and is a pure function of (seed, step, φ).
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

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
from takd.methods.losses import Divergence, label_and_divergence_loss
from takd.methods.teachers import LiveTeacher


class StudentRows(LabelledRows):
    """A method whose batches are rows of the data set or responses of the student to their prompts.

    L = (1/N) Σ_t [ (1 - λ) (-log q(y_t)) + λ D(p, q) ] with λ = `ratio` on rows of the data set, and D alone on the
    student's responses, which are no labels; the gradient does not flow through the drawing.

    Attributes:
        share: φ, the probability that a step takes responses of the student (`adaptive`).
        dev_loss: the dev loss at which φ grew last, or that of the start.
        buffer: the latest responses of the student (`adaptive`).
        drawn: the student's responses that the batch of step `step` is made of; None where it is of the data set.
    """

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.share: float = self.settings["initial_share"]
        self.dev_loss = math.inf
        self.buffer: deque[Example] = deque(maxlen=self.settings["capacity"])
        self.step = -1
        self.drawn: list[Example] | None = None

    @property
    def divergence(self) -> Divergence:
        """D."""
        raise NotImplementedError

    def student_share(self) -> float:
        """Probability with which a step takes responses of the student."""
        shares = {"fixed": 0.0, "mixed": self.settings["on_policy_share"], "adaptive": self.share}
        return shares[self.settings["sampling"]]

    def source(self, step: int) -> str:
        """Where the responses of a step come from: "data", "student" or "buffer"."""
        s, share = self.settings, self.student_share()
        chance = torch.rand((), generator=generator(self.context.seed, step, 1)).item()
        if chance >= share:
            return "data"
        falling = share * (1 - step / self.total_steps())
        filled = s["sampling"] == "adaptive" and len(self.buffer) == s["capacity"]
        return "buffer" if filled and chance >= falling else "student"

    def prepare(self, step: int, sample: Sampler) -> None:
        """Draw the responses of a step, or take them out of the buffer."""
        if step == self.step:
            return
        s, seed, source = self.settings, self.context.seed, self.source(step)
        self.step, self.drawn = step, None
        if source == "student":
            asked = super().rows(step)
            responses = sample(prompts_of(asked, seed, step), s["temperature"], None)
            self.drawn = [
                Example(row.id, -1, row.prompt, response.tokens.tolist())
                for row, response in zip(asked, responses, strict=True)
            ]
            if s["sampling"] == "adaptive":
                self.buffer.extend(self.drawn)
        elif source == "buffer":
            chosen = permutation(len(self.buffer), seed, step, 2)[: s["batch_size"]]
            self.drawn = [self.buffer[i] for i in chosen.tolist()]

    def observe(self, step: int, dev_loss: float) -> None:
        """φ grows where the dev loss has risen by `loss_rise` since φ grew last, or since the start.

        As in the authors' code, a dev loss that falls moves nothing.
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

    def loss(self, tokens: int) -> LossFunction:
        vocabulary = self.context.vocabulary
        ratio = self.settings["ratio"] if self.drawn is None else 1.0
        teacher = LiveTeacher(self.teacher, vocabulary)
        plain = label_and_divergence_loss(teacher, self.divergence, ratio, vocabulary, tokens)
        constants = {
            "student_share": self.student_share(),
            "student_responses": float(self.drawn is not None),
        }

        def loss(student: PreTrainedModel, rows: Sequence[Example]) -> tuple[Tensor, Statistics]:
            value, statistics = plain(student, rows)
            part = response_tokens(rows) / tokens
            shares = {name: value.new_tensor(part * c) for name, c in constants.items()}
            return value, {**statistics, **shares}

        return loss

    def state(self) -> dict[str, Tensor]:
        """φ and what moves it, the buffer, and the batch of this step, whose student is gone after it."""
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
