"""Outlines of the package's modules, taken once in the process that others are forked from.

A run and each of its stages take digests of the modules, whose text is mostly the same in copies of the workflow: what
is known of a text is kept, unless a copy has another way to make it. Import this last: it takes the package out of what
is imported, since a fork imports that of its copy.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[1] / "src"
OUTLINED = "takd.runtime.code_digest", "_read"
code_digest = importlib.import_module(OUTLINED[0])
MAKER = Path(code_digest.__file__).read_text(encoding="utf-8")
TEXTS = [path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")]
KNOWN = {text: code_digest._read(text) for text in TEXTS}
for name in [name for name in sys.modules if name.partition(".")[0] == "takd"]:
    del sys.modules[name]
cache = functools.cache


def knowing(function: Callable[..., Any]) -> Any:
    """`functools.cache`, with what is known for the function that takes most of the time."""
    made = cache(function)
    if (function.__module__, function.__name__) != OUTLINED:
        return made
    if Path(function.__code__.co_filename).read_text(encoding="utf-8") != MAKER:
        return made
    return lambda text: KNOWN.get(text) or made(text)


functools.cache = knowing
