"""Read the results of an experiment: manifests, logs, scores and texts of its models and precomputed outputs.

The settings of the report name all models and sets, so files are found by path, without a search. Generations can be
large (ten thousand prompts a set), so they are streamed: only the rows shown on the samples page and the scores of each
answer are kept.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from takd.analysis import result_files
from takd.analysis.measures import TESTED
from takd.analysis.result_files import JsonRow, folder_of
from takd.experiment.lineage import Node, is_given, node_of, split
from takd.experiment.teacher_cache import GENERATIONS, CacheEntry
from takd.runtime.digests import file_digest
from takd.runtime.errors import InputError

STANDARD = "standard"


@dataclass(frozen=True)
class Model:
    """One model: its manifest and its training log, which is empty where it is taken as it is."""

    node: Node
    manifest: dict[str, Any]
    train: list[JsonRow]
    dev: list[JsonRow]
    end: JsonRow

    @property
    def parameters(self) -> int:
        return int(self.manifest["parameters"])

    @property
    def weights(self) -> dict[str, str]:
        """Sha256 of each file with weights, by its path from the folder of the manifest."""
        if named := self.manifest.get("weights"):
            return {f"{name}/model.safetensors": digest for name, digest in named.items()}
        files = self.manifest["files"].items()  # of a model that is taken as it is
        return {name: digest for name, digest in files if name.endswith(".safetensors")}

    @property
    def kept_step(self) -> int | None:
        """Step whose weights were exported, selected by ROUGE-L on dev."""
        best = (self.manifest.get("best") or {}).get("rougeL")
        return None if best is None else int(best["step"])


@dataclass(frozen=True)
class Evaluation:
    """Results of one model on one evaluation set. Scores are x 100."""

    node: Node
    set: str
    scores: dict[str, Any]
    end: JsonRow
    ids: list[Any]
    by_draw: dict[str, NDArray[np.float64]]
    """Measure -> score of each prompt and decoding seed (P, D), in the order of `ids`."""
    likelihoods: dict[str, Any] = field(default_factory=dict)
    """What the model and its teachers say of the texts (docs/measures.md)."""
    likelihoods_end: JsonRow = field(default_factory=dict)
    judge: dict[str, Any] | None = None
    """Ratings, where the experiment has a judge."""
    strata: list[str] = field(default_factory=list)
    """Stratum of each prompt, in the order of `ids`; empty texts where the data have none."""

    @functools.cached_property
    def by_prompt(self) -> dict[Any, float]:
        """ROUGE-L by prompt id, averaged over decoding seeds."""
        return dict(zip(self.ids, self.by_draw["rougeL"].mean(axis=1).tolist(), strict=True))

    @property
    def rouge_tokenizer(self) -> str:
        """ROUGE-L tokenizer, "standard" or "unicode"; scores with different ones are not comparable."""
        return str(self.scores["rouge_tokenizer"])

    def mean(self, measure: str) -> float:
        return float(self.scores["scores"][measure]["mean"])


@dataclass(frozen=True)
class CachedOutput:
    """Generations (all parts) or outputs on some data that a teacher stored for its students."""

    entry: CacheEntry
    digest: str
    """Of its manifest, as the manifests of the students that read it have it among their inputs."""
    ends: list[JsonRow]
    """Closing lines of the parts' logs."""
    flops: int | None = None

    @property
    def teacher(self) -> Node:
        return Node(self.entry.teacher, self.entry.seed)

    @property
    def drawn(self) -> bool:
        """Whether the teacher sampled the tokens; otherwise it scored given ones."""
        return self.entry.place == GENERATIONS


@dataclass(frozen=True, eq=False)
class Results:
    """Results of one experiment."""

    spec: dict[str, Any]
    models: dict[Node, Model]
    evaluations: dict[tuple[Node, str], Evaluation]
    samples: dict[str, dict[Any, dict[Node, JsonRow]]] = field(default_factory=dict)
    """set -> prompt id -> model -> row of generations, for the prompts shown side by side."""
    teacher_cache: list[CachedOutput] = field(default_factory=list)
    """What teachers computed once for all their students."""
    training_rows: int | None = None
    """Rows of the training split; None where the reader does not need them."""

    @property
    def nodes(self) -> list[Node]:
        return list(self.models)

    @functools.cached_property
    def lineages(self) -> list[str]:
        """Each lineage once: short chains before long ones, large models before small ones."""
        sizes = {node.lineage: model.parameters for node, model in self.models.items()}
        return sorted(sizes, key=lambda lineage: (len(split(lineage)), -sizes[lineage]))

    @functools.cached_property
    def unicode_sets(self) -> list[str]:
        """Evaluation sets whose ROUGE-L uses another tokenizer than the standard one."""
        found = {n for (_, n), e in self.evaluations.items() if e.rouge_tokenizer != STANDARD}
        return [name for name in self.spec["sets"] if name in found]

    def seeds(self, lineage: str) -> list[int]:
        return [node.seed for node in self.models if node.lineage == lineage]

    @property
    def trained_here(self) -> dict[Node, Model]:
        """Models that were trained, not taken as they are."""
        return {node: m for node, m in self.models.items() if not is_given(node.lineage)}

    def of(self, lineage: str) -> list[Model]:
        """Models of one lineage, one per training seed."""
        return [model for node, model in self.models.items() if node.lineage == lineage]

    def tested(self, set_name: str) -> list[str]:
        """Scores of single answers that this evaluation set has, in the order of tables."""
        return list(self.evaluations[self.nodes[0], set_name].by_draw)

    def scores(
        self, lineage: str, set_name: str, measure: str, seeds: list[int]
    ) -> NDArray[np.float64]:
        """Scores by training seed, prompt and decoding seed (R, P, D).

        A model that is taken as it is has the same scores for all training seeds.
        """
        nodes = (node_of(lineage, seed) for seed in seeds)
        return np.stack([self.evaluations[node, set_name].by_draw[measure] for node in nodes])


