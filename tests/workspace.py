"""A folder with inputs of a few kilobytes for training and evaluation stages: tokenizer, data, starting weights."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from families import FAMILIES, save_weights
from forks import Forked
from models_for_tests import MINILLM_REFERENCE
from sealing import write_json
from strike import Strike
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from takd.methods.registry import METHODS
from takd.models.precision import torch_dtype

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["red", "blue", "green", "tall", "small", "cat", "dog", "say", "and", "."]
DECODING = {
    "max_new_tokens": 8,
    "sample": True,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "no_repeat_ngram": 0,
}
COMMON = {
    "steps": 12,
    "epochs": None,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "schedule": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0.01,
    "betas": [0.9, 0.95],
    "gradient_clip": 1.0,
    "dropout": 0.1,
    "rows": None,
    "evaluate_every": 5,
    "dev_rows": None,
    "keep": "rougeL",
    "log_every": 1,
    "precision": "auto",
    "deepspeed": None,
    "lora": None,
}
REGIME = {
    "responses": "labels",
    "ratio": 1.0,
    "temperature": 1.0,
    "on_policy_share": 0.5,
    "initial_share": 0.5,
    "share_step": 0.1,
    "loss_rise": 0.0,
    "capacity": 8,
    "start": "sft",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {},
    "kd": {
        "ratio": 0.5,
        "start": "base",
        "responses": "labels",
        "divergence": "forward_kl",
        "teacher_outputs": "live",
    },
    "seqkd": {"responses": "teacher", "start": "base"},
    "loss_adaptive": {"start": "base"},
    "gkd": {**REGIME, "on_policy": "mixed", "beta": 0.5},
    "distillm": {
        **REGIME,
        "on_policy": "adaptive",
        "divergence": "skewed_forward_kl",
        "skew": 0.1,
    },
    "abkd": {**REGIME, "on_policy": "off", "alpha": 0.2, "beta": 0.7},
    "taid": {
        **REGIME,
        "on_policy": "off",
        "target_start": 0.4,
        "target_alpha": 5e-4,
        "target_beta": 0.99,
    },
    "amid": {**REGIME, "on_policy": "off", "from": "teacher", "skew": 0.1, "alpha": 0.0},
    "skd": {**REGIME, "on_policy": "mixed", "divergence": "forward_kl", "teacher_top_k": 3},
    "minillm": {
        **MINILLM_REFERENCE,
        "rollouts_per_round": 8,
        "inner_epochs": 2,
        "lm_weight": 1.0,
        "lm_batch_size": 2,
        "dropout": 0.0,
        "start": "sft",
    },
}


# fields of metrics.jsonl that differ between any two runs: times, and values that depend on them
TIMED = {"seconds", "cpu_seconds", "checkpoints", "checkpoint_seconds", "digest"}


# fields that identify made-up results in their manifests
BASE = {"kind": "base", "spec": {"model": "student"}}
TEACHER, STUDENT = (
    {"kind": "model", "lineage": f"{name}-sft", "seed": 3} for name in ("teacher", "student")
)


def of_split(name: str) -> dict[str, Any]:
    return {"kind": "data", "spec": {"split": name}, "rouge_tokenizer": "standard"}


class Workspace:
    """A folder with all inputs of a training stage, and commands to run stages in it."""

    def __init__(self, folder: Path, vocabulary: Sequence[str] = WORDS) -> None:
        self.folder, self.words = folder, vocabulary
        words = Tokenizer(
            models.WordLevel({w: i for i, w in enumerate(["<end>", "<pad>", *vocabulary])})
        )
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, eos_token="<end>", pad_token="<pad>"
        )
        self.tokenizer.save_pretrained(folder / "tokenizer" / "tokenizer")
        self.manifest(
            "tokenizer", kind="tokenizer", vocabulary=len(self.tokenizer), begin=[], end=0
        )
        self.data("train", 24)
        self.data("dev", 8)
        blocks = [[2 + (i + j) % 10 for j in range(12)] for i in range(6)]
        Dataset.from_dict({"input_ids": blocks}).save_to_disk(folder / "corpus" / "dataset")
        self.manifest("corpus", **of_split("corpus"))
        for name, width in (("teacher", 32), ("student", 16)):
            FAMILIES["gpt2"](len(self.tokenizer), width).save_pretrained(folder / name / "model")
            self.manifest(name, **BASE)

    def model(self, family: str, weights: str, part: str = "base") -> str:
        """Make a model of a family, if it does not exist, and return its name in this folder.

        Args:
            weights: "scratch" (a configuration only), or the precision: "fp32", "bf16" or "fp16".
            part: "base", "init" or "teacher" of a training, or its "student".
        """
        name = f"{family}-{part}-{weights}"
        folder = self.folder / name / ("init" if part == "init" else "model")
        if not folder.exists():
            config = FAMILIES[family](len(self.tokenizer), 32 if part == "teacher" else 16)
            if weights == "scratch":
                config.save_pretrained(folder)
            else:
                save_weights(config, folder, torch_dtype(weights))
            self.manifest(name, **{"base": BASE, "teacher": TEACHER}.get(part, STUDENT))
        return name

    def manifest(self, name: str, **fields: Any) -> None:
        """Write the manifest of the folder `name`, with digests of all files in it."""
        write_json(self.folder / name / "manifest.json", {"name": name, **fields})

    def data(self, split: str, count: int) -> None:
        """Write a split whose responses repeat the words of their prompts."""
        offset = 0 if split == "train" else 37
        rows: dict[str, list[Any]] = {
            key: []
            for key in ("id", "prompt_ids", "response_ids", "instruction", "input", "references")
        }
        for i in range(count):
            words = [self.words[(i * 3 + offset + j) % 7] for j in range(1 + i % 3)]
            prompt, answer = " ".join([self.words[7], *words]), " ".join(words)
            rows["id"].append(i)
            rows["prompt_ids"].append(self.tokenizer(prompt)["input_ids"])
            rows["response_ids"].append([*self.tokenizer(answer)["input_ids"], 0])
            rows["instruction"].append(prompt)
            rows["input"].append("")
            rows["references"].append([answer])
        Dataset.from_dict(rows).save_to_disk(self.folder / split / "dataset")
        self.manifest(split, **of_split("train" if split == "long" else split))

    def spec(self, method: str, **settings: Any) -> dict[str, Any]:
        settings = {**COMMON, **SETTINGS[method], **settings}
        asks = method not in METHODS or METHODS[method].asks_teacher(settings)
        taught = {"teacher": ["teacher-sft", 3], "asks_teacher": asks} if method != "sft" else {}
        if settings.get("start") == "sft":
            taught["init"] = ["student-sft", 3]
        return {
            "lineage": "student-sft" if method == "sft" else f"teacher-sft__student-{method}",
            **taught,
            "seed": 3,
            "model": "student",
            "method": method,
            "settings": settings,
            "max_length": 16,
            "max_prompt_length": 8,
            "dev_decoding": DECODING,
        }

    def train(
        self,
        name: str,
        method: str,
        *arguments: str,
        processes: int = 1,
        torchrun: bool = False,
        inputs: Mapping[str, str] | None = None,
        limit_file_kb: int | None = None,
        strike: Strike | None = None,
        **settings: Any,
    ) -> Any:
        """Start a training stage with outputs in the folder `name`.

        Args:
            processes: started by `torchrun` if `torchrun` is set, else forked.
            inputs: further inputs, or replacements of the default ones.
            limit_file_kb: maximum size of a file that it may write.
            strike: a signal that the stage sends to itself.
        """
        spec = self.spec(method, **settings)
        read = {"base": "student", "tokenizer": "tokenizer", "train": "train", "dev": "dev"}
        if method != "sft":
            read["teacher"] = "trained-teacher"
        if spec["settings"].get("start") == "sft":
            read["init"] = "trained-student"
        if spec["settings"].get("lm_weight"):
            read["corpus"] = "corpus"
        read |= inputs or {}
        outputs = ["model", "metrics", "manifest", *(["init"] if method == "sft" else [])]
        files = {"metrics": "metrics.jsonl", "manifest": "manifest.json"}
        return self.start(
            "train",
            spec,
            [f"{key}={folder}/manifest.json" for key, folder in read.items()],
            [f"{output}={name}/{files.get(output, output)}" for output in outputs],
            f"--processes={processes}",
            *arguments,
            limit_file_kb=limit_file_kb,
            torchrun=torchrun,
            strike=strike,
        )

    def outputs(self, teacher: str, kind: str) -> str:
        """Compute a teacher's outputs for the training rows, `kind` "hidden" or "top_k"; returns their name here."""
        name = f"{teacher}-{kind}"
        if not (self.folder / name).exists():
            spec = {"lineage": "teacher-sft", "seed": 3, "split": "train", "kind": kind}
            likeliest = {"top_k": 4} if kind == "top_k" else {}
            inputs = {"teacher": teacher, "data": "train", "tokenizer": "tokenizer"}
            files = ("outputs.safetensors", "metrics.jsonl", "manifest.json")
            self.finished(self.run("write_outputs", name, {**spec, **likeliest}, inputs, files))
        return name

    def generations(self, teacher: str) -> str:
        """Generate a teacher's responses to the training prompts; returns their name here."""
        name, part = f"{teacher}-writes", f"{teacher}-writes/part"
        if not (self.folder / name).exists():
            decoding = {"temperature": 1.0, "max_new_tokens": 8}
            spec = {"lineage": "teacher-sft", "seed": 3, "noise": 1, "decoding": decoding}
            inputs = {"teacher": teacher, "prompts": "train", "tokenizer": "tokenizer"}
            files = ("answers.jsonl", "metrics.jsonl", "manifest.json")
            self.finished(
                self.run("generate", part, {**spec, "part": 1, "parts": 1}, inputs, files)
            )
            inputs["piece"] = part
            files = ("dataset", "manifest.json")
            self.finished(self.run("join_generations", name, spec, inputs, files))
        return name

    def run(
        self,
        script: str,
        name: str,
        spec: Mapping[str, Any],
        inputs: Mapping[str, str],
        files: Sequence[str],
        *more: str,
        **how: Any,
    ) -> Forked:
        """Start a stage that reads files, or the manifests of folders, and writes files into the folder `name`."""
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        read = [
            f"{key}={path}" if Path(path).suffix else f"{key}={path}/manifest.json"
            for key, path in inputs.items()
        ]
        written = [f"{file.partition('.')[0]}={name}/{file}" for file in files]
        return self.start(script, spec, read, written, *more, **how)

    def evaluate(self, name: str, model: str, *arguments: str, **spec: Any) -> Any:
        """Start an evaluation stage with outputs in the folder `name`."""
        (self.folder / name).mkdir(exist_ok=True)
        return self.start(
            "evaluate",
            {
                "lineage": "student-sft",
                "seed": 3,
                "set": "dev",
                "seeds": [10, 20],
                "decoding": DECODING,
                "max_length": 16,
                **spec,
            },
            [f"model={model}/manifest.json", "data=dev/manifest.json", "tokenizer=tokenizer/manifest.json"],
            [
                f"scores={name}/scores.json", f"generations={name}/generations.jsonl",
                f"answers={name}/answers.jsonl", f"metrics={name}/metrics.jsonl",
            ],
            *arguments,
        )  # fmt: skip

    def start_evaluation_slowly(self, name: str, **arguments: Any) -> Any:
        """Start an evaluation with one answer at a time, so that a test can interrupt it."""
        return self.evaluate(name, arguments.pop("model"), "--micro-batch=1", **arguments)

    def start(
        self,
        script: str,
        spec: Any,
        inputs: list[str],
        outputs: list[str],
        *more: str,
        **how: Any,
    ) -> Forked:
        """Start any stage; `how` is passed to `Forked`."""
        command = [str(ROOT / "workflow" / "scripts" / f"{script}.py"), "--spec", json.dumps(spec)]
        command += [word for pair in inputs for word in ("--input", pair)]
        command += [word for pair in outputs for word in ("--output", pair)]
        return Forked([*command, *more], self.folder, **how)

    def finished(self, process: Any, code: int = 0) -> str:
        """Wait for a stage, check its exit code, and return its output."""
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, f"{out}\n{err}"
        return out + err
