"""Jobs of a Slurm cluster whose controller does not answer for a while.

The executor plugin (2.8.0) forgets all its jobs, for good, when a round of status queries fails: the run then waits
for ever. It fails where slurmctld is restarted and no slurmdbd answers in its place.
"""

import sys
from collections.abc import AsyncIterator
from typing import Any

PLUGIN = "snakemake_executor_plugin_slurm"


def keep_jobs() -> None:
    """Make the plugin, where it is loaded, ask for its jobs again after a round that failed."""
    plugin = sys.modules.get(PLUGIN)
    if plugin is None or hasattr(plugin.Executor.check_active_jobs, "keeps_jobs"):
        return
    ask = plugin.Executor.check_active_jobs

    async def check_active_jobs(self: Any, active_jobs: list[Any]) -> AsyncIterator[Any]:
        # without a job it may be asked before it is set up
        answers = self._status_query_calls if active_jobs else None
        async for job in ask(self, active_jobs):
            yield job
        if active_jobs and self._status_query_calls == answers:  # not a word: no job was handled
            self.logger.warning("Slurm does not answer; its jobs are asked for again.")
            for job in active_jobs:
                yield job

    check_active_jobs.keeps_jobs = True  # type: ignore[attr-defined]
    plugin.Executor.check_active_jobs = check_active_jobs
