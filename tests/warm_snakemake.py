"""Imports of snakemake, done once in the process that the tests' runs are forked from."""

import importlib
import threading

import snakemake.cli
import snakemake_executor_plugin_slurm as slurm
from snakemake.scheduling.job_scheduler import JobScheduler

# the workflow's own
for name in ("difflib", "jsonschema", "regex", "safetensors", "smart_open", "yaml"):
    importlib.import_module(name)

snakemake.cli.get_argument_parser()  # imports the plugins

# Slurm is asked for its jobs without long waits: by default ever more rarely while none ends.
ASKED = property(lambda self: 0.3, lambda self, to: None)  # s
slurm.Executor.next_seconds_between_status_checks = ASKED


def look_again_later(scheduler: JobScheduler, seconds: float) -> None:
    """As Snakemake's own, which it waits for at its end: a second after the last job began."""
    timer = threading.Timer(seconds, lambda: scheduler._open_jobs.release())
    timer.daemon = True
    timer.start()


JobScheduler._schedule_reevalutation = look_again_later

import warm_outlines  # noqa: E402, F401
