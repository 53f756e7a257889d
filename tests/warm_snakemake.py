"""Imports of snakemake, done once in the process that the tests' runs are forked from."""

import ast
import functools
import importlib
from pathlib import Path

import snakemake.cli

for name in ("jsonschema", "smart_open", "yaml"):  # the workflow's own
    importlib.import_module(name)

snakemake.cli.get_argument_parser()  # imports the plugins

# A run takes the digest of the package's modules, whose text is mostly the same in copies of the workflow.
ast.parse = functools.cache(ast.parse)
for path in (Path(__file__).resolve().parents[1] / "src/takd").rglob("*.py"):
    ast.parse(path.read_text(encoding="utf-8"))
