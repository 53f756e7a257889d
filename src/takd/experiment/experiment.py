"""An experiment: its file, read and checked, with defaults, and the settings of each stage.

Snakemake imports this module on every start and in every job, so it imports nothing heavy and reads
neither the hub nor weights.

Local files of an experiment may be missing while a run is only planned, so that the real
experiments can be planned right after a clone. The digests of missing files are left out of the
settings, and `require_files` raises an error before the first job of a real run.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from takd.data import filters
from takd.experiment import lineage, schema, teacher_cache, validation
from takd.experiment.lineage import Node
from takd.experiment.teacher_cache import Writing
from takd.experiment.yaml12 import read_yaml
from takd.methods.registry import METHODS
from takd.models.starting_weights import weights_digests
from takd.runtime.digests import source_digest
from takd.runtime.errors import InputError
from takd.runtime.files import files_below

Spec = dict[str, Any]
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""Endings of what a tokenizer's folder may hold besides a tokenizer."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


def file_of(root: Path, name: str) -> Path:
    """Return the file of an experiment.

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
    return root / f"config/experiments/{name}.yaml"


def load(path: Path, root: Path, variables: Mapping[str, str] | None = None) -> "Experiment":
    """Read and check an experiment file.

    Missing local data are no error here: see `Experiment.require_files`.

    Args:
        path: the experiment file.
        root: the repository, to which paths in the file are relative.
        variables: values for `{name}` in paths (`--config name=value`), which take precedence over
            the file's own `variables`.

    Raises:
        InputError: the file is missing, or breaks the schema or a rule; one line per error.
    """
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.yaml"))
        raise InputError(
            f"There is no experiment '{path.stem}' ({name}); {schema.suggest(path.stem, known)}"
        )
    file = read_yaml(path, name)
    schema.check(file)
    settings = schema.resolve(file, variables or {})
    parameters = validation.check(file, settings, root)
    return Experiment(path.stem, root, settings, parameters)


