"""Protection against temporary outages of the Slurm controller.

The executor plugin (2.8.0) permanently forgets all its jobs when a round of status queries fails,
for example while slurmctld restarts and there is no slurmdbd; the run then waits forever.
"""

import sys
from collections.abc import AsyncIterator
from typing import Any

PLUGIN = "snakemake_executor_plugin_slurm"


def keep_jobs() -> None:
    """Patch the plugin, if it is loaded, to keep its jobs after a failed round of queries."""
    plugin = sys.modules.get(PLUGIN)
    if plugin is None or hasattr(plugin.Executor.check_active_jobs, "keeps_jobs"):
        return
    ask = plugin.Executor.check_active_jobs

    async def check_active_jobs(self: Any, active_jobs: list[Any]) -> AsyncIterator[Any]:
        # without jobs, the plugin may call this before its attributes exist
        answers = self._status_query_calls if active_jobs else None
        async for job in ask(self, active_jobs):
            yield job
        # no query succeeded, so no job was handled
        if active_jobs and self._status_query_calls == answers:
            self.logger.warning("Slurm does not answer; its jobs are asked for again.")
            for job in active_jobs:
                yield job

    check_active_jobs.keeps_jobs = True  # type: ignore[attr-defined]
    plugin.Executor.check_active_jobs = check_active_jobs
