"""Files as stages read and write them, and what is wrong with those that users bring."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from takd.runtime.digests import file_digest, readable_json
from takd.runtime.errors import InputError

POINTER = b"version https://git-lfs"
# what a file with a wrong suffix (.safetensors or .json) really is, by its first bytes
OTHERS = {
    POINTER: "is a pointer of git-lfs and not the file itself; fetch the file (git lfs pull)",
    b"PK\x03\x04": "is a pickled or zipped file under this name; convert it (save_pretrained does so)",
    b"\x80": "is a pickled file under this name; convert it (save_pretrained does so)",
    b"<": "is a web page, such as an error or a login; fetch the file again",
}
AGAIN = "fetch or copy it again, all of it"


def write_json(path: Path, value: Any) -> None:
    """Write a value as canonical, indented JSON, atomically."""
    write_text(path, readable_json(value))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_lines(path: Path, records: Iterable[dict[str, Any]], **options: Any) -> None:
    """Write records as JSON lines, atomically; `options` are those of `json.dumps`."""
    write_text(path, "".join(json.dumps(record, **options) + "\n" for record in records))


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        what: whose file it is, such as "model 'm'", for the message.

    Raises:
        InputError: the file is missing, is not JSON, or holds no object.
    """
    try:
        content = path.read_bytes()
        found = json.loads(content)
    except OSError as error:
        raise InputError(f"{what}: {path} cannot be read: {error.strerror}; {AGAIN}.") from None
    except (ValueError, RecursionError) as error:
        first_line = str(error).strip().partition("\n")[0]
        wrong = foreign(content) or f"is not JSON ({first_line}); {AGAIN}"
        raise InputError(f"{what}: {path} {wrong}.") from None
    if not isinstance(found, dict):
        raise InputError(f"{what}: {path} has to hold one JSON object; {AGAIN}.")
    return found


def model_folder(root: Path, folder: str) -> str:
    """Return the folder of a model, also where that of its training is named, which holds it as `model`."""
    inner = f"{folder}/model"
    named = (root / folder / "config.json").is_file()
    return inner if not named and (root / inner / "config.json").is_file() else folder


def foreign(content: bytes) -> str:
    """Describe what a file really is, by its first bytes, and the remedy; empty if unknown."""
    if not content.strip():
        return f"is empty; {AGAIN}"
    return next((what for start, what in OTHERS.items() if content.startswith(start)), "")


def check_unchanged(source: Mapping[str, Any]) -> None:
    """Raise InputError if local files changed since the workflow was planned.

    `sha256` holds the digest of the one file, or pairs of name and digest for a folder.
    """
    kind = next((kind for kind in ("json", "text", "folder", "gguf") if kind in source), None)
    if kind is None:
        return
    place = Path(source[kind])
    for entry in source.get("sha256", []):
        path, planned = (place, entry) if isinstance(entry, str) else (place / entry[0], entry[1])
        if not path.is_file():
            raise InputError(f"{path}: no such file, though the workflow was planned with it.")
        if file_digest(path) != planned:
            raise InputError(
                f"{path} changed after the workflow was planned, or is not what the manifest beside its"
                " folder says; start the workflow again, or make that model anew."
            )
