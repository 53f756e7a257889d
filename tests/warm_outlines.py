"""The package's modules, compiled and outlined once in the process that others are forked from.

A run and each of its stages import the package and take digests of its modules, whose text is mostly the same in copies
of the workflow: what is known of a text is kept, unless a copy has another way to make it. Import this last: it takes
the package out of what is imported, since a fork imports that of its copy.
"""

import _imp
import functools
import importlib
import marshal
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[1] / "src"
OUTLINED = "takd.runtime.code_digest", "_read"
code_digest = importlib.import_module(OUTLINED[0])
MAKER = Path(code_digest.__file__).read_text(encoding="utf-8")
FILES = {path.read_bytes(): path for path in SOURCE.rglob("*.py")}
KNOWN = {text.decode(): code_digest._read(text.decode()) for text in FILES}
COMPILED = {
    text: marshal.dumps(compile(text, path, "exec", dont_inherit=True))
    for text, path in FILES.items()
}
for name in [name for name in sys.modules if name.partition(".")[0] == "takd"]:
    del sys.modules[name]
cache, compiled = functools.cache, SourceFileLoader.source_to_code


def knowing(function: Callable[..., Any]) -> Any:
    """`functools.cache`, with what is known for the function that takes most of the time."""
    made = cache(function)
    if (function.__module__, function.__name__) != OUTLINED:
        return made
    if Path(function.__code__.co_filename).read_text(encoding="utf-8") != MAKER:
        return made
    return lambda text: KNOWN.get(text) or made(text)


def source_to_code(loader: Any, data: Any, path: Any, **how: Any) -> Any:
    """Compile a module, unless its text is known."""
    known = COMPILED.get(bytes(data)) if isinstance(data, bytes) else None
    if known is None:
        return compiled(loader, data, path, **how)
    code = marshal.loads(known)
    _imp._fix_co_filename(code, path)  # type: ignore[attr-defined]
    return code


functools.cache = knowing
SourceFileLoader.source_to_code = source_to_code  # type: ignore[method-assign]
