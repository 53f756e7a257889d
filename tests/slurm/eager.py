"""Run snakemake, and ask Slurm for its jobs every second: by default ever more rarely while none ends."""

import os
import sys

import snakemake_executor_plugin_slurm as plugin
from snakemake.cli import main

plugin.Executor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, to: None)
sys.path[0] = os.getcwd()  # as `python -m snakemake` has it
main()
