"""Read the experiments of a comparison: their results, and the identity of their data and starting weights."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from takd.analysis.results import Results, read
from takd.experiment import comparison
from takd.experiment.lineage import Node, split
from takd.runtime.records import DamagedError, read_record, remade

Manifest = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Compared:
    """One experiment of a comparison."""

    name: str
    results: Results
    settings: dict[str, Any]
    made: dict[str, str]
    """`lineage/seed<k>` -> digest of the settings that its training would have by the experiment's file."""
    data: dict[str, Manifest]
    """Manifest of each split, and of the tokenizer."""
    base: dict[str, Manifest]
    """Manifest of each model's starting weights."""

    @property
    def title(self) -> str:
        """Title of the experiment, empty where it equals the name."""
        title = str(self.results.spec["title"])
        return "" if title == self.name else title

    @functools.cached_property
    def made_otherwise(self) -> list[Node]:
        """Models that were trained with other settings than those now in the experiment's file."""
        return [
            node
            for node, model in self.results.models.items()
            if comparison.made(model.manifest["spec"])
            != self.made[f"{node.lineage}/seed{node.seed}"]
        ]

    def has(self, lineage: str, set_name: str) -> bool:
        """Return whether the experiment has scores of a lineage on an evaluation set."""
        return lineage in self.results.lineages and set_name in self.results.spec["sets"]


def read_all(spec: dict[str, Any], folders: Sequence[Path]) -> list[Compared]:
    """Read all experiments; `folders` holds the results folder of each. Raises InputError for a missing file."""
    return [_read(each, folder) for each, folder in zip(spec["experiments"], folders, strict=True)]


def _read(spec: dict[str, Any], folder: Path) -> Compared:
    folders = (folder / name for name in ("models", "evaluations", "teachers"))
    results = read(spec["report"], *folders)
    corpus = ["corpus"] if spec["settings"]["data"]["corpus"] else []
    splits = ["train", "dev", *corpus, *results.spec["sets"], "tokenizer"]
    models = dict.fromkeys(split(lineage)[-1].model for lineage in results.lineages)
    return Compared(
        name=spec["name"],
        results=results,
        settings=spec["settings"],
        made=spec["made"],
        data={name: _manifest(folder / "data" / name) for name in splits},
        base={model: _manifest(folder / "base" / model) for model in models},
    )


def _manifest(folder: Path) -> Manifest:
    path = folder / "manifest.json"
    try:
        return read_record(path)
    except DamagedError as error:
        raise remade(str(error), path) from None
