"""Read what a run left behind: every model's manifest and training log, every evaluation's scores and texts.

The settings of the report name all models and sets, so the files are found by path and none is searched for.
Generations can be large (ten thousand prompts a set), so they are streamed: of each file only the rows that
the samples page shows and one number a prompt are kept.
"""

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from takd.errors import InputError
from takd.lineage import Node, split

Row = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """One trained model: its manifest and its training log."""

    node: Node
    manifest: dict[str, Any]
    train: list[Row]
    dev: list[Row]
    end: Row

    @property
    def parameters(self) -> int:
        return int(self.manifest["parameters"])

    @property
    def minutes(self) -> float:
        """Wall time of the training over all restarts, in minutes."""
        return float(self.end.get("seconds", 0.0)) / 60

    @property
    def kept_step(self) -> int | None:
        """Step whose weights were exported, judged by ROUGE-L on dev."""
        best = (self.manifest.get("best") or {}).get("rougeL")
        return None if best is None else int(best["step"])


@dataclass(frozen=True)
class Evaluation:
    """One model on one evaluation set. Scores are x 100."""

    node: Node
    set: str
    scores: dict[str, Any]
    end: Row
    by_prompt: dict[Any, float]
    """ROUGE-L of each prompt id, the mean over decoding seeds."""

    @property
    def minutes(self) -> float:
        return float(self.end.get("seconds", 0.0)) / 60

    def mean(self, measure: str) -> float:
        return float(self.scores["scores"][measure]["mean"])


@dataclass(frozen=True)
class Results:
    """All that the report shows."""

    spec: dict[str, Any]
    models: dict[Node, Model]
    evaluations: dict[tuple[Node, str], Evaluation]
    samples: dict[str, dict[Any, dict[Node, Row]]] = field(default_factory=dict)
    """set -> prompt id -> model -> row of generations, for the prompts shown side by side."""

    @property
    def nodes(self) -> list[Node]:
        return list(self.models)

    @functools.cached_property
    def lineages(self) -> list[str]:
        """Each lineage once: short chains before long ones, large models before small ones."""
        sizes = {node.lineage: model.parameters for node, model in self.models.items()}
        return sorted(sizes, key=lambda lineage: (len(split(lineage)), -sizes[lineage]))

    def seeds(self, lineage: str) -> list[int]:
        return [node.seed for node in self.models if node.lineage == lineage]

    def of(self, lineage: str) -> list[Model]:
        """The models of one lineage, one a training seed."""
        return [model for node, model in self.models.items() if node.lineage == lineage]

    def by_seed(self, lineage: str, set_name: str, measure: str) -> dict[int, float]:
        """Score of each training seed."""
        return {
            seed: self.evaluations[Node(lineage, seed), set_name].mean(measure)
            for seed in self.seeds(lineage)
        }


def read(spec: dict[str, Any], models: Path, evaluations: Path) -> Results:
    """Read the results of all models that `spec` names.

    `models` and `evaluations` are the folders above `<lineage>/seed<k>/`. Raises InputError if a file is missing
    or belongs to another model.
    """
    nodes = [Node(lineage, seed) for lineage, seed in spec["nodes"]]
    results = Results(spec, {node: _model(node, models) for node in nodes}, {})
    for name in spec["sets"]:
        shown: list[Any] | None = None
        results.samples[name] = {}
        for node in nodes:
            folder = evaluations / node.lineage / f"seed{node.seed}" / name
            scores = _json(folder / "scores.json")
            found = (scores["lineage"], scores["seed"], scores["set"])
            if found != (*node, name):
                raise InputError(
                    f"{folder / 'scores.json'}: holds the scores of {found[0]} seed {found[1]} on {found[2]},"
                    f" expected those of {node.lineage} seed {node.seed} on {name}"
                )
            file = folder / "generations.jsonl"
            if shown is None:
                shown = _spread_out([row["id"] for row in _lines(file)], spec["samples"])
                results.samples[name] = {key: {} for key in shown}
            by_prompt = {}
            for row in _lines(file):
                values = [output["rougeL"] for output in row["outputs"]]
                by_prompt[row["id"]] = math.fsum(values) / len(values) if values else 0.0
                if row["id"] in results.samples[name]:
                    results.samples[name][row["id"]][node] = row
            end = _end(list(_lines(folder / "metrics.jsonl")))
            results.evaluations[node, name] = Evaluation(node, name, scores, end, by_prompt)
    return results


def _model(node: Node, models: Path) -> Model:
    folder = models / node.lineage / f"seed{node.seed}"
    manifest = _json(folder / "manifest.json")
    rows = list(_lines(folder / "metrics.jsonl"))
    # a log goes on over restarts, so a step may stand in it twice: the later line holds
    train = {row["step"]: row for row in rows if row["kind"] == "train"}
    dev = {row["step"]: row for row in rows if row["kind"] == "dev"}
    return Model(
        node,
        manifest,
        [train[step] for step in sorted(train)],
        [dev[step] for step in sorted(dev)],
        _end(rows),
    )


def _end(rows: list[Row]) -> Row:
    """The closing line; the last one if there is none."""
    closing = [row for row in rows if row["kind"] == "end"]
    return (closing or rows or [{}])[-1]


def _spread_out(ids: list[Any], count: int) -> list[Any]:
    """`count` ids spaced evenly over the list: neighbours in a data set are often of one kind."""
    count = min(count, len(ids))
    return [ids[index * len(ids) // count] for index in range(count)]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: not found; run the workflow to its end before the report"
        ) from None


def _lines(path: Path) -> Iterator[Row]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except json.JSONDecodeError as error:
                        raise InputError(f"{path}, line {number}: not JSON ({error})") from None
    except FileNotFoundError:
        raise InputError(
            f"{path}: not found; run the workflow to its end before the report"
        ) from None
