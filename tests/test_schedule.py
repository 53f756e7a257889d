"""The first line of a plan: hours in all, hours from start to end, and the longest chain of jobs."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Project

from takd.__main__ import main
from takd.preflight import jobs
from takd.preflight.flops import Lengths, Rows
from takd.preflight.jobs import Job
from takd.preflight.plan import Planned
from takd.preflight.rates import Estimate
from takd.preflight.schedule import headline, schedule

SLURM = {"executor": "slurm", "jobs": 40}


def planned(
    name: str, hours: float | None, *needs: str, gpus: int = 1, to_do: bool = True
) -> Planned:
    """A training of `name`, whose estimate is of all its GPUs together."""
    job = Job(
        rule="sft",
        output=name,
        wildcards={"model": name, "seed": "1"},
        resources={"processes": str(gpus)},
        threads=gpus,
        to_do=to_do,
        inputs=needs,
        outputs=(name, f"{name}.log"),
    )
    estimate = None if hours is None else Estimate(hours * 3600 * gpus, "assumed")
    return Planned(job, estimate=estimate, places=gpus)


CHAIN = [
    *(planned("teacher", 4), planned("assistant", 2, "teacher.log")),
    *(planned("student", 1, "assistant", "teacher"), planned("other", 3, "teacher")),
]


def test_the_longest_chain_is_that_of_hours_not_of_jobs() -> None:
    found = schedule(CHAIN, SLURM)
    assert [each.job.output for each in found.path] == ["teacher", "assistant", "student"]
    assert (found.longest, found.busy, found.elapsed, found.jobs) == (7, 10, 7, 4)
    longer = schedule([*CHAIN, planned("last", 5, "other")], SLURM)
    assert [each.job.output for each in longer.path] == ["teacher", "other", "last"]


@pytest.mark.parametrize(
    ("profile", "hours"),
    [
        ({**SLURM, "jobs": 1}, 10),
        ({**SLURM, "jobs": 2}, 7),
        ({"cores": 1}, 10),
        ({"cores": "all", "resources": {"processes": 2}}, 7),
        ({"cores": 8, "resources": ["processes=1", "mem_mb=100"]}, 10),
    ],
)
def test_a_profile_bounds_what_runs_at_once(profile: dict[str, Any], hours: float) -> None:
    assert schedule(CHAIN, profile).elapsed == hours


def test_a_job_of_more_gpus_than_there_are_runs_alone() -> None:
    large = planned("large", 2, gpus=8)
    found = schedule([large, planned("small", 1)], {"resources": {"processes": 4}})
    assert (found.elapsed, found.busy) == (3, 17)


def test_finished_jobs_cost_nothing_and_unknown_hours_are_said() -> None:
    done = planned("teacher", 4, to_do=False)
    found = schedule([done, *CHAIN[1:]], SLURM)
    assert (found.jobs, found.longest) == (3, 3)
    planner = planner_of(Lengths.PREPARED)
    assert headline(planner, CHAIN, SLURM) == (
        "mine: 4 jobs, 10 GPU hours (v100); 7.0 h with 40 jobs at once; the longest chain of jobs takes 7.0 h:"
        " sft teacher 4.0 h → sft assistant 2.0 h → sft student 60 min"
    )
    some = headline(planner, [done, planned("student", None, "teacher")], SLURM)
    assert some == "mine: 1 jobs, at least 0.0 GPU hours (v100); at least 0 s with 40 jobs at once"
    assert headline(planner, [done], SLURM) == "mine: nothing is left to do"


def planner_of(lengths: Lengths, on_cpu: bool = False) -> Any:
    return SimpleNamespace(
        experiment=SimpleNamespace(name="mine"),
        gpu=SimpleNamespace(on_cpu=on_cpu, name="v100"),
        rows={"dev": Rows(9, 5, 4), "train": Rows(9, 5, 4, lengths)},
    )


def test_starts_count_and_what_is_not_here_makes_an_upper_bound() -> None:
    found = [
        replace(planned("teacher", 0.5, "data", gpus=2), start=36.0),
        Planned(Job("data", "data", outputs=["data"]), start=36.0),
    ]
    assert schedule(found, {"cores": 2}).busy == pytest.approx(2 * 0.51)  # of cores that train
    text = headline(planner_of(Lengths.ESTIMATED, on_cpu=True), found, {"cores": 2})
    assert text == (
        "mine: 2 jobs, 61 min of CPU cores; 31 min with 2 cores at once; the longest chain of jobs takes 31 min:"
        " sft teacher 31 min"
    )
    most = headline(planner_of(Lengths.LONGEST), found, {"cores": 2})
    assert most.startswith("mine: 2 jobs, up to 1.0 GPU hours (v100); up to 31 min with 2 cores")


def test_jobs_of_a_real_dry_run_are_linked(
    finished: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file that a job reads and another makes is found, and the line stands first."""
    assert not [job for job in finished.jobs() if job.to_do]
    found = finished.jobs("--forcerun", "card")
    assert {job.rule for job in found if job.to_do} == {"card", "report"}
    found = [replace(job, to_do=True) for job in found]
    made = {file for job in found for file in job.outputs}
    linked = {job.rule for job in found if set(job.inputs) & made}
    assert linked == {job.rule for job in found} - {"tokenizer"}
    monkeypatch.setattr(jobs, "of_experiment", lambda *_: found)
    monkeypatch.setattr("takd.__main__.ROOT", finished.folder)
    assert main(["plan", "--experiment", "small", "--gpu", "v100"]) == 0
    first, blank, head = capsys.readouterr().out.splitlines()[:3]
    assert first.startswith("small: ") and "the longest chain of jobs takes" in first
    assert (blank, head[:5]) == ("", "stage")
