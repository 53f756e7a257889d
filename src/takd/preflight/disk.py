"""What a job writes: what stays, and what is gone when it ends."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from takd.preflight.footprint import trained_parameters, zero
from takd.preflight.shapes import Shape
from takd.preflight.work import Rows

CHECKPOINTS = 3  # two are kept, beside the one that is being written
KEPT = 3  # weights that were best at a step: of now, and those that the two checkpoints name
# bytes of a token in a prepared data set (its number, and the text that is kept beside), and in a file of answers
PREPARED = 10
ANSWERED = 14


@dataclass(frozen=True)
class Written:
    """Bytes on disk."""

    stays: float = 0.0
    meanwhile: float = 0.0

    def __add__(self, other: "Written") -> "Written":
        return Written(self.stays + other.stays, self.meanwhile + other.meanwhile)


def training(
    spec: Mapping[str, Any], student: Shape, teacher: Shape | None, response: float
) -> Written:
    """A training: weights in float32, and its checkpoints.

    A checkpoint holds weights and two moments in float32, of adapters alone where only they train; with MiniLLM the
    round's rollouts with the teacher's hidden states.
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
    return Written(outputs * weights, CHECKPOINTS * checkpoint + KEPT * weights)


def data(rows: Rows) -> Written:
    """A prepared split."""
    return Written(PREPARED * (rows.count or 0) * rows.whole)


def answers(count: float, response: float) -> Written:
    """Responses as text and as tokens; while they come, also in a file to go on from."""
    size = ANSWERED * count * response
    return Written(size, size)


def outputs(teacher: Shape, rows: Rows, kind: str, top_k: int, number: int) -> Written:
    """What a teacher says of the response tokens of a split."""
    a_token = 8 * top_k if kind == "top_k" else number * teacher.width
    return Written((rows.count or 0) * rows.response * a_token)


def base(weights: Mapping[str, Any], parameters: int) -> Written:
    """Starting weights: those of the hub stay in its cache, those of a folder where they are."""
    return Written(4.0 * parameters if "gguf" in weights else 0.0)
