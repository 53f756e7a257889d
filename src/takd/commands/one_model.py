"""The experiment that `takd evaluate` runs: one model, alone and taken as it is, on files of one's own."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from takd.commands.new_file import HUB
from takd.experiment.schema import load_schema
from takd.models.weight_files import positions, safetensors_parameters
from takd.runtime.errors import InputError
from takd.runtime.files import model_folder

SAMPLING = ("temperature", "top_k", "top_p")
GREEDY_SEED = 10  # greedy decoding takes one, which changes nothing
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9.]+")


def experiment_of(options: Namespace) -> dict[str, Any]:
    """Make the experiment in which a model stands alone.

    Raises:
        InputError: there is no model or no data, or an option is wrong.
    """
    folder = Path(model_folder(Path.cwd(), str(options.model)))
    hub = str(options.model) if HUB.fullmatch(str(options.model)) and not folder.exists() else ""
    if hub:
        folder = _fetched(hub, options.revision)
    if not (folder / "config.json").is_file():
        right = (
            "a folder with config.json, safetensors and a tokenizer, such as save_pretrained writes"
        )
        raise InputError(f"--model {options.model}: holds no model; it has to be {right}.")
    if safetensors_parameters(folder) is None:
        right = "convert its weights (save_pretrained does so), as other formats run code when read"
        raise InputError(f"--model {options.model}: holds no whole safetensors; {right}.")
    prompt, response = options.max_prompt_length, options.max_new_tokens
    most = positions(folder)
    if most is not None and prompt + response > most:
        said = f"--max-prompt-length {prompt} and --max-new-tokens {response}"
        raise InputError(f"--model {options.model}: reads {most} tokens; {said} must be less.")
    model = _cleaned(options.name or hub.rpartition("/")[2] or _name(folder)) or "model"
    asked = {name: getattr(options, name) for name in SAMPLING}
    sampling = {name: value for name, value in asked.items() if value is not None}
    if options.greedy and sampling:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sampling)
        right = "is for sampling, but --greedy takes the likeliest tokens; remove one of the two"
        raise InputError(f"{names} {right}.")
    seeds = options.seeds or ([GREEDY_SEED] if options.greedy else None)
    return {
        "title": f"{model}, evaluated alone",
        "description": f"{hub} of the hub, commit {folder.name}" if hub else "",
        "tokenizer": {"folder": str((options.tokenizer or folder).resolve())},
        "models": {model: {"weights": {"folder": str(folder.resolve())}, "trained": True}},
        "data": {
            "template": _template(options),
            "max_length": prompt + response,
            "max_prompt_length": prompt,
            **({"system": options.system} if options.system else {}),
        },
        "chains": [{"models": [model]}],
        "evaluation": {
            "sets": _sets(options),
            **({"seeds": seeds} if seeds else {}),
            "decoding": {"sample": not options.greedy, **sampling},
            "precision": options.precision,
            "rouge_tokenizer": options.rouge_tokenizer,
        },
    }


def _fetched(name: str, revision: str) -> Path:
    """Return the folder of a model in the hub's cache, with what is missing there fetched."""
    from takd.models.hub import COMMIT, commit_of, fetch_model
    from takd.models.tokenizer_check import CHAT_TEMPLATE, GENERATION

    try:
        commit = revision if COMMIT.fullmatch(revision) else commit_of(name, revision, "model")
        return fetch_model(name, commit, [CHAT_TEMPLATE, GENERATION])
    except InputError as error:
        raise InputError(f"--model {name}: is no folder here, and {error}") from error


def _name(folder: Path) -> str:
    """Name of a model by its folder; by those above where it is the `model` of a training."""
    parts = folder.resolve().parts
    return ".".join(parts[-3:-1]) if parts[-1] == "model" and len(parts) > 3 else parts[-1]


def _cleaned(name: str) -> str:
    """Replace what a name of a model or a set cannot hold."""
    return NOT_IN_NAMES.sub(".", name).strip(".")


def _sets(options: Namespace) -> dict[str, Any]:
    """Sources of the evaluation sets, by the names of their files unless others are given."""
    found: dict[str, Any] = {}
    names = load_schema()["properties"]["evaluation"]["properties"]["sets"]["propertyNames"]
    for text in options.data:
        name, _, place = text.rpartition("=") if not Path(text).exists() else ("", "", text)
        path = Path(place)
        if not path.exists():
            raise InputError(f"--data {text}: {path} does not exist; name a file of JSON lines.")
        name = _cleaned(name or path.stem) or "data"
        if name in names["not"]["enum"]:
            name += ".set"
        if name in found:
            right = f"name one otherwise, as in --data mine={place}"
            raise InputError(f"--data {text}: two sets are called {name}; {right}.")
        source: dict[str, Any] = {"folder" if path.is_dir() else "json": str(path.resolve())}
        if options.columns:
            source["columns"] = _columns(options.columns)
        if options.answer:
            source["answer"] = {"pattern": options.answer}
        if options.rows:
            source["rows"] = [0, options.rows]
        found[name] = source
    return found


def _columns(pairs: list[str]) -> dict[str, str]:
    found = dict(pair.partition("=")[::2] for pair in pairs)
    known = load_schema()["$defs"]["source"]["properties"]["columns"]["properties"]
    for name, column in found.items():
        if not column or name not in known:
            right = f"one of {', '.join(known)}, and a column, as in output=answer"
            raise InputError(f"--columns {name}={column}: must be {right}.")
    return found


def _template(options: Namespace) -> str | dict[str, str]:
    """The template as the experiment has it: a name, or texts with and without an input."""
    text, longer = options.template, options.template_with_input
    if "{instruction}" not in text:
        if longer or not re.fullmatch(r"\w+", text):
            right = "a name (alpaca, chat) or a text with {instruction}"
            raise InputError(f"--template {text!r}: must be {right}.")
        return text
    longer = longer or text.replace("{instruction}", "{instruction}\n{input}")
    return {"without_input": text, "with_input": longer}
