"""Imports of snakemake, done once in the process that the tests' runs are forked from."""

import importlib

import snakemake.cli

for name in ("jsonschema", "smart_open", "yaml"):  # the workflow's own
    importlib.import_module(name)

snakemake.cli.get_argument_parser()  # imports the plugins
