"""Computation of a stage: tokens and FLOPs from shapes and counts, pass by pass.

Per token, a forward pass through the blocks costs two FLOPs per weight, and attention 4 · width · context per block;
the backward pass costs twice that, and for attention 2.5 times (its scores are recomputed). The output embedding is
applied to response tokens only. Padding is ignored: batches are sorted by length. A test compares the formulas with
torch's own counter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from takd.preflight.memory import DRAWN_AT_ONCE, Resources, zero
from takd.preflight.shapes import Shape

ATTENTION_BACKWARD = 2.5


@dataclass(frozen=True)
class Rows:
    """Rows of a split.

    Attributes:
        count: None while unknown.
        prompt, response: tokens of a row: the mean, or the maximum where `bound`.
        bound: whether these are maxima, since the data have not been prepared.
    """

    count: int | None
    prompt: float
    response: float
    bound: bool = False

    @property
    def whole(self) -> float:
        return self.prompt + self.response

    def first(self, count: int | None) -> "Rows":
        """Return the first `count` rows, or all for None."""
        if count is None:
            return self
        fewer = count if self.count is None else min(count, self.count)
        return Rows(fewer, self.prompt, self.response, self.bound)


@dataclass(frozen=True)
class Work:
    """Computation of a stage, over all processes.

    Attributes:
        tokens: tokens read in training and tokens drawn, as counted in metrics.jsonl.
        passes: FLOPs of passes over whole texts.
        decoding: FLOPs of passes of one token per row.
        block_steps: number of passes through one block, of one token per row, for rows that are decoded together.
        read: bytes of weights and caches that decoding reads.
    """

    tokens: float = 0.0
    passes: float = 0.0
    decoding: float = 0.0
    block_steps: float = 0.0
    read: float = 0.0

    @property
    def operations(self) -> float:
        return self.passes + self.decoding

    def __add__(self, other: "Work") -> "Work":
        return Work(*(one + more for one, more in zip(self.values, other.values, strict=True)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(times * value for value in self.values))

    @property
    def values(self) -> tuple[float, ...]:
        return self.tokens, self.passes, self.decoding, self.block_steps, self.read


def body_forward(shape: Shape, length: float) -> float:
    """FLOPs of a forward pass of one row, `length` tokens long, through the blocks."""
    attention = 4 * shape.layers * length**2 * shape.queries
    return 2 * shape.body * length + attention


def head(shape: Shape, tokens: float) -> float:
    """FLOPs of the output embedding on a number of tokens."""
    return 2 * shape.embedding * tokens


def trained(
    shape: Shape,
    length: float,
    predicted: float,
    lora: Any = None,
    checkpointing: bool = False,
    twice: bool = False,
) -> float:
    """FLOPs of one row forward and backward.

    Args:
        predicted: number of tokens whose distribution the loss needs.
        lora: settings of adapters, or None; frozen matrices have no gradient.
        twice: whether the output embedding is recomputed in the backward pass (ZeRO-3).
    """
    attention = 4 * shape.layers * length**2 * shape.queries
    matrices = 2 * shape.body * length
    total = (1 + 2) * matrices + (1 + ATTENTION_BACKWARD) * attention
    logits = (3 + twice) * head(shape, predicted)
    if lora:
        adapters, adapted = shape.lora(lora["rank"], lora["targets"])
        total += 3 * 2 * adapters * length - 2 * adapted * length
        logits -= head(shape, predicted)
    if checkpointing:
        total += matrices + attention
    return total + logits


def decoded(
    model: Shape,
    rows: float,
    prompt: float,
    response: float,
    together: int,
    processes: int = 1,
    number: int = 2,
    prompts: float | None = None,
) -> Work:
    """Computation of drawing responses from one model.

    Args:
        together: rows that one process decodes at once.
        number: bytes of a weight.
        prompts: number of prompts to read, if fewer than rows: equal prompts are read once.
    """
    if rows == 0:
        return Work()
    steps = max(response - 1, 0)
    context = prompt + response / 2
    prefill = body_forward(model, prompt) * (rows if prompts is None else prompts)
    a_token = 2 * model.body + 4 * model.layers * context * model.queries
    decoding = rows * (steps * a_token + head(model, response))
    # number of batches that each process decodes in sequence
    waves = max(1.0, rows / processes / together)
    at_once = min(together, rows / processes)
    weights = number * (model.body + model.embedding)
    keys = 2 * number * model.layers * model.keys * context * at_once
    return Work(
        passes=prefill,
        decoding=decoding,
        block_steps=processes * waves * steps * model.layers,
        read=processes * waves * steps * (weights + keys),
    )


def total_steps(settings: Mapping[str, Any], rows: Rows, method: str) -> int | None:
    """Optimizer steps of a training, as `Method.total_steps`; None if it depends on an unknown number of rows."""
    bounds = [settings["steps"]] if settings["steps"] else []
    if settings["epochs"] and rows.count is not None:
        if method == "minillm":
            a_round = settings["rollouts_per_round"] // settings["batch_size"]
            a_pass = (
                rows.count / settings["rollouts_per_round"] * a_round * settings["inner_epochs"]
            )
        else:
            a_pass = rows.count / settings["batch_size"]
        bounds.append(math.ceil(settings["epochs"] * a_pass))
    return max(1, min(bounds)) if bounds else None


def training(
    spec: Mapping[str, Any],
    student: Shape,
    teacher: Shape | None,
    train: Rows,
    dev: Rows,
    resources: Resources,
    block_length: int = 0,
    number: int = 2,
    drawn: float | None = None,
) -> Work | None:
    """Computation of a training stage; None if it depends on an unknown number of rows.

    Args:
        spec: as returned by `takd.experiment.specs.train`.
        train, dev: whole splits.
        block_length: tokens of a block of the plain-text corpus, if there is one.
        number: bytes of a weight while decoding.
        drawn: mean tokens of a drawn response; None assumes the length of the references.
    """
    settings, method = spec["settings"], spec["method"]
    train, dev = train.first(settings["rows"]), dev.first(settings["dev_rows"])
    steps = total_steps(settings, train, method)
    if steps is None or dev.count is None:
        return None
    how = _How(student, teacher, settings, resources, number)
    own = train if drawn is None else replace(train, response=drawn)
    every, size = settings["evaluate_every"], settings["batch_size"]
    evaluations = 1 + steps // every + (1 if steps % every else 0)
    work = how.evaluation(dev, dev.response if drawn is None else drawn) * evaluations
    if method == "minillm":
        per_round = settings["rollouts_per_round"] // size * settings["inner_epochs"]
        work += how.rollout(own, settings["rollouts_per_round"]) * math.ceil(steps / per_round)
        work += how.step(own, size, "kept" if settings["single_step_weight"] else "none") * steps
        if settings.get("lm_weight") and block_length:
            blocks = Rows(None, 1, block_length - 1)
            text = how.step(
                blocks, settings["lm_batch_size"] or size, settings["lm_teacher_outputs"]
            )
            work += text * steps
        return work
    view = "none" if method in ("sft", "seqkd") else settings.get("teacher_outputs", "live")
    new, old = drawing_steps(settings, steps)
    work += how.drawn(own, size, teacher=False) * new
    return (
        work
        + how.step(own, size, view) * (new + old)
        + how.step(train, size, view) * (steps - new - old)
    )


def drawing_steps(settings: Mapping[str, Any], steps: int) -> tuple[float, float]:
    """Expected steps on responses that the student draws anew, and on its earlier ones (`takd.methods.on_policy`).

    With `adaptive`, φ is assumed to keep its initial value, since the changes of the dev loss are unknown.
    """
    sampling = settings.get("sampling", "fixed")
    if sampling == "mixed":
        return settings["on_policy_share"] * steps, 0.0
    share = settings["initial_share"] if sampling == "adaptive" else 0.0
    if not share:
        return 0.0, 0.0
    filling = min(steps, settings["capacity"] / settings["batch_size"] / share)
    new = share * filling + share * steps * (1 - filling / steps) ** 2 / 2
    return new, share * steps - new


@dataclass(frozen=True)
class _How:
    """Computation of the parts of a training, each over all processes."""

    student: Shape
    teacher: Shape | None
    settings: Mapping[str, Any]
    resources: Resources
    number: int

    def drawn(self, rows: Rows, count: float, teacher: bool) -> Work:
        """Responses to `count` prompts, by the student, with or without its teacher."""
        together = self.resources.micro_batch * DRAWN_AT_ONCE
        models = [self.student, *([self.teacher] if teacher and self.teacher else [])]
        work = Work(tokens=count * rows.response)
        for model in models:
            work += decoded(
                model,
                count,
                rows.prompt,
                rows.response,
                together,
                self.resources.world,
                self.number,
            )
        return work

    def rollout(self, rows: Rows, count: int) -> Work:
        """Responses of one round; a teacher without teacher-mixed sampling reads them once."""
        mixing = self.settings["teacher_mix"] is not None and self.settings["teacher_mix"] > 0
        work = self.drawn(rows, count, teacher=mixing)
        if not mixing and self.teacher is not None:
            read = body_forward(self.teacher, rows.whole) + head(self.teacher, rows.response)
            work += Work(passes=count * read)
        return work

    def evaluation(self, dev: Rows, drawn: float) -> Work:
        """One dev evaluation: a response per row, whose tokens the log does not count, and the loss."""
        assert dev.count is not None
        work = self.drawn(replace(dev, response=drawn), dev.count, teacher=False)
        read = body_forward(self.student, dev.whole) + head(self.student, dev.response)
        return Work(0.0, work.passes + dev.count * read, *work.values[2:])

    def step(self, rows: Rows, count: int, teacher_outputs: str) -> Work:
        """One optimizer step on `count` rows.

        Args:
            teacher_outputs: "live" (the teacher reads the rows), "hidden" or "kept" (only its output embedding is
                applied), "top_k" or "none" (no computation by the teacher).
        """
        operations = trained(
            self.student,
            rows.whole,
            rows.response,
            self.settings.get("lora"),
            self.resources.gradient_checkpointing,
            twice=zero(self.settings)[0] == 3,
        )
        if self.teacher is not None and teacher_outputs in ("live", "hidden", "kept"):
            operations += head(self.teacher, rows.response)
            if teacher_outputs == "live":
                operations += body_forward(self.teacher, rows.whole)
        return Work(tokens=count * rows.whole, passes=count * operations)


def evaluation(
    model: Shape, rows: Rows, seeds: int, resources: Resources, number: int = 2
) -> Work | None:
    """Computation of answering a set with every decoding seed."""
    if rows.count is None:
        return None
    count = rows.count * seeds
    work = decoded(
        model,
        count,
        rows.prompt,
        rows.response,
        resources.micro_batch,
        resources.world,
        number,
        rows.count,
    )
    return work + Work(tokens=count * rows.response)


def likelihoods(model: Shape, teachers: Sequence[Shape], rows: Rows, seeds: int) -> Work | None:
    """Computation of the likelihood stage: the references, and per teacher these and the answers of both models.

    Assumes one reference per prompt, and answers of the same length.
    """
    if rows.count is None:
        return None

    def read(shape: Shape) -> float:
        return body_forward(shape, rows.whole) + head(shape, rows.response)

    texts = 1 + 2 * seeds
    operations = read(model) + sum(texts * (read(model) + read(teacher)) for teacher in teachers)
    tokens = (1 + texts * len(teachers)) * rows.response
    return Work(tokens=rows.count * tokens, passes=rows.count * operations)


def outputs(teacher: Shape, rows: Rows, kind: str) -> Work | None:
    """Computation of a teacher's outputs on a split."""
    if rows.count is None:
        return None
    operations = body_forward(teacher, rows.whole)
    operations += head(teacher, rows.response) if kind == "top_k" else 0
    return Work(tokens=rows.count * rows.whole, passes=rows.count * operations)