@dataclass(frozen=True, eq=False)
class Experiment:
    """A checked experiment with all defaults filled in."""

    name: str
    root: Path
    settings: dict[str, Any]
    parameters: dict[str, int]
    """Size of each model by name."""

    @property
    def methods(self) -> list[str]:
        """All distillation methods."""
        return validation.distillation_methods()

    @property
    def seeds(self) -> list[int]:
        """Training seeds."""
        return self.settings["seeds"]

    @property
    def shards(self) -> int:
        """Number of parts into which a teacher's generations are divided, for parallel jobs."""
        return self.settings["teacher_writes"]["shards"]

    @property
    def sets(self) -> list[str]:
        """Names of the evaluation sets."""
        return list(self.settings["evaluation"]["sets"])

    @property
    def splits(self) -> list[str]:
        """Names of all data to prepare: train, dev, corpus if there is one, and evaluation sets."""
        corpus = ["corpus"] if self.settings["data"]["corpus"] else []
        return ["train", "dev", *corpus, *self.sets]

    @functools.cached_property
    def chains(self) -> list[dict[str, str]]:
        """Label and lineage of each chain, in the order of the file, once per method."""
        return [
            {
                "label": chain["label"] or " → ".join(chain["models"]),
                "lineage": lineage.of_chain(chain["models"], methods),
            }
            for chain in self.settings["chains"]
            for methods in validation.by_hop(chain)
        ]

    @property
    def lineages(self) -> list[str]:
        """Lineage of the last model of each chain."""
        return [chain["lineage"] for chain in self.chains]

    @property
    def heads(self) -> list[str]:
        """Models at the head of a chain: supervised, and trained with the first seed only."""
        return list(dict.fromkeys(chain["models"][0] for chain in self.settings["chains"]))

    @functools.cached_property
    def nodes(self) -> list[Node]:
        """All models to train and score, teachers before students.

        The supervised run of each student is included for every seed, as a start or as the
        baseline.
        """
        students = {name: None for chain in self.settings["chains"] for name in chain["models"][1:]}
        return lineage.nodes(self.lineages, self.seeds, students)

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

    def start_of(self, name: str) -> str:
        """Return what a lineage's last model starts from: "base" (its `weights`) or "sft"."""
        hop = lineage.split(name)[-1]
        return self._training(*hop).get("start", "base")

    def _held_out(self, split: str) -> list[str]:
        """Evaluation sets whose prompts must not occur in a split."""
        return list(self.sets) if split == "train" and self.settings["data"]["drop_leaks"] else []

    def tokenizer_spec(self) -> Spec:
        """Settings of the stage that prepares the tokenizer."""
        source = dict(self.settings["tokenizer"])
        kind = next(kind for kind in ("train", "hub", "folder", "gguf") if kind in source)
        if kind == "train":
            text = self._with_digests(self._source("train"))
            return {"source": source, "text": text, "template": self._template()}
        source = self._with_digests(source, but=WEIGHTS) if kind != "hub" else source
        return {"source": source, "template": self._template()}

    def data_spec(self, split: str) -> Spec:
        """Settings of the stage that tokenises a split."""
        data = self.settings["data"]
        spec: Spec = {"split": split, "source": self._with_digests(self._source(split))}
        if split == "corpus":
            length = data["corpus"]["block_length"] or data["max_length"]
            return {**spec, "block_length": length, "blocks": data["corpus"]["blocks"]}
        spec |= {
            "template": self._template(),
            "max_length": data["max_length"],
            "max_prompt_length": data["max_prompt_length"],
            "drop_duplicates": split == "train" and data["drop_duplicates"],
        }
        if split == "train":
            spec["drop_leaks"] = data["drop_leaks"]
            excluded = [self._source(name) for name in self._held_out(split)]
            spec["exclude"] = [self._with_digests(source) for source in excluded]
        else:  # responses are scored against its references
            spec["rouge_tokenizer"] = self.settings["evaluation"]["rouge_tokenizer"]
        return spec

    def data_report_spec(self) -> Spec:
        """Settings of the stage that summarises the data."""
        splits = {name: self._with_digests(self._source(name)) for name in self.splits}
        return {"splits": splits, "sets": self.sets}

    def base_spec(self, model: str) -> Spec:
        """Settings of the stage that fetches or makes a model's starting weights."""
        weights = dict(self.settings["models"][model]["weights"])
        if "folder" in weights:
            weights["sha256"] = weights_digests(self.root / weights["folder"])
        elif "gguf" in weights:
            weights = self._with_digests(weights)
        spec = {"model": model, "weights": weights, "parameters": self.parameters[model]}
        if "scratch" in weights:
            return spec  # its positions are checked when the experiment is read
        return {**spec, "max_length": self.settings["data"]["max_length"]}

    def train_spec(self, name: str, seed: int) -> Spec:
        """Settings of the stage that trains the last model of a lineage."""
        model, method = lineage.split(name)[-1]
        settings = self._training(model, method)
        settings.pop("objective", None)  # it only selects defaults of other settings
        if settings["deepspeed"]:
            path = self.root / validation.DEEPSPEED / f"{settings['deepspeed']}.json"
            config = json.loads(path.read_text(encoding="utf-8"))
            settings["deepspeed"] = {"name": settings["deepspeed"], "config": config}
        if "lm_weight" in settings:
            settings["lm_batch_size"] = settings["lm_batch_size"] or settings["batch_size"]
            if not self.settings["data"]["corpus"]:
                settings["lm_weight"] = 0.0
        teacher = lineage.teacher_of(name)
        asks_teacher = METHODS[method].asks_teacher(settings)
        taught = [teacher, lineage.teacher_seed(teacher, seed, self.seeds)] if teacher else None
        return {
            "lineage": name,
            "seed": seed,
            **({"teacher": taught, "asks_teacher": asks_teacher} if taught else {}),
            "model": model,
            "method": method,
            "settings": settings,
            "max_length": self.settings["data"]["max_length"],
            "max_prompt_length": self.settings["data"]["max_prompt_length"],
            "dev_decoding": self._decoding("dev_decoding"),
        }

    def writings(self, name: str) -> dict[str, str]:
        """Return the teacher outputs that a student reads: path in the teacher's folder, by input.

        `generations` are the teacher's responses to the training prompts; `outputs/<split>/<kind>`
        are its distributions for the tokens of a split or of its generations.
        """
        return teacher_cache.places(self.train_spec(name, self.seeds[0])["settings"])

    @functools.cached_property
    def written(self) -> list[Writing]:
        """All stored teacher outputs that the experiment needs, without duplicates."""
        return teacher_cache.of_nodes(self.nodes, self.seeds, self.shards, self.writings)

    def generations_spec(self, name: str, seed: int) -> Spec:
        """Settings of the stage that joins a teacher's generations, without the number of parts."""
        settings = self.settings["teacher_writes"]
        decoding = {
            "temperature": settings["temperature"],
            "max_new_tokens": self._longest_response,
        }
        return {
            "lineage": name,
            "seed": seed,
            "noise": settings["seed"],
            "decoding": decoding,
            "precision": settings["precision"],
        }

    def generate_spec(self, name: str, seed: int, part: int, parts: int) -> Spec:
        """Settings of the stage that generates a teacher's responses to one part of the prompts."""
        return {**self.generations_spec(name, seed), "part": part, "parts": parts}

    def outputs_spec(self, name: str, seed: int, split: str, kind: str) -> Spec:
        """Settings of the stage that stores a teacher's distributions for the tokens of a split."""
        settings = self.settings["teacher_writes"]
        spec = {"lineage": name, "seed": seed, "split": split, "kind": kind}
        spec["precision"] = settings["precision"]
        return {**spec, "top_k": settings["top_k"]} if kind == "top_k" else spec

    def evaluate_spec(self, name: str, seed: int, evaluation_set: str) -> Spec:
        """Settings of the stage that scores a model on an evaluation set."""
        return {
            "lineage": name,
            "seed": seed,
            "set": evaluation_set,
            "decoding": self._decoding("decoding"),
            "seeds": self.settings["evaluation"]["seeds"],
            "precision": self.settings["evaluation"]["precision"],
            "max_length": self.settings["data"]["max_length"],
        }

    def likelihoods_spec(self, name: str, seed: int, evaluation_set: str) -> Spec:
        """Settings of the stage that computes likelihoods and divergences from the teachers."""
        return {
            "lineage": name,
            "seed": seed,
            "set": evaluation_set,
            "seeds": self.settings["evaluation"]["seeds"],
            "precision": self.settings["evaluation"]["precision"],
            "max_length": self.settings["data"]["max_length"],
            "teachers": self._compared_with(name, seed),
        }

    def judge_spec(self, name: str, seed: int, evaluation_set: str) -> Spec:
        """Settings of the stage that lets another model rate responses, if there is a judge."""
        evaluation = self.settings["evaluation"]
        seeds = evaluation["judge"]["seeds"] or evaluation["seeds"][:1]
        judge = {**evaluation["judge"], "seeds": seeds}
        return {"lineage": name, "seed": seed, "set": evaluation_set, "judge": judge}

    def _compared_with(self, name: str, seed: int) -> dict[str, list[Any]]:
        """Direct and first teacher of a model, as [lineage, training seed].

        A supervised student, which has no teacher, is compared with the head of its chains if they
        have only one.
        """
        direct, head = lineage.teacher_of(name), lineage.prefixes(name)[0]
        if direct:
            names = {"direct": direct, "first": head}
        else:
            (model,) = (hop.model for hop in lineage.split(name))
            chains = (chain["models"] for chain in self.settings["chains"])
            heads = {models[0] for models in chains if model in models[1:]}
            names = {"first": lineage.supervised(*heads)} if len(heads) == 1 else {}
        return {
            role: [teacher, lineage.teacher_seed(teacher, seed, self.seeds)]
            for role, teacher in names.items()
        }

    def report_spec(self) -> Spec:
        """Settings of the stage that makes the report."""
        return {
            "experiment": self.name,
            "title": self.settings["title"] or self.name,
            "description": self.settings["description"],
            "models": self.parameters,
            "weights": {name: m["weights"] for name, m in self.settings["models"].items()},
            "tokenizer": self.settings["tokenizer"],
            "chains": self.chains,
            "nodes": [list(node) for node in self.nodes],
            "written": [list(writing) for writing in self.written],
            "sets": self.sets,
            "seeds": self.seeds,
            "decoding": self._decoding("decoding"),
            "dev_decoding": self._decoding("dev_decoding"),
            "decoding_seeds": self.settings["evaluation"]["seeds"],
            "targets": self.settings["report"]["targets"],
            "samples": self.settings["report"]["samples"],
            "judge": self.settings["evaluation"]["judge"],
            "training": self.settings["training"],
            "overrides": {
                name: model["training"]
                for name, model in self.settings["models"].items()
                if "training" in model
            },
        }

    def _training(self, model: str, method: str) -> dict[str, Any]:
        return validation.training_settings(self.settings, model, method)

    @property
    def _longest_response(self) -> int:
        data = self.settings["data"]
        return data["max_length"] - data["max_prompt_length"]

    def _decoding(self, which: str) -> dict[str, Any]:
        settings = self.settings["evaluation"][which]
        return {**settings, "max_new_tokens": self._longest_response}

    def _template(self) -> dict[str, str] | str:
        """Prompt templates with and without input, or `chat` for the tokenizer's chat template."""
        template = self.settings["data"]["template"]
        named = schema.load_schema()["properties"]["data"]["properties"]["template"]["x-templates"]
        return named.get(template, template) if isinstance(template, str) else template

    def _source(self, split: str) -> dict[str, Any]:
        """Source of a split, without the keys that its kind does not use."""
        sets = self.settings["evaluation"]["sets"]
        source = sets[split] if split in sets else self.settings["data"][split]
        kinds = {
            "folder": ["folder", "split"],
            "file": ["hub", "revision", "file", "sha256"],
            "hub": ["hub", "revision", "config", "split"],
            "url": ["url", "sha256"],
        }
        kept = next(
            (keys for kind, keys in kinds.items() if kind in source),
            ["json", "sha256", "text", "demo"],
        )
        taken = [*kept, "rows", "columns", *filters.KEYS]
        return {key: source[key] for key in taken if key in source}

    def _files(self, source: Mapping[str, Any], but: tuple[str, ...]) -> list[Path]:
        kind = next((kind for kind in ("json", "text", "folder", "gguf") if kind in source), None)
        if kind is None:
            return []
        place = self.root / source[kind]
        below = files_below(place, ".txt" if kind == "text" else "")
        kept = (path for path in below if path == place or path.suffix not in but)
        return [Path(source[kind]) / path.relative_to(place) for path in kept]

    def _with_digests(self, source: Mapping[str, Any], but: tuple[str, ...] = ()) -> dict[str, Any]:
        """Add `sha256` to a local source, as [digest] or, for a folder, [name, digest] per file.

        Files whose suffix is in `but` are left out.
        """
        if any(kind in source for kind in ("hub", "url", "demo")):
            return dict(source)
        if "sha256" in source:
            return {**source, "sha256": [self._named_digest(source)]}
        files = self._files(source, but)
        digests: list[Any] = [source_digest(self.root / path) for path in files]
        folder = source.get("folder") or source.get("text")
        if folder and (self.root / folder).is_dir():
            names = [path.relative_to(folder).as_posix() for path in files]
            digests = [list(pair) for pair in zip(names, digests, strict=True)]
        return {**source, "sha256": digests}

    def _named_digest(self, source: Mapping[str, Any]) -> str:
        """The file's digest in the experiment; raise InputError if the file exists and differs."""
        named: str = source["sha256"]
        path = self.root / source["json"]
        if path.is_file() and (found := source_digest(path)) != named:
            raise InputError(
                f"{source['json']} has the sha256 {found}, but the experiment says {named}; get the file that is meant,"
                " or correct `sha256`."
            )
        return named

    def _local_paths(self) -> Iterator[tuple[str, str]]:
        settings = self.settings
        places = {"tokenizer": settings["tokenizer"]}
        places |= {f"models.{name}.weights": m["weights"] for name, m in settings["models"].items()}
        places |= {f"data.{k}": settings["data"][k] or {} for k in ("train", "dev", "corpus")}
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
