"""What teachers write down ahead for their students, and where it lies below `results/<experiment>/teachers/`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from takd.lineage import Node, teacher_of, teacher_seed

GENERATIONS = "generations"


class Writing(NamedTuple):
    """The responses of a teacher to the training prompts, or what it says of the tokens of some data.

    Attributes:
        place: `generations` or `outputs/<data>/<kind>`, below the folder of the teacher and its seed.
        parts: of responses, which are joined; None where one stage writes all.
    """

    teacher: str
    seed: int
    place: str
    parts: int | None

    @property
    def folder(self) -> str:
        return f"{self.teacher}/seed{self.seed}/{self.place}"

    @property
    def manifest(self) -> str:
        """Names it among the inputs of a student."""
        return f"{self.folder}/manifest.json"

    @property
    def logs(self) -> list[str]:
        """Of each stage that wrote a part of it."""
        if self.parts is None:
            return [f"{self.folder}/metrics.jsonl"]
        return [
            f"{self.folder}/part{part}of{self.parts}/metrics.jsonl"
            for part in range(1, self.parts + 1)
        ]


def places(settings: Mapping[str, Any]) -> dict[str, str]:
    """What a training of these settings reads that its teacher wrote down, by input: its place."""
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
) -> list[Writing]:
    """What the models' teachers write down, each once; `read` gives the `places` of a lineage."""
    found: dict[Writing, None] = {}
    for name, seed in nodes:
        if teacher := teacher_of(name):
            own = teacher_seed(teacher, seed, seeds)
            for place in read(name).values():
                number = parts if place == GENERATIONS else None
                found[Writing(teacher, own, place, number)] = None
    return list(found)
