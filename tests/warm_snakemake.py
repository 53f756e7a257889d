"""Imports of snakemake, done once in the process that the tests' runs are forked from."""

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import snakemake.cli
import snakemake_executor_plugin_slurm as slurm

for name in ("jsonschema", "smart_open", "yaml"):  # the workflow's own
    importlib.import_module(name)

snakemake.cli.get_argument_parser()  # imports the plugins

# Slurm is asked for its jobs each second: by default ever more rarely while none ends.
slurm.Executor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, to: None)

# A run takes the digest of the package's modules, whose text is mostly the same in copies of the workflow: what is
# known of a text is kept, unless a copy has another way to make it.
SOURCE = Path(__file__).resolve().parents[1] / "src"
OUTLINED = "takd.runtime.code_digest", "_read"
code_digest = importlib.import_module(OUTLINED[0])
MAKER = Path(code_digest.__file__).read_text(encoding="utf-8")
TEXTS = [path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")]
KNOWN = {text: code_digest._read(text) for text in TEXTS}
for name in [name for name in sys.modules if name.partition(".")[0] == "takd"]:
    del sys.modules[name]  # a run imports those of its copy
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
