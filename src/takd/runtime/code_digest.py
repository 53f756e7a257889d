"""Digest of a stage's code, which decides whether the stage has to rerun.

Snakemake compares parameters as text and files by checksum, but does not see imported modules. So
each stage gets a digest of its code as a parameter. It covers the syntax trees, without comments
and docstrings, of the stage's module and of all modules of this package that it imports, except
`takd.runtime`: how a stage is started, locked, logged and resumed changes no number, so nothing
there is a reason to rerun (docs/staleness.md). Imports by name at run time are not detected: pass
those modules as entries.
"""

import ast
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from takd.runtime.digests import short_digest

SOURCE = Path(__file__).resolve().parents[2]
OUTSIDE = "takd.runtime"


def git_commit() -> str | None:
    """Return the current commit, with `-dirty` if tracked files differ; None without git."""
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    command = ["git", "-C", str(SOURCE), *describe]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache
def code_digest(*entries: str) -> str:
    """Return the digest of the modules that `entries` import, transitively, without `OUTSIDE`.

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
        if module in seen or module == OUTSIDE or module.startswith(f"{OUTSIDE}."):
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
    return _file_of(SOURCE, module)


@functools.cache
def _file_of(source: Path, module: str) -> Path | None:
    """File of a module; cached, since stages share some hundred names, most of which are of no module."""
    base = source.joinpath(*module.split("."))
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
