"""Disk space that a job writes, for good or for checkpoints, and the free space of a disk."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from takd.experiment.lineage import SUPERVISED
from takd.methods.registry import METHODS
from takd.models.shapes import Shape
from takd.preflight.flops import Rows
from takd.preflight.tensors import lora_weights, zero

CHECKPOINTS = 3  # two are kept, and another one is being written
KEPT = 3  # best weights so far: the current ones, and those that the two checkpoints refer to
# bytes per token in a prepared data set (its id and its text), and in a file of responses
PREPARED = 10
ANSWERED = 14


class DiskSpace(NamedTuple):
    """Bytes on disk: those that stay, and those that are deleted when the job ends."""

    stays: float = 0.0
    meanwhile: float = 0.0


def training(
    spec: Mapping[str, Any], student: Shape, teacher: Shape | None, response: float
) -> DiskSpace:
    """Disk space of a training: weights in float32, and its checkpoints.

    A checkpoint holds weights and two moments in float32, only of the adapters with LoRA; for methods with rollouts
    also those of the round, with the teacher's hidden states.
    """
    settings = spec["settings"]
    weights = 4.0 * student.parameters
    checkpoint = 12.0 * lora_weights(student, settings)[0]
    if zero(settings)[0] is not None:
        checkpoint += 2.0 * student.parameters
    if METHODS[spec["method"]].rollouts and teacher is not None:
        checkpoint += settings["rollouts_per_round"] * response * (teacher.width * 4 + 20)
    outputs = 2 if spec["method"] == SUPERVISED else 1  # `model` and `init`
    return DiskSpace(outputs * weights, CHECKPOINTS * checkpoint + KEPT * weights)


def data(rows: Rows) -> DiskSpace:
    """Disk space of a prepared split."""
    return DiskSpace(PREPARED * (rows.count or 0) * rows.whole)


def responses(rows: Rows, seeds: int = 1) -> DiskSpace:
    """Disk space of responses as text and as tokens; during decoding also in a file to resume from."""
    size = ANSWERED * (rows.count or 0) * seeds * rows.response
    return DiskSpace(size, size)


def outputs(teacher: Shape, rows: Rows, kind: str, top_k: int, number: int) -> DiskSpace:
    """Disk space of a teacher's precomputed outputs for the response tokens of a split."""
    a_token = 8 * top_k if kind == "top_k" else number * teacher.width
    return DiskSpace((rows.count or 0) * rows.response * a_token)


def existing(place: Path) -> Path:
    """Return a path, or the nearest folder above it that exists."""
    return next(each for each in (place, *place.absolute().parents) if each.exists())


def free_bytes(place: Path) -> float:
    """Free bytes on the disk of a path that need not exist yet."""
    return float(shutil.disk_usage(existing(place)).free)
