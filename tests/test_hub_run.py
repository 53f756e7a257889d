"""Shipped experiments from a hub to their report in one command, with tiny models and few rows; then without it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest
import torch
from conftest import ROOT, Project, copy_workflow
from families import save_weights
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, OPTConfig

from takd.data import filters
from takd.data.row import Row
from takd.experiment.schema import load_schema
from takd.experiment.yaml12 import read_yaml
from takd.runtime.files import read_json

REFERENCES = {"MiniLLM/sinst", "MiniLLM/uinst"}  # with lists of references
POSITIONS = 128
FEW = {"gpt2-dolly": 5, "opt-dolly": 2}  # evaluation sets that are scored


def rows_of(name: str, count: int) -> list[dict[str, Any]]:
    """Rows as those of a data set, and further keys as the authors' files have them."""
    found = []
    for number in range(count):
        output = f"{name[8:]} {number}"
        found.append(
            {
                "instruction": f"Say {output}.",
                "input": "" if number % 2 else "It is short.",
                "output": [output, output.upper()] if name in REFERENCES else output,
                "category": "other",
            }
        )
    return found


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def digest_of(rows: list[dict[str, Any]]) -> str:
    digest = filters.Digest()
    for row in rows:
        output = row["output"]
        references = (output,) if isinstance(output, str) else tuple(output)
        digest.add(Row(0, row["instruction"], row["input"], references))
    return digest.sha256


