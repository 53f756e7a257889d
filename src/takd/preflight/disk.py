"""Disk space that a job writes: permanent results, and temporary files such as checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from takd.preflight.flops import Rows
from takd.preflight.memory import trained_parameters, zero
from takd.preflight.shapes import Shape

CHECKPOINTS = 3  # two are kept, and another one is being written
KEPT = 3  # best weights so far: the current ones, and those that the two checkpoints refer to
# bytes per token in a prepared data set (its id and its text), and in a file of answers
PREPARED = 10
ANSWERED = 14


@dataclass(frozen=True)
class CachedOutput:
    """Bytes on disk: those that stay, and those that are deleted when the job ends."""

    stays: float = 0.0
    meanwhile: float = 0.0

    def __add__(self, other: "CachedOutput") -> "CachedOutput":
        return CachedOutput(self.stays + other.stays, self.meanwhile + other.meanwhile)


def training(
    spec: Mapping[str, Any], student: Shape, teacher: Shape | None, response: float
) -> CachedOutput:
    """Disk space of a training: weights in float32, and its checkpoints.

    A checkpoint holds weights and two moments in float32, only of the adapters with LoRA; with MiniLLM also the round's
    rollouts with the teacher's hidden states.
    """
    settings = spec["settings"]
    weights = 4.0 * student.parameters
    trained = trained_parameters(student, settings)
    outputs = 2 if spec["method"] == "sft" else 1
    checkpoint = 12.0 * trained
    if zero(settings)[0] is not None:
        checkpoint = 12.0 * trained + 2.0 * student.parameters
    if spec["method"] == "minillm" and teacher is not None:
        checkpoint += settings["rollouts_per_round"] * response * (teacher.width * 4 + 20)
    return CachedOutput(outputs * weights, CHECKPOINTS * checkpoint + KEPT * weights)


def data(rows: Rows) -> CachedOutput:
    """Disk space of a prepared split."""
    return CachedOutput(PREPARED * (rows.count or 0) * rows.whole)


def answers(count: float, response: float) -> CachedOutput:
    """Disk space of responses as text and as tokens; during decoding also in a file to resume from."""
    size = ANSWERED * count * response
    return CachedOutput(size, size)


def outputs(teacher: Shape, rows: Rows, kind: str, top_k: int, number: int) -> CachedOutput:
    """Disk space of a teacher's precomputed outputs for the response tokens of a split."""
    a_token = 8 * top_k if kind == "top_k" else number * teacher.width
    return CachedOutput((rows.count or 0) * rows.response * a_token)


def base(weights: Mapping[str, Any], parameters: int) -> CachedOutput:
    """Disk space of starting weights; Hub weights stay in the cache, and local ones in their folder."""
    return CachedOutput(4.0 * parameters if "gguf" in weights else 0.0)
