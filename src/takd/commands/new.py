"""Write an experiment file for a user's own models and data, from options or answers, and check it.

python -m takd new NAME --models TEACHER ASSISTANT STUDENT --data FOLDER
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from takd.commands.new_file import experiment_text, splits_of, weights_of
from takd.data.filters import Digest
from takd.data.sources import rows
from takd.experiment import experiment as experiments
from takd.experiment import specs
from takd.experiment.experiment import Experiment
from takd.experiment.lineage import SUPERVISED
from takd.experiment.schema import ROW_FILTERS, suggest
from takd.methods.registry import METHODS, REPLICATED
from takd.runtime.errors import InputError

DISTILLING = [method for method in METHODS if method != SUPERVISED]

Ask = Callable[[str, str], str]

QUESTIONS = {
    "name": ("Name of the experiment (letters, digits and . _ + -)", ""),
    "models": (
        "Models, the teacher first, then assistants if any, then the student; each a folder, a .gguf file or\n"
        "SIZE=NAME@COMMIT of the hub, such as 124M=openai-community/gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e",
        "",
    ),
    "data": (
        "Folder with train.jsonl, and dev.jsonl and eval/*.jsonl if any; rows with instruction, input, output",
        "",
    ),
    "methods": (f"Methods, of {', '.join(DISTILLING)}", REPLICATED),
}


def write(root: Path, given: Mapping[str, Any], ask: Ask | None = None) -> Path:
    """Write `config/experiments/NAME.yaml`, and return its path once all checks have passed.

    Args:
        given: `name`, `models`, `data`, `methods`, `tokenizer`; None for what is to be asked.
        ask: returns the answer to a question with a default; without it, what is missing is an error.

    Raises:
        InputError: an option is missing or wrong, the file exists, or the experiment would be refused; no file is left.
    """
    options = {key: _answer(root, key, given.get(key), ask) for key in QUESTIONS}
    path = experiments.file_of(root, options["name"][0])
    models, methods, data = options["models"], options["methods"], Path(options["data"][0])
    text = experiment_text(root, path.stem, models, data, methods, given.get("tokenizer"))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:  # since the check
        raise _there(path) from None
    try:
        _check(experiments.load(path, root))
    except BaseException:
        path.unlink()
        raise
    return path


def _answer(root: Path, key: str, given: str | Sequence[str] | None, ask: Ask | None) -> list[str]:
    """Return the words of an option, or of the first answer that is right."""
    if given:
        words = [given] if isinstance(given, str) else list(given)
        _check_option(root, key, words)
        return words
    question, default = QUESTIONS[key]
    while True:
        answer = ask(question, default) if ask else default
        words = answer.split() if key in ("models", "methods") else [answer] if answer else []
        try:
            _check_option(root, key, words)
            return words
        except InputError as error:
            if ask is None:
                raise
            print(error, file=sys.stderr)


def _check_option(root: Path, key: str, words: Sequence[str]) -> None:
    """Raise InputError unless an option can be used."""
    if not words:
        option = "the name of the experiment" if key == "name" else f"--{key}"
        usage = "python -m takd new NAME --models TEACHER STUDENT --data FOLDER."
        raise InputError(f"{option} is missing: {usage}")
    if key == "name" and (path := experiments.file_of(root, words[0])).exists():
        raise _there(path)
    if key == "data":
        splits_of(root, Path(words[0]))
    if key == "models":
        if len(words) < 2:
            raise InputError("--models: a chain has a teacher and a student, at least two models.")
        for word in words:
            weights_of(root, word)
    for method in words if key == "methods" else ():
        if method not in DISTILLING:
            raise InputError(f"--methods {method}: is none; {suggest(method, DISTILLING)}")


def _there(path: Path) -> InputError:
    return InputError(f"{path}: is there already and stays as it is; choose another name.")


def in_terminal() -> Ask | None:
    """Return a function that asks in the terminal; None without one."""
    if not sys.stdin.isatty():
        return None

    def ask(question: str, default: str) -> str:
        try:
            return input(f"{question}{f' [{default}]' if default else ''}: ").strip() or default
        except EOFError:
            raise InputError(
                "the answers ended before the last question; nothing was written."
            ) from None

    return ask


def _check(experiment: Experiment) -> None:
    """Read all rows, as the run will: a file with other keys is refused now."""
    experiment.require_files()
    for split in experiment.splits:
        source = specs.data(experiment, split)["source"]
        found = Digest()
        try:
            for row in rows({k: v for k, v in source.items() if k not in ROW_FILTERS}):
                found.add(row)
        except InputError as error:
            raise InputError(f"{split}: {error}") from None


def said(path: Path, root: Path) -> str:
    """Tell what was written and the next commands."""
    name = path.stem
    return (
        f"{path.relative_to(root)} is written, and its settings and rows are checked. Look through it, then:\n"
        f"  snakemake --profile profiles/local -n --config experiment={name}     # the plan: which jobs, and why\n"
        f"  python -m takd plan --experiment {name}                              # hours, memory, disk\n"
        f"  snakemake --profile profiles/local --config experiment={name}        # the run\n"
        f"  python -m takd watch {name}                                          # its progress, in a second terminal"
    )