class Made:
    """Repositories of the names and commits that an experiment has, with small content, and the experiment for it."""

    def __init__(self, hub: hub_server.Hub, name: str, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        path = ROOT / f"config/experiments/{name}.yaml"
        self.settings = settings = read_yaml(path, name).value
        self.sets = settings["evaluation"]["sets"]
        self.data()
        self.models(name)
        self.shrink(name)

    def data(self) -> None:
        """Publish the data sets; the experiment's digests and row numbers are put right."""
        import hashlib

        data = self.settings["data"]
        files: dict[str, dict[str, bytes]] = {}
        for key, source in {**self.sets, "dev": data["dev"], "train": data["train"]}.items():
            count = {"raw.jsonl": 20}.get(source["file"], 4)
            rows = rows_of(source["hub"], count)
            body = lines(rows)
            if "sha256" in source:
                source["sha256"] = hashlib.sha256(body).hexdigest()
            if "rows" in source:
                source["rows"] = {"train": [6, None], "dev": [0, 6]}.get(key, [0, 3])
                rows = rows[slice(*source["rows"])]
            if "expect_rows" in source:
                source["expect_rows"] = len(rows)
            if "rows_sha256" in source:
                source["rows_sha256"] = digest_of(rows)
            files.setdefault(source["hub"], {})[source["file"]] = body
        commits = {each["hub"]: each["revision"] for each in (*self.sets.values(), data["train"])}
        for repository, content in files.items():
            revision = commits[repository]
            extra = {"README.md": b"---\nlicense: mit\n---\n", "dummy.jsonl": b"not wanted\n"}
            commit = revision if len(revision) == 40 else ""
            self.hub.publish(repository, {**content, **extra}, "datasets", commit)

    def models(self, name: str) -> None:
        """Publish the models: GPT-2 as safetensors, OPT as half-precision pickles, the largest in shards."""
        of_opt = name.startswith("opt")
        alpaca = load_schema()["properties"]["data"]["properties"]["template"]["x-templates"][
            "alpaca"
        ]
        corpus = [
            *alpaca.values(),
            *(row["instruction"] for row in rows_of("MiniLLM/dolly", 20)),
        ] * 2
        special = ["<s>", "<pad>", "</s>", "<unk>"] if of_opt else ["<|endoftext|>"]
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator(corpus, vocab_size=600, special_tokens=special, show_progress=False)
        vocabulary = bpe.get_vocab_size()
        names: dict[str, dict[str, Any]] = {}
        for model in self.settings["models"].values():
            names[model["weights"]["hub"]] = model
        for number, (repository, model) in enumerate(names.items()):
            folder = self.folder / repository
            width = 8 * (len(names) - number)
            config = opt(vocabulary, width) if of_opt else gpt2(vocabulary, width)
            save_weights(config, folder, torch.float16 if of_opt else torch.float32)
            bpe.save_model(str(folder))
            about = {"model_max_length": 1024}
            if of_opt:
                about = {
                    "tokenizer_class": "GPT2Tokenizer",
                    "add_bos_token": True,
                    "unk_token": "</s>",
                }
                about |= {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
                pickle(folder, shards=2 if number == 0 else 0)
            else:
                bpe.save(str(folder / "tokenizer.json"))
            (folder / "tokenizer_config.json").write_text(json.dumps(about))
            others = {"tf_model.h5": b"h5", "flax_model.msgpack": b"flax", "rust_model.ot": b"ot"}
            files = {**hub_server.files_of(folder), **others}
            self.hub.publish(repository, files, commit=model["weights"]["revision"])
            model["parameters"] = parameters(folder)

    def shrink(self, name: str) -> None:
        """Leave the first chain, and of it steps and lengths that take seconds."""
        settings = self.settings
        settings["chains"] = settings["chains"][:1]
        used = settings["chains"][0]["models"]
        settings["models"] = {name: settings["models"][name] for name in used}
        for model in settings["models"].values():
            model.pop(
                "training", None
            )  # learning rates, adapters, and DeepSpeed, which needs a GPU
        settings["data"] |= {"max_length": POSITIONS, "max_prompt_length": POSITIONS - 8}
        for method in settings["training"].values():
            method |= {"steps": 2, "batch_size": 4, "evaluate_every": 2, "warmup_steps": 0}
            method.pop("epochs", None)
        settings["training"]["minillm"] |= {
            "rollouts_per_round": 4,
            "inner_epochs": 1,
            "dev_rows": 4,
        }
        evaluation = settings["evaluation"]
        evaluation["seeds"] = [10]
        evaluation["sets"] = dict(list(self.sets.items())[: FEW[name]])
        settings.pop("report", None)


def gpt2(vocabulary: int, width: int) -> GPT2Config:
    return GPT2Config(
        architectures=["GPT2LMHeadModel"], vocab_size=vocabulary, n_layer=2, n_embd=width, n_head=2,
        n_positions=POSITIONS, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


def opt(vocabulary: int, width: int) -> OPTConfig:
    return OPTConfig(
        architectures=["OPTForCausalLM"], vocab_size=vocabulary, hidden_size=width, ffn_dim=2 * width,
        word_embed_proj_dim=width, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=POSITIONS,
        bos_token_id=2, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip


def parameters(folder: Path) -> int:
    from transformers import AutoModelForCausalLM

    weights = {} if (folder / "model.safetensors").exists() else {"use_safetensors": False}
    return int(AutoModelForCausalLM.from_pretrained(folder, **weights).num_parameters())


def pickle(folder: Path, shards: int) -> None:
    """Turn a model's safetensors into pickles, as OPT's repositories have them."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weights["lm_head.weight"] = weights["model.decoder.embed_tokens.weight"]
    if not shards:
        torch.save(weights, folder / "pytorch_model.bin")
        return
    places = {}
    for number in range(shards):
        part = dict(list(weights.items())[number::shards])
        name = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        torch.save(part, folder / name)
        places |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """This machine's connection to the hub, set before the first stage imports its library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("huggingface")))
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            patch.delenv(name, raising=False)
        yield patch


@pytest.fixture(scope="module")
def hub(environment: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    with hub_server.serving() as hub:
        environment.setenv("HF_ENDPOINT", hub.address)
        yield hub


@pytest.mark.parametrize("name", FEW)
def test_from_the_hub_to_the_report_in_one_command(
    hub: hub_server.Hub, environment: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    made = Made(hub, name, tmp_path / "made")
    copy_workflow(tmp_path / "project", made.settings)
    project = Project(tmp_path / "project", "warm_hub")
    hub.forget()
    project.run("--quiet", "rules")
    results = tmp_path / "project/results/small"
    for page in ("index.html", "provenance.html", "data.html"):
        assert (results / "report" / page).is_file()
    # nothing but what is needed was fetched, and each file once
    contents = [
        path for path in hub.asked if path.startswith(("GET", "CDN")) and "/api/" not in path
    ]
    wrong = ("h5", "msgpack", "ot", "README.md", "dummy.jsonl")
    assert not [path for path in contents if path.endswith(wrong)]
    fetched = [path for path in contents if path.endswith((".bin", ".safetensors", ".jsonl"))]
    redirects = [path for path in fetched if path.startswith("CDN")]
    assert len(redirects) == len(set(redirects)) > 0
    bases = [read_json(path) for path in sorted(results.glob("base/*/manifest.json"))]
    pickled = sorted(len(base.get("pickled", ())) for base in bases)
    assert pickled == ([1, 2] if name == "opt-dolly" else [0, 0])
    branches = {
        key
        for key, source in made.settings["evaluation"]["sets"].items()
        if source["revision"] == "main"
    }
    report = read_json(results / "data/report/report.json")["splits"]
    for split, found in report.items():
        commit = hub.branches["datasets", made_source(made, split)["hub"]]["main"]
        assert found["source"].endswith(f"commit {commit}"), split
    assert branches <= report.keys()
    # again, without the hub: data and weights are made anew from what was fetched, and are the same
    before = {path: path.read_bytes() for path in results.glob("*/*/manifest.json")}
    first = next(iter(made.settings["models"]))
    lost = [
        results / part for part in (f"base/{first}", "data/tokenizer", "data/train", "data/dolly")
    ]
    for folder in lost:
        shutil.rmtree(folder)
    targets = [str((folder / "manifest.json").relative_to(project.folder)) for folder in lost]
    environment.setenv("HF_HUB_OFFLINE", "1")
    try:
        asked = len(hub.asked)
        Project(project.folder, "warm_offline").run(*targets, "--quiet", "rules")
        assert len(hub.asked) == asked
        assert {path: path.read_bytes() for path in before} == before
        assert project.plan() == {}
    finally:
        environment.delenv("HF_HUB_OFFLINE")


def made_source(made: Made, split: str) -> dict[str, Any]:
    data = made.settings["data"]
    return data[split] if split in ("train", "dev") else made.settings["evaluation"]["sets"][split]
