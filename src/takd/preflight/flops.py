"""Computation of a stage: tokens and FLOPs from shapes and counts, pass by pass.

`takd.models.flops` has the formulas, by which trainings also count what they spend.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from enum import Enum
from typing import Any

from takd.decoding.amounts import WORTH
from takd.methods.registry import METHODS
from takd.methods.schedule import DIAGNOSED, steps_per_round, total_steps
from takd.models.flops import body_forward, decoding, distribution, head, reading, trained
from takd.models.shapes import Shape
from takd.preflight.memory import Resources
from takd.preflight.tensors import zero

ONE_PROCESS = Resources()


class Lengths(Enum):
    """Source of the mean lengths of a split's texts."""

    PREPARED = "tokenised"
    ESTIMATED = "from the bytes of its rows"
    LONGEST = "the longest allowed, as nothing of it is here"


@dataclass(frozen=True)
class Rows:
    """Rows of a split.

    Attributes:
        count: None while unknown.
        prompt, response: tokens of a row, on average.
        lengths: where these come from.
    """

    count: int | None
    prompt: float
    response: float
    lengths: Lengths = Lengths.PREPARED

    @property
    def whole(self) -> float:
        return self.prompt + self.response

    def first(self, count: int | None) -> "Rows":
        """Return the first `count` rows, or all for None."""
        if count is None or self.count is None:
            return replace(self, count=count or self.count)
        return replace(self, count=min(count, self.count))


