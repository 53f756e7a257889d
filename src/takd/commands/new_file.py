"""Text of an experiment file for given models and data, with comments where a user will want to change something."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from takd.data.conversations import COLUMNS
from takd.experiment.labels import size_text
from takd.experiment.schema import load_schema
from takd.models.tokenizer_check import has_tokenizer
from takd.models.weight_files import positions, safetensors_parameters
from takd.runtime.errors import InputError
from takd.runtime.files import read_json

HUB = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME
SIZE = re.compile(r"\d+(\.\d+)?[KMB]")
HELD_OUT = 0.05  # share of the training rows that stand in for a missing dev or test file
HELD_OUT_ROWS = 500  # and at most so many
CHAT = re.compile(r"instruct|chat|-it\b", re.IGNORECASE)

TEXT = """\
# {name}: {chain}
#
#   snakemake --profile profiles/local -n --config experiment={name}       the plan: which jobs, and why
#   python -m takd plan --experiment {name}                                hours, memory, disk
#   snakemake --profile profiles/local --config experiment={name}          the run
#
# docs/experiment.md has every key, with its default and what it costs.
title: {title}
description: ""                         # what you want to know; the report begins with it
variables: {{data: {data}}}             # another place for once: --config experiment={name} data=FOLDER
tokenizer: {tokenizer}                  # one for all models
models:
{models}
data:{held}
  train: {train}
  dev: {dev}                            # scored during training; the best weights by it are kept
  template: {template}                  # how instruction and input become a prompt: alpaca, chat, or your own
  max_length: {length}                  # tokens of prompt and answer; the data report counts longer rows
  max_prompt_length: {prompt}           # what is left of max_length is the longest answer
chains:
{chains}
seeds: [1]                              # training seeds; three or more say whether a difference is the method's
training:                               # what one model needs otherwise: models.NAME.training
  sft:                                  # on the answers of the data: the teacher; each student as start and baseline
    epochs: 3
    batch_size: 32                      # over all GPUs; what one holds at once is micro_batch in the profile
    learning_rate: 2e-5
    evaluate_every: 100                 # steps between two scores on dev
{settings}
evaluation:
  sets:
{sets}
  seeds: [10, 20]                       # of sampling: each prompt is answered once for each
report:
  trackers: []                          # [tensorboard], [trackio], [wandb]: curves while it runs (docs/watching.md)