def read(
    spec: dict[str, Any],
    models: Path,
    evaluations: Path,
    teachers: Path | None = None,
    *,
    training_rows: int | None = None,
) -> Results:
    """Read the results of all models that `spec` names.

    `models`, `evaluations` and `teachers` (needed where `spec` names precomputed teacher outputs) are the folders above
    `<lineage>/seed<k>/`; `training_rows` is the number of rows of the training split. Raises InputError if a file is
    missing, damaged or of another model.
    """
    nodes = [Node(lineage, seed) for lineage, seed in spec["nodes"]]
    found = {node: _model(node, models) for node in nodes}
    results = Results(spec, found, {}, training_rows=training_rows)
    for each in spec["teacher_cache"]:
        assert teachers is not None
        results.teacher_cache.append(_cached_output(CacheEntry(*each), teachers))
    for name in spec["sets"]:
        folder = folder_of(evaluations, nodes[0], name)
        result_files.record(folder / "scores.json", {**nodes[0]._asdict(), "set": name})
        ids = [row["id"] for row in result_files.responses(evaluations, nodes[0], name)]
        # evenly spaced, since neighbours in a data set are often alike
        count = min(spec["samples"], len(ids))
        shown: dict[Any, dict[Node, JsonRow]]
        shown = {ids[place * len(ids) // count]: {} for place in range(count)}
        results.samples[name] = shown
        for node in nodes:
            file = folder_of(evaluations, node, name) / "generations.jsonl"
            evaluation = _evaluation(node, name, file.parent, spec, shown)
            if evaluation.ids != ids:
                raise InputError(
                    f"{file}: holds other prompts than those of {nodes[0].lineage} seed"
                    f" {nodes[0].seed} on {name}, so that the models cannot be compared"
                )
            results.evaluations[node, name] = evaluation
    return results


def _evaluation(
    node: Node, name: str, folder: Path, spec: dict[str, Any], shown: dict[Any, dict[Node, JsonRow]]
) -> Evaluation:
    """Scores of one model on one set; rows of the prompts in `shown` are stored there."""
    of_set = {**node._asdict(), "set": name}
    scores = result_files.record(folder / "scores.json", of_set)
    draws = len(spec["decoding_seeds"])
    ids, values, strata = [], [], []
    measures: list[str] = []
    answers, read = folder / "generations.jsonl", folder / "likelihoods"
    for row in result_files.lines(answers, folder / "scores.json"):
        ids.append(row["id"])
        strata.append(row.get("stratum") or "")
        measures = measures or [name for name in TESTED if name in row["outputs"][0]]
        values.append([[output[measure] for measure in measures] for output in row["outputs"]])
        if len(values[-1]) != draws:
            raise InputError(
                f"{answers}, prompt {row['id']}: has {len(values[-1])} answers, expected {draws}, one for each"
                " decoding seed"
            )
        if row["id"] in shown:
            shown[row["id"]][node] = row
    array = np.array(values, dtype=np.float64).reshape(len(ids), draws, len(measures))
    log, read_log = (
        result_files.log(where / "metrics.jsonl", where / record)
        for where, record in ((folder, "scores.json"), (read, "likelihoods.json"))
    )
    return Evaluation(
        node=node,
        set=name,
        scores=scores,
        end=result_files.end(log),
        ids=ids,
        by_draw={measure: array[:, :, place] for place, measure in enumerate(measures)},
        strata=strata,
        likelihoods=result_files.record(read / "likelihoods.json", of_set),
        likelihoods_end=result_files.end(read_log),
        judge=result_files.record(folder / "judge/judge.json", of_set) if spec["judge"] else None,
    )


def _model(node: Node, models: Path) -> Model:
    folder = folder_of(models, node)
    manifest = result_files.record(folder / "manifest.json", {"kind": "model", **node._asdict()})
    given = is_given(node.lineage)
    rows = [] if given else result_files.log(folder / "metrics.jsonl", folder / "manifest.json")
    # a log continues over restarts, so a step may occur twice: the later line counts
    train = {row["step"]: row for row in rows if row["kind"] == "train"}
    dev = {row["step"]: row for row in rows if row["kind"] == "dev"}
    return Model(
        node,
        manifest,
        [train[step] for step in sorted(train)],
        [dev[step] for step in sorted(dev)],
        result_files.end(rows),
    )


def _cached_output(entry: CacheEntry, teachers: Path) -> CachedOutput:
    manifest = teachers / entry.manifest
    found = result_files.record(manifest, {"lineage": entry.teacher, "seed": entry.seed})
    logs = [teachers / log for log in entry.logs]
    ends = [result_files.end(result_files.log(log, log.parent / "manifest.json")) for log in logs]
    return CachedOutput(entry, file_digest(manifest), ends, found.get("flops"))