@dataclass(frozen=True)
class Work:
    """Computation of a stage, over all processes.

    Attributes:
        tokens: tokens read in training and tokens drawn, as counted in metrics.jsonl.
        passes: FLOPs of passes over whole texts.
        decoding: FLOPs of passes of one token per row.
        block_steps: number of passes through one block, of one token per row, for rows that are decoded together.
        read: bytes of weights and caches that decoding reads.
        steps: optimizer steps.
        drawn: tokens of drawn responses, those of dev evaluations included.
    """

    tokens: float = 0.0
    passes: float = 0.0
    decoding: float = 0.0
    block_steps: float = 0.0
    read: float = 0.0
    steps: float = 0.0
    drawn: float = 0.0

    @property
    def operations(self) -> float:
        return self.passes + self.decoding

    def __add__(self, other: "Work") -> "Work":
        return Work(*(one + more for one, more in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(times * value for value in astuple(self)))


@dataclass(frozen=True)
class Conditions:
    """What the computation of a stage depends on besides models and rows.

    Attributes:
        number: bytes of a weight while decoding.
        together: responses that a process decodes at once.
        drawn: mean tokens of a drawn response; None assumes the length of the references.
        block_length: tokens of a block of the plain-text corpus, if there is one.
    """

    resources: Resources = ONE_PROCESS
    number: int = 2
    together: int = WORTH["cuda"]
    drawn: float | None = None
    block_length: int = 0


def decoded(
    model: Shape,
    rows: float,
    prompt: float,
    response: float,
    given: Conditions,
    prompts: float | None = None,
) -> Work:
    """Computation of drawing responses from one model.

    Args:
        prompts: number of prompts to read, if fewer than rows: equal prompts are read once.
    """
    if rows == 0:
        return Work()
    steps, processes = max(response - 1, 0), given.resources.world
    context = prompt + response / 2
    # number of batches that each process decodes in sequence
    waves = max(1.0, rows / processes / given.together)
    at_once = min(given.together, rows / processes)
    weights = given.number * (model.body + model.embedding)
    keys = 2 * given.number * model.layers * model.keys * context * at_once
    return Work(
        passes=body_forward(model, prompt) * (rows if prompts is None else prompts),
        decoding=rows * decoding(model, prompt, response),
        block_steps=processes * waves * steps * model.layers,
        read=processes * waves * steps * (weights + keys),
        drawn=rows * response,
    )


def training(
    spec: Mapping[str, Any],
    student: Shape,
    teacher: Shape | None,
    train: Rows,
    dev: Rows,
    given: Conditions,
) -> Work | None:
    """Computation of a training stage; None if it depends on an unknown number of rows.

    Args:
        spec: as returned by `takd.experiment.specs.train`.
        teacher: None if it is not loaded.
        train, dev: whole splits.
    """
    s = spec["settings"]
    train, dev = train.first(s["rows"]), dev.first(s["dev_rows"])
    steps = total_steps(s, train.count)
    if steps is None or dev.count is None:
        return None
    # a dev evaluation: a response per row, whose tokens the log does not count, the loss, and what
    # student and teacher make of the first responses
    asked = dev.prompt, dev.response if given.drawn is None else given.drawn
    answered = decoded(student, dev.count, *asked, given)
    read = Work(passes=dev.count * reading(student, dev.prompt, dev.response))
    if teacher is not None:
        both = reading(student, *asked) + reading(teacher, *asked)
        read += Work(passes=min(dev.count, DIAGNOSED) * both)
    every = s["evaluate_every"]
    work = (answered + read) * (1 + steps // every + (1 if steps % every else 0))
    return work + learning(spec, student, teacher, train, steps, given, recomputed=True)


def learning(
    spec: Mapping[str, Any],
    student: Shape,
    teacher: Shape | None,
    train: Rows,
    steps: int,
    given: Conditions,
    recomputed: bool = False,
) -> Work:
    """Computation of the steps of a training stage, without dev evaluations; see `training`.

    Args:
        recomputed: whether what is computed twice to save memory counts, which trainings leave out of what they spend.
    """
    s, facts = spec["settings"], METHODS[spec["method"]]
    size, lora = s["batch_size"], s.get("lora")

    def drawing(rows: Rows, count: float, *models: Shape) -> Work:
        """Responses to `count` prompts, token by token from all of the models."""
        work = Work(tokens=count * rows.response)
        for model in models:
            work += decoded(model, count, rows.prompt, rows.response, given)
        return work

    def step(rows: Rows, count: int, outputs: str = "live") -> Work:
        """One optimizer step on `count` rows.

        With outputs "hidden" or "kept", only the teacher's output embedding is applied, with others than "live" nothing
        of it.
        """
        operations = trained(
            *(student, rows.whole, rows.response, lora),
            checkpointing=recomputed and given.resources.gradient_checkpointing,
            twice=recomputed and zero(s)[0] == 3,
        )
        if teacher is not None:
            operations += distribution(teacher, rows.prompt, rows.response, outputs)
        return Work(tokens=count * rows.whole, passes=count * operations)

    work = Work(steps=steps)
    own = train if given.drawn is None else replace(train, response=given.drawn)
    mixing = [teacher] if teacher is not None and facts.teacher_draws(s) else []
    if not facts.rollouts:
        new, old = drawing_steps(s, steps) if facts.on_policy else (0.0, 0.0)
        outputs = s.get("teacher_outputs", "live")
        work += drawing(own, size, student, *mixing) * new
        work += step(own, size, "kept" if mixing else outputs) * new
        work += step(own, size, outputs) * old
        return work + step(train, size, outputs) * (steps - new - old)
    count, rounds = s["rollouts_per_round"], math.ceil(steps / steps_per_round(s))
    drawn_once = drawing(own, count, student, *mixing)
    if teacher is not None and not mixing:  # it reads the responses once
        drawn_once += Work(passes=count * reading(teacher, own.prompt, own.response))
    work += drawn_once * rounds
    work += step(own, size, "kept" if s["single_step_weight"] else "none") * steps
    if s.get("lm_weight") and given.block_length:
        blocks = Rows(None, 1, given.block_length - 1)
        work += step(blocks, s["lm_batch_size"] or size, s["lm_teacher_outputs"]) * steps
    return work


def drawing_steps(settings: Mapping[str, Any], steps: int) -> tuple[float, float]:
    """Expected steps on responses that the student draws anew, and on its earlier ones (`takd.methods.on_policy`).

    With `adaptive`, φ is assumed to keep its initial value, since the changes of the dev loss are unknown.
    """
    regime, share = settings["on_policy"], settings["initial_share"]
    if regime == "mixed":
        return settings["on_policy_share"] * steps, 0.0
    if regime == "off" or not share:
        return 0.0, 0.0
    filling = min(steps, settings["capacity"] / settings["batch_size"] / share)
    new = share * filling + share * steps * (1 - filling / steps) ** 2 / 2
    return new, share * steps - new


def evaluation(model: Shape, rows: Rows, seeds: int, given: Conditions) -> Work | None:
    """Computation of answering a set with every decoding seed."""
    if rows.count is None:
        return None
    count = rows.count * seeds
    work = decoded(model, count, rows.prompt, rows.response, given, prompts=rows.count)
    return work + Work(tokens=count * rows.response)


def likelihoods(model: Shape, teachers: Sequence[Shape], rows: Rows, seeds: int) -> Work | None:
    """Computation of the likelihood stage: the references, and per teacher these and the answers of both models.

    Assumes one reference per prompt, and answers of the same length.
    """
    if rows.count is None:
        return None
    texts = 1 + 2 * seeds
    lengths = rows.prompt, rows.response
    own = reading(model, *lengths)
    operations = own + sum(texts * (own + reading(teacher, *lengths)) for teacher in teachers)
    tokens = (1 + texts * len(teachers)) * rows.response
    return Work(tokens=rows.count * tokens, passes=rows.count * operations)


def outputs(teacher: Shape, rows: Rows, kind: str) -> Work | None:
    """Computation of a teacher's outputs on a split."""
    if rows.count is None:
        return None
    operations = body_forward(teacher, rows.whole)
    operations += head(teacher, rows.response) if kind == "top_k" else 0
    return Work(tokens=rows.count * rows.whole, passes=rows.count * operations)
