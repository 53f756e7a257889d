"""Stored outputs of teachers, and their locations below `results/<experiment>/teachers/`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from takd.experiment.lineage import Node, teacher_of, teacher_seed

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
        return f"{self.teacher}/seed{self.seed}/{self.place}"

    @property
    def manifest(self) -> str:
        """Manifest of the output, which is an input of students."""
        return f"{self.folder}/manifest.json"

    @property
    def logs(self) -> list[str]:
        """Logs of all stages that wrote a part of it."""
        if self.parts is None:
            return [f"{self.folder}/metrics.jsonl"]
        return [
            f"{self.folder}/part{part}of{self.parts}/metrics.jsonl"
            for part in range(1, self.parts + 1)
        ]


def places(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the teacher outputs that a training with these settings reads: location by input."""
    answers = settings.get("responses") == "teacher"
    found = {"train": GENERATIONS} if answers else {}
    if (kind := settings.get("teacher_outputs", "live")) != "live":
        found["outputs"] = f"outputs/{GENERATIONS if answers else 'train'}/{kind}"
    kind = settings.get("lm_teacher_outputs", "live")
    if kind != "live" and settings["lm_weight"] > 0:
        found["corpus_outputs"] = f"outputs/corpus/{kind}"
    return found


def of_nodes(
    nodes: Iterable[Node], seeds: Sequence[int], parts: int, read: Callable[[str], dict[str, str]]
) -> list[CacheEntry]:
    """Return all teacher outputs that the models need, without duplicates.

    Args:
        nodes: models to train.
        seeds: training seeds.
        parts: number of parts of generations.
        read: returns the `places` of a lineage.
    """
    found: dict[CacheEntry, None] = {}
    for name, seed in nodes:
        if teacher := teacher_of(name):
            own = teacher_seed(teacher, seed, seeds)
            for place in read(name).values():
                number = parts if place == GENERATIONS else None
                found[CacheEntry(teacher, own, place, number)] = None
    return list(found)
