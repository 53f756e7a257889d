"""Imports of snakemake, done once in the process that the tests' runs are forked from."""

import importlib

import snakemake.cli
import snakemake_executor_plugin_slurm as slurm

# the workflow's own
for name in ("difflib", "jsonschema", "regex", "safetensors", "smart_open", "yaml"):
    importlib.import_module(name)

snakemake.cli.get_argument_parser()  # imports the plugins

# Slurm is asked for its jobs each second: by default ever more rarely while none ends.
slurm.Executor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, to: None)

import warm_outlines  # noqa: E402, F401
