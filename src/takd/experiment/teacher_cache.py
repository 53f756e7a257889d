"""Stored outputs of teachers, and their locations below `results/<experiment>/teachers/`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from takd.experiment.lineage import Node

GENERATIONS = "generations"


class CacheEntry(NamedTuple):
    """One stored teacher output: generations for training prompts, or distributions for data.

    Attributes:
        place: `generations` or `outputs/<data>/<kind>`, below the folder of teacher and seed.
        parts: number of parts of generations, which are joined; None if a single stage writes all.
    """

    teacher: str
    seed: int
    place: str
    parts: int | None

    @property
    def folder(self) -> str:
        """Folder of the output, relative to the teachers' folder."""
        return f"{Node(self.teacher, self.seed).folder}/{self.place}"

    @property
    def manifest(self) -> str:
        """Manifest of the output, which is an input of students."""
        return f"{self.folder}/manifest.json"

    @property
    def logs(self) -> list[str]:
        """Logs of all stages that wrote a part of it."""
        if self.parts is None:
            return [f"{self.folder}/metrics.jsonl"]
        parts = range(1, self.parts + 1)
        return [f"{self.folder}/part{part}of{self.parts}/metrics.jsonl" for part in parts]


def places(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the teacher outputs that a training with these settings reads: location by input.

    `generations` are the teacher's responses to the training prompts; `outputs/<data>/<kind>` are its distributions
    for the tokens of a split or of its generations.
    """
    responses = settings.get("responses") == "teacher"
    found = {"train": GENERATIONS} if responses else {}
    if (kind := settings.get("teacher_outputs", "live")) != "live":
        found["outputs"] = f"outputs/{GENERATIONS if responses else 'train'}/{kind}"
    kind = settings.get("lm_teacher_outputs", "live")
    if kind != "live" and settings["lm_weight"] > 0:
        found["corpus_outputs"] = f"outputs/corpus/{kind}"
    return found
