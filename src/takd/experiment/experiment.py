"""An experiment: its file, read and checked, with defaults, and the models that it trains.

Snakemake imports this module on every start and in every job, so it imports nothing heavy and reads
neither the hub nor weights.

Local files of an experiment may be missing while a run is only planned, so that the real
experiments can be planned right after a clone. The digests of missing files are left out of the
settings, and `require_files` raises an error before the first job of a real run.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from takd.experiment import budget, controls, lineage, schema, schema_check, sweeps, validation
from takd.experiment.labels import chain_text
from takd.experiment.lineage import Node
from takd.experiment.teacher_cache import GENERATIONS, CacheEntry, places
from takd.experiment.validation.common import (
    distillation_methods,
    given_models,
    lineages_of,
    training_settings,
)
from takd.experiment.yaml12 import read_yaml
from takd.runtime.errors import InputError

SEEDS = "seeds"
"""Key of `--config` for the number of training seeds: the first so many of the experiment's."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


def file_of(root: Path, name: str) -> Path:
    """Return the file of an experiment: the user's own, or the one of this name in the repository.

    Names with a folder in them are refused, because `sub/base` and `base` would share a folder of
    results.

    Raises:
        InputError: the name is not valid.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"experiment={name[:100]!r} is no name of a file in config/experiments: a name has letters, digits and"
            " . _ + - only, at most 100 of them."
        )
    return schema.own_or_shipped(root, f"config/experiments/{name}.yaml")


def load(path: Path, root: Path, config: Mapping[str, str] | None = None) -> "Experiment":
    """Read and check an experiment file.

    Missing local data are no error here: see `Experiment.require_files`.

    Args:
        path: the experiment file.
        root: the user's folder, to which paths in the file are relative.
        config: values of `--config name=value` for `{name}` in paths, which take precedence over the
            file's own `variables`, and `seeds`, the number of training seeds.

    Raises:
        InputError: the file is missing, or breaks the schema or a rule; one line per error.
    """
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    if not path.is_file():
        folders = path.parent, schema.HOME / "config/experiments"
        known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        raise InputError(
            f"There is no experiment '{path.stem}' ({name}); {schema.suggest(path.stem, known)}"
        )
    file = read_yaml(path, name)
    swept = sweeps.take(file)
    schema_check.check(file, {sweep.key: sweep.written for sweep in swept})
    if swept:
        sweeps.expand(file, swept)
        schema_check.check(file)
    variables = dict(config or {})
    count = variables.pop(SEEDS, None)
    settings = sweeps.apart(schema.resolve(file, variables))
    parameters = validation.check(file, settings, root)
    settings["chains"] = [controls.expanded(chain) for chain in settings["chains"]]
    looks: Sequence[int] = ()
    if isinstance(seeds := settings["seeds"], dict):
        settings["until"] = until = seeds["until"]
        values = seeds["values"] or range(1, until["at_most"] + 1)
        settings["seeds"] = list(values[: until["at_most"]])
        looks = range(until["at_least"], until["at_most"])
    if count is not None:  # as many as are asked for, without looking
        settings["seeds"], looks = _first(settings["seeds"], count, name), ()
    return Experiment(path.stem, root, settings, parameters, looks)


def _first(seeds: list[int], count: str, name: str) -> list[int]:
    """Return the first training seeds, as many as `--config seeds=` says."""
    if not count.isdecimal() or not 1 <= int(count) <= len(seeds):
        raise InputError(
            f"--config {SEEDS}={count}: must be a number from 1 to {len(seeds)}: how many of the training seeds of"
            f" {name} to take; more seeds are added in that file."
        )
    return seeds[: int(count)]


@dataclass(frozen=True, eq=False)
class Experiment:
    """A checked experiment with all defaults filled in."""

    name: str
    root: Path
    settings: dict[str, Any]
    parameters: dict[str, int]
    """Size of each model by name."""
    looks: Sequence[int] = ()
    """Numbers of training seeds after which it is decided whether more are needed; none for a fixed number."""

    @property
    def methods(self) -> list[str]:
        """All distillation methods."""
        return distillation_methods()

    @property
    def seeds(self) -> list[int]:
        """Training seeds."""
        return self.settings["seeds"]

    @property
    def shards(self) -> int:
        """Number of parts into which a teacher's generations are divided, for parallel jobs."""
        return self.settings["teacher_cache"]["shards"]

    @property
    def sets(self) -> list[str]:
        """Names of the evaluation sets."""
        return list(self.settings["evaluation"]["sets"])

    @property
    def splits(self) -> list[str]:
        """Names of all data to prepare: train, dev and corpus, if there are any, and evaluation sets."""
        data = self.settings["data"]
        return [*(name for name in ("train", "dev", "corpus") if data.get(name)), *self.sets]

    @functools.cached_property
    def chains(self) -> list[dict[str, str]]:
        """Label and lineage of each chain, in the order of the file, once per method."""
        return [
            {"label": chain["label"] or chain_text(name), "lineage": name}
            for chain in self.settings["chains"]
            for name in lineages_of(self.settings, chain)
        ]

    @property
    def lineages(self) -> list[str]:
        """Lineage of the last model of each chain."""
        return [chain["lineage"] for chain in self.chains]

    @functools.cached_property
    def given(self) -> list[str]:
        """Models that are there (`trained: true`) and are taken as they are."""
        return given_models(self.settings)

    @property
    def heads(self) -> list[str]:
        """Teachers at the head of a chain that are fine-tuned, with the first seed only."""
        heads = (
            head
            for head, *students in self._chains
            if students and lineage.start(students[-1]) != head
        )
        return [name for name in dict.fromkeys(heads) if name not in self.given]

    @functools.cached_property
    def ends(self) -> set[str]:
        """Lineages whose number of steps follows from the budget; none without a budget."""
        return budget.ends(self.settings)

    def reference(self, name: str, seed: int) -> Node | None:
        """Return the model whose cost is the budget of a training; None if no chain's is."""
        of_chain = budget.reference(self.settings) if name in self.ends else None
        if of_chain is None:
            return None
        whole = Node(of_chain, seed)
        return whole if whole in self.nodes else Node(of_chain, self.seeds[0])

    def budget_of(self, name: str, seed: int) -> dict[str, Any]:
        """Return the settings of a training that say what its chain may cost; empty without a budget."""
        if name not in self.ends:
            return {}
        reference = self.reference(name, seed)
        return {"budget": {"chain": list(reference)} if reference else self.settings["budget"]}

    @functools.cached_property
    def nodes(self) -> list[Node]:
        """All models to train or take, and to score, teachers before students.

        The supervised run of each student is included for every seed, as a start or as the
        baseline, and so is that of a model that stands alone and teaches none.
        """
        students = {name: None for chain in self._chains for name in chain[1:]}
        known = (*self.heads, *self.given)
        alone = {chain[0]: None for chain in self._chains if chain[0] not in known}
        return lineage.nodes(self.lineages, self.seeds, students | alone)

    @property
    def trainings(self) -> list[Node]:
        """The `nodes` that are trained."""
        return [node for node in self.nodes if not lineage.is_given(node.lineage)]

    @property
    def _chains(self) -> list[list[str]]:
        return [chain["models"] for chain in self.settings["chains"]]

    @functools.cached_property
    def missing(self) -> list[str]:
        """Local files and folders that do not exist or are of the wrong kind, each with its key."""
        return [
            f"{key} is '{path}', which {problem}"
            for key, path in self._local_paths()
            if (problem := _problem(self.root / path, key.rpartition(".")[2]))
        ]

    def require_files(self) -> None:
        """Raise InputError if local data or weights are missing; called before a real run."""
        if self.missing:
            others = f" ({len(self.missing) - 1} others neither)" if len(self.missing) > 1 else ""
            raise InputError(
                f"Experiment '{self.name}': {self.missing[0]}{others}; put it there, or name another"
                " place in the file or, where a variable stands in the path, with --config."
            )

    def training(self, model: str, method: str) -> dict[str, Any]:
        """Return the settings with which a method trains a model."""
        settings = training_settings(self.settings, model, method)
        if control := controls.of(lineage.alone(model)):
            settings |= control.settings
        if "lm_weight" in settings:
            settings["lm_batch_size"] = settings["lm_batch_size"] or settings["batch_size"]
            if not self.settings["data"]["corpus"]:
                settings["lm_weight"] = 0.0
        return settings

    def trained_with(self, teacher: str, seed: int, student: str) -> list[Any]:
        """Return the lineage of a teacher and its training seed, given those of a student."""
        return [teacher, lineage.teacher_seed(teacher, seed, self.seeds, student)]

    def start_of(self, name: str) -> str:
        """Return what a lineage's last model starts from: "base" (its `weights`) or "sft"."""
        return self.training(*lineage.split(name)[-1]).get("start", "base")

    def cached_inputs(self, name: str) -> dict[str, str]:
        """Return the teacher outputs that a student reads: path in the teacher's folder, by input."""
        return places(self.training(*lineage.split(name)[-1]))

    @functools.cached_property
    def teacher_cache(self) -> list[CacheEntry]:
        """All stored teacher outputs that the experiment needs, without duplicates."""
        found: dict[CacheEntry, None] = {}
        for name, seed in self.nodes:
            if teacher := lineage.teacher_of(name):
                own = lineage.teacher_seed(teacher, seed, self.seeds, name)
                for place in self.cached_inputs(name).values():
                    parts = self.shards if place == GENERATIONS else None
                    found[CacheEntry(teacher, own, place, parts)] = None
        return list(found)

    @property
    def teacher_logs(self) -> list[str]:
        """Logs of all stages that wrote stored teacher outputs."""
        return [file for entry in self.teacher_cache for file in entry.logs]

    @property
    def longest_response(self) -> int:
        """Number of tokens that `max_length` leaves for a response."""
        data = self.settings["data"]
        return data["max_length"] - data["max_prompt_length"]

    def _local_paths(self) -> Iterator[tuple[str, str]]:
        settings = self.settings
        places = {"tokenizer": settings["tokenizer"]}
        places |= {f"models.{name}.weights": m["weights"] for name, m in settings["models"].items()}
        places |= {f"data.{k}": settings["data"].get(k) or {} for k in ("train", "dev", "corpus")}
        places |= {f"evaluation.sets.{k}": s for k, s in settings["evaluation"]["sets"].items()}
        for key, source in places.items():
            for kind in ("json", "text", "folder", "gguf"):
                if kind in source:
                    yield f"{key}.{kind}", source[kind]


def _problem(path: Path, kind: str) -> str:
    """Describe why a path does not suit its key, such as `json` or `folder`; empty if it does."""
    if not path.exists():
        return "does not exist"
    if path.is_dir():
        return "is a folder, and not a file" if kind in ("json", "gguf") else ""
    if not path.is_file():
        return "is neither a file nor a folder"
    return "is a file, and not a folder" if kind == "folder" else ""