"""


def experiment_text(
    root: Path,
    name: str,
    places: Sequence[str],
    data: Path,
    methods: Sequence[str],
    tokenizer: str | None,
) -> str:
    """Fill in the file."""
    between = len(places) - 2
    roles = ["assistant"] if between == 1 else [f"assistant{at}" for at in range(1, between + 1)]
    roles = ["teacher", *roles, "student"]
    weights = [weights_of(root, place) for place in places]
    own = weights_of(root, tokenizer)[0] if tokenizer else weights[0][0]
    folder = root / own.get("folder", own.get("gguf", ""))
    if "hub" not in own and not has_tokenizer(folder):
        raise InputError(
            f"{folder}: holds no tokenizer; name a folder or a .gguf file that does with --tokenizer."
        )
    longest = [positions(root / w["folder"]) for w, _ in weights if "folder" in w]
    length = min([512, *(limit for limit in longest if limit)])
    splits = splits_of(root, data)
    chains = [roles] if len(roles) == 2 else [[roles[0], roles[-1]], roles]
    labels = ["direct", "through the assistant" + "s" * (between > 1)]
    shown = ", ".join(methods)
    lines = [
        f"  - {{label: {label}, models: [{', '.join(chain)}], methods: [{shown}]}}"
        for label, chain in zip(labels, chains, strict=False)
    ]
    described = []
    for role, (source, size) in zip(roles, weights, strict=True):
        stated = [f"    parameters: {size}"] if size else []
        described += [f"  {role}:", *stated, f"    weights: {_flow(source)}"]
    filled = TEXT.format(
        name=name,
        chain=" → ".join(places),
        title=json.dumps(name),
        data=json.dumps(_relative(root, data)),
        tokenizer=_flow(own),
        models="\n".join(described),
        held=splits["held"],
        train=_flow(splits["train"]),
        dev=_flow(splits["dev"]),
        template="chat" if splits["chat"] or _has_chat(folder, own) else "alpaca",
        length=length,
        prompt=length // 2,
        chains="\n".join(lines),
        settings="\n".join(_settings(method) for method in methods),
        sets="\n".join(f"    {key}: {_flow(source)}" for key, source in splits["sets"].items()),
    )
    return re.sub(r"(?m)^(?! *#)(.*?\S) +(# .*)$", _aligned, filled)


def _aligned(match: re.Match[str]) -> str:
    """Put comments into one column where the line leaves room."""
    return f"{match[1]:39} {match[2]}"


def _settings(method: str) -> str:
    """Settings of a distillation that users change first."""
    known = load_schema()["$defs"]["methods"]["properties"][method]["properties"]
    steps, rate = known["steps"].get("default"), known["learning_rate"]["default"]
    published = "the published number; a tenth shows whether it learns"
    length = f"steps: {steps} # {published}" if steps is not None else "epochs: 3"
    return f"  {method}:\n    {length}\n    learning_rate: {rate}"


def weights_of(root: Path, word: str) -> tuple[dict[str, str], str | None]:
    """Read `[SIZE=]PLACE`: the source of weights, and their size where it is needed."""
    size, equals, place = word.partition("=")
    if not (equals and SIZE.fullmatch(size)):
        size, place = "", word
    path = (root / place).expanduser() if not place.startswith("~") else Path(place).expanduser()
    if path.is_dir():
        counted = safetensors_parameters(path)
        if not size and not counted:
            raise InputError(
                f"--models {word}: the folder holds no whole config.json and safetensors."
            )
        return {"folder": _relative(root, path)}, size or size_text(counted or 0)
    if path.suffix == ".gguf" and path.is_file():
        if not size:
            raise InputError(f"--models {word}: lacks its size; write it as 135M={place}")
        return {"gguf": _relative(root, path)}, size
    repository, _, commit = place.partition("@")
    if not HUB.fullmatch(repository) or path.suffix == ".gguf":
        raise InputError(
            f"--models {word}: is no folder, no .gguf file, and no SIZE=NAME@COMMIT of the hub, such as"
            " 124M=openai-community/gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e"
        )
    if not (size and commit):
        found, count = _on_hub(repository, commit or None)
        commit, size = commit or found, size or (size_text(count) if count else "")
    if not size:
        raise InputError(
            f"--models {word}: the hub does not tell its size; write it as 124M={place}"
        )
    return {"hub": repository, "revision": commit}, size


@functools.cache
def _on_hub(repository: str, commit: str | None) -> tuple[str, int | None]:
    """Ask the hub for the newest commit of a model and its number of parameters."""
    from huggingface_hub import model_info

    try:
        info = model_info(repository, revision=commit, timeout=10, expand=["sha", "safetensors"])
    except Exception as error:  # of the network, the hub, or a name that it does not know
        cause = str(error).strip().partition("\n")[0]
        raise InputError(
            f"--models {repository}: is no folder here, and the hub does not say its commit and size ({cause}); write"
            f" SIZE={repository}@COMMIT."
        ) from None
    return str(info.sha), info.safetensors.total if info.safetensors else None


def splits_of(root: Path, data: Path) -> dict[str, Any]:
    """Find the files of a folder; rows held out of training stand in for missing ones."""
    folder = data.expanduser() if data.is_absolute() else root / data.expanduser()
    if folder.is_file():
        raise InputError(
            f"--data {data}: is a file; name its folder, and call the file train.jsonl."
        )
    if not (folder / "train.jsonl").is_file():
        there = ", ".join(sorted(path.name for path in folder.glob("*"))[:10]) or "nothing"
        raise InputError(f"--data {data}: holds no train.jsonl; there is {there}.")
    files = {path.stem: f"eval/{path.name}" for path in sorted(folder.glob("eval/*.jsonl"))}
    if (folder / "test.jsonl").is_file():
        files = {"test": "test.jsonl", **files}
    dev = (folder / "dev.jsonl").is_file()
    first = {"json": "{data}/train.jsonl"}
    train: dict[str, Any] = dict(first)
    if not dev or not files:
        with open(folder / "train.jsonl", "rb") as file:
            count = sum(1 for line in file if line.strip())
        held = min(max(round(count * HELD_OUT), 1), HELD_OUT_ROWS)
        start = held * ((not dev) + (not files))
        if start >= count:
            text = f"train.jsonl has {count} rows, too few to hold some out for dev and test."
            raise InputError(f"--data {data}: {text}")
        train["rows"] = [start, count]
    held_out = [name for name, there in (("dev", dev), ("test", files)) if not there]
    comment = f"# the first rows of train.jsonl are held out for {' and '.join(held_out)}"
    with open(folder / "train.jsonl", "rb") as file:
        row = next((line for line in file if line.strip()), b"")
    return {
        "chat": any(f'"{name}"'.encode() in row for name in COLUMNS),
        "held": f" {comment}" if held_out else "",
        "train": train,
        "dev": {"json": "{data}/dev.jsonl"} if dev else {**first, "rows": [0, held]},
        "sets": {
            re.sub(r"[^A-Za-z0-9._-]", "-", key): {"json": f"{{data}}/{file}"}
            for key, file in files.items()
        }
        or {"heldout": {**first, "rows": [start - held, start]}},
    }


def _relative(root: Path, path: Path) -> str:
    """Path as an experiment file has it: from the repository, or absolute outside of it."""
    whole = (path if path.is_absolute() else root / path).absolute()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else str(whole)


def _has_chat(folder: Path, source: Mapping[str, str]) -> bool:
    """Whether prompts are best made by the tokenizer's chat template: where it has one."""
    if "hub" in source:
        return bool(CHAT.search(source["hub"]))
    try:
        config = read_json(folder / "tokenizer_config.json")
    except (OSError, ValueError):
        return False
    return bool(config.get("chat_template")) or (folder / "chat_template.jinja").is_file()


def _flow(value: Mapping[str, Any]) -> str:
    """Write a mapping on one line; texts as JSON, which YAML reads."""
    items = (
        f"{key}: {item if isinstance(item, list) else json.dumps(item)}"
        for key, item in value.items()
    )
    return f"{{{', '.join(items)}}}"
