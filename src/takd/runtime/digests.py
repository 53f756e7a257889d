"""Digests of code, files and settings, which decide whether a stage has to rerun.

Snakemake compares parameters as text and files by checksum, but does not see imported modules. So
each stage gets a digest of the code that it uses as a parameter. The digest covers the syntax tree,
without comments and docstrings, of the entry modules of the stage and all modules of this package
that they import. Editing a comment reruns nothing; editing a method reruns the stages of that
method and their dependents. Imports by name at run time are not detected: pass those modules as
entries.
"""

import ast
import contextlib
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from takd.runtime.errors import InputError

SOURCE = Path(__file__).resolve().parents[2]


def canonical_json(value: Any) -> str:
    """Serialise to JSON with sorted keys and no blanks, so that equal settings give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def readable_json(value: Any) -> str:
    """Serialise to JSON as it is stored in files: sorted keys, one per line."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def short_digest(*parts: str) -> str:
    """Return the first 16 hexadecimal digits of the sha256 of zero-terminated parts."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() + b"\0")
    return total.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SMALL = 16 * 2**20
"""Bytes up to which a source is hashed at each start."""
MANY = 2**30  # bytes above which the reading of a file is announced
SETTLED = (
    2.0  # age in seconds of a change after which the next change surely has another time stamp
)
KNOWN = SOURCE.parent / ".snakemake/takd-digests"
"""Digests of larger sources, a file each."""

PLACES = ("json", "text", "folder", "gguf", "url", "hub", "revision", "file")


def without_places(value: Any) -> Any:
    """Remove, at any depth, the locations of data and weights that have a `sha256`.

    The digest identifies a source, so the same file in another location is the same source.
    """
    if isinstance(value, Mapping):
        left_out = PLACES if "sha256" in value else ()
        kept = {k: without_places(v) for k, v in value.items() if k not in left_out}
        # one form for a single file, whether it is downloaded or local
        return {**kept, "sha256": [kept["sha256"]]} if isinstance(kept.get("sha256"), str) else kept
    return [without_places(each) for each in value] if isinstance(value, list) else value


def source_digest(path: Path) -> str:
    """Return the sha256 of a file that an experiment reads.

    Digests of large files are cached on disk and recomputed when size, time or inode change, since
    each job needs them.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        status = path.stat()
        known = (str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)
        return _source_digest(path, known)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; it has to be a readable file.") from None


@functools.cache
def _source_digest(path: Path, known: tuple[str, int, int, int]) -> str:
    _, size, changed, _ = known
    if size <= SMALL:
        return file_digest(path)
    entry = KNOWN / short_digest(*map(str, known))
    with contextlib.suppress(OSError):
        text = entry.read_text(encoding="ascii")
        if re.fullmatch(r"[0-9a-f]{64}", text):
            return text
    if size > MANY:
        print(f"Reading {path} for its digest ({size / 1e9:.1f} GB) ...", file=sys.stderr)
    digest = file_digest(path)
    if time.time() - changed / 1e9 > SETTLED:
        with contextlib.suppress(
            OSError
        ):  # no space or no permission: the file is hashed again next time
            KNOWN.mkdir(parents=True, exist_ok=True)
            partial = entry.with_name(f"{entry.name}.{os.getpid()}")
            partial.write_text(digest, encoding="ascii")
            partial.replace(entry)
    return digest


def folder_digest(folder: Path) -> str:
    """Return the sha256 over the names and contents of all files below a folder, in hexadecimal.

    Leaves out the timestamp file that Snakemake adds to an output folder after the job.
    """
    total = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.is_file())
    for path in sorted(path for path in files if path.name != ".snakemake_timestamp"):
        total.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\0".encode())
    return total.hexdigest()


def git_commit() -> str | None:
    """Return the current commit, with `-dirty` if tracked files differ; None without git."""
    command = [
        "git",
        "-C",
        str(SOURCE),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache
def code_digest(*entries: str) -> str:
    """Return the digest of the modules that `entries` import from this package, transitively.

    Args:
        entries: dotted names of modules.

    Raises:
        ModuleNotFoundError: an entry is no module below the source folder.
    """
    for entry in entries:
        if _module_file(entry) is None:
            raise ModuleNotFoundError(f"no module '{entry}' below {SOURCE}")
    outlines: dict[str, str] = {}
    seen: set[str] = set()
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if file := _module_file(module):
            outlines[module], imported = _read(file.read_text(encoding="utf-8"))
            package = module if file.name == "__init__.py" else module.rpartition(".")[0]
            waiting += (name for found in imported for name in _names(found, package))
            # importing a module runs the __init__ of each package above it
            waiting += [module.rsplit(".", level)[0] for level in range(1, module.count(".") + 1)]
    return short_digest(*(part for name in sorted(outlines) for part in (name, outlines[name])))


def _module_file(module: str) -> Path | None:
    base = SOURCE.joinpath(*module.split("."))
    candidates = (base.with_name(base.name + ".py"), base / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


Imported = ast.Import | ast.ImportFrom
DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@functools.cache
def _read(text: str) -> tuple[str, list[Imported]]:
    """Outline and imports of a module; cached, since many stages share modules."""
    parts: list[str] = []
    imported: list[Imported] = []
    _outline(ast.parse(text), parts, imported)
    return "".join(parts), imported


def _names(node: Imported, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    else:
        above = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
        base = ".".join(filter(None, [above if node.level else "", node.module or ""]))
        yield base
        # `from package import module` names a module in the alias
        yield from (f"{base}.{alias.name}" for alias in node.names)


def _outline(node: Any, parts: list[str], imported: list[Imported]) -> None:
    """Append the syntax tree as text, without positions and docstrings; collect imports.

    `ast.dump` is not used because its output changes between Python versions, and a new interpreter
    should not cause retraining.
    """
    if isinstance(node, ast.AST):
        parts.append(type(node).__name__)
        if isinstance(node, ast.Constant):
            # `kind` (the prefix of a string) does not matter; the type distinguishes 1, True and
            # "1"
            parts.append(f"({type(node.value).__name__} {node.value!r})")
            return
        if isinstance(node, Imported):
            imported.append(node)
        parts.append("(")
        for name in node._fields:
            value = getattr(node, name, None)
            if name == "body" and isinstance(node, DOCUMENTED):
                value = _without_docstring(node.body)
            if value is not None and value != []:
                parts.append(f"{name}=")
                _outline(value, parts, imported)
        parts.append(")")
    elif isinstance(node, list):
        parts.append("[")
        for item in node:
            _outline(item, parts, imported)
        parts.append("]")
    else:
        parts.append(f"{node!r},")


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    value = first.value if isinstance(first, ast.Expr) else None
    return body[1:] if isinstance(value, ast.Constant) and isinstance(value.value, str) else body
