"""Local files that an experiment names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from takd.runtime.digests import file_digest
from takd.runtime.errors import InputError


def files_below(place: Path, ending: str = "") -> list[Path]:
    """List a file itself, or all files below a folder with this ending, sorted by name, without hidden ones."""
    if place.is_file():
        return [place]
    found = (path for path in place.rglob(f"*{ending}") if path.is_file())
    return sorted(
        p for p in found if not any(q.startswith(".") for q in p.relative_to(place).parts)
    )


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
