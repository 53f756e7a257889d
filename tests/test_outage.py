"""What the executor plugin does with its jobs when Slurm does not answer; tests/slurm has it with a real one."""

import asyncio
import contextlib
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import snakemake_executor_plugin_slurm as plugin

from takd.runtime import slurm_executor_patch


@pytest.fixture
def executor() -> plugin.Executor:
    """One that is not set up yet, as far as it goes without Snakemake."""
    slurm_executor_patch.keep_jobs()
    made = object.__new__(plugin.Executor)
    settings = SimpleNamespace(
        init_seconds_before_status_checks=2, status_attempts=2, status_command="squeue"
    )
    made.workflow = SimpleNamespace(executor_settings=settings)
    made.logger = logging.getLogger("slurm")
    return made


def asked(executor: plugin.Executor, jobs: list[SimpleNamespace]) -> list[SimpleNamespace]:
    """Jobs that are to be asked for again."""

    async def collect() -> list[SimpleNamespace]:
        return [job async for job in executor.check_active_jobs(jobs)]

    return asyncio.run(collect())


def test_a_job_is_asked_for_again_after_a_round_without_an_answer(
    executor: plugin.Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("squeue", "sacct", "scontrol"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    executor._status_query_calls = executor._status_query_failures = 0
    executor.run_uuid = "run"
    executor.status_rate_limiter = contextlib.AsyncExitStack()
    job = SimpleNamespace(external_jobid="7", aux={})
    assert asked(executor, [job]) == [job]
    assert executor._status_query_failures == 2


def test_it_may_be_asked_before_it_is_set_up(executor: plugin.Executor) -> None:
    """Its thread starts first; an error there would end the thread without a word, and the run would wait for ever."""
    assert asked(executor, []) == []


def test_keeping_jobs_twice_is_keeping_them_once() -> None:
    slurm_executor_patch.keep_jobs()
    once = plugin.Executor.check_active_jobs
    slurm_executor_patch.keep_jobs()
    assert plugin.Executor.check_active_jobs is once
