"""Write made-up results with valid digests: `write_json` and `write_lines` for the tests' fixtures."""

import json
from pathlib import Path
from typing import Any

from takd.runtime import stage
from takd.runtime.files import read_json
from takd.runtime.records import RECORDS, closing_digest, digests, sealed
from takd.runtime.stage import LOG


def write_json(path: Path, value: Any) -> None:
    """Write JSON; a record gets the digests of the files beside it, and its own."""
    if path.name in RECORDS:
        value = sealed({"inputs": {}, **value, "files": value.get("files", {}) | _beside(path)})
    stage.write_json(path, value)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines; a log gets its closing digest, and a record beside it the new digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) + "\n" for row in rows]
    if path.stem == LOG:
        before = "".join(lines[:-1]).encode()
        lines[-1:] = [json.dumps(_closed(before, rows[-1])) + "\n"]
    path.write_text("".join(lines))
    seal(path.parent)


def seal(folder: Path) -> None:
    """Update the digests in the records of a folder."""
    for name in RECORDS:
        if (folder / name).exists():
            write_json(folder / name, read_json(folder / name))


def _closed(before: bytes, line: dict[str, Any]) -> dict[str, Any]:
    line = {key: value for key, value in line.items() if key != "digest"}
    return {**line, "digest": closing_digest(before, line)}


def _beside(record: Path) -> dict[str, str]:
    """Digests that a stage would record: of the folders of a model or data set, and of other files."""
    folders = ("model", "init", "dataset", "tokenizer")
    paths = [
        path
        for path in record.parent.glob("*")
        if path.name in folders
        or (path.is_file() and path.name not in (*RECORDS, "metrics.jsonl", "card.md"))
    ]
    return digests(paths, record.parent)
