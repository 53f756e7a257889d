"""Files of a local data folder, in the order in which they are read, and what the folder may refer to."""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from takd.runtime.errors import InputError

# files that determine what `datasets` reads, YAML and JSON
CARD, CONFIGURATION = "README.md", ".huggingface.yaml"
STATES = ("state.json", "*/state.json")
FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", re.S | re.M)


def files_below(place: Path, ending: str = "") -> list[Path]:
    """List a file itself, or all files below a folder with this ending, sorted by name, without hidden ones."""
    if place.is_file():
        return [place]
    found = (path for path in place.rglob(f"*{ending}") if path.is_file())
    return sorted(
        p for p in found if not any(q.startswith(".") for q in p.relative_to(place).parts)
    )


def check_within(folder: Path) -> None:
    """Raise InputError if a folder makes `datasets` read files that are hidden or outside of it."""
    for file, named in _named(folder):
        path = PurePosixPath(named.replace("\\", "/"))
        hidden = any(part.startswith(".") and part not in (".", "..") for part in path.parts)
        if path.is_absolute() or ".." in path.parts or ":" in named or named[:1] == "~":
            problem = "which lies outside of the folder"
        elif hidden:
            problem = "which is hidden and not compared by content"
        else:
            continue
        raise InputError(
            f"{file}: names the data file {named[:200]!r}, {problem}; copy it into the folder and name it there."
        )


def _named(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file that refers to data files or folders, with the reference."""
    for name in (CARD, CONFIGURATION):
        file = folder / name
        if file.is_file():
            for key in ("data_files", "data_dir", "path", "base_path"):
                yield from ((file, each) for each in _below(_parsed(file), key))
    for file in sorted(each for pattern in STATES for each in folder.glob(pattern)):
        yield from ((file, each) for each in _below(_parsed(file), "filename"))


def _parsed(file: Path) -> Any:
    """Parse a dataset card, a configuration file or a state."""
    state = file.suffix == ".json"
    try:
        text = file.read_text(encoding="utf-8")
        if file.name == CARD:
            front = FRONT.search(text)
            text = front[1] if front else ""
        found = json.loads(text) if state else yaml.safe_load(text)
        json.dumps(found, default=str, skipkeys=True)  # fails for an alias that contains itself
        return found
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        wanted = "save the data again (save_to_disk)" if state else "correct or remove it"
        said = str(error).strip().partition("\n")[0]
        raise InputError(f"{file}: cannot be read ({said}); {wanted}.") from None


def _below(value: Any, key: str, named: bool = False) -> Iterator[str]:
    """Yield all texts under a key, at any depth."""
    if isinstance(value, dict):
        for name, each in value.items():
            # the name of the split is not a file
            yield from _below(each, key, (named and name != "split") or name == key)
    elif isinstance(value, list):
        for each in value:
            yield from _below(each, key, named)
    elif named and isinstance(value, str):
        yield value
