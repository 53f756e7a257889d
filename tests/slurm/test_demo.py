"""The demo through the Slurm profile, from nothing to its report."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import sleep

import pytest

from slurm.cluster import Cluster, environment_of
from slurm.experiments import demo_experiment
from slurm.runs import Run, SlurmProject, make_slurm_project

TRAININGS = {"teacher", "sft", "distill_kd", "distill_minillm"}
ASKING = {"evaluate", "likelihoods"}
MODELS = 6  # the teacher, two supervised models, the assistant, the student with each learning rate


@dataclass
class Demo:
    """A finished run, its jobs by rule, and what trainings saw as their GPUs, by process."""

    project: SlurmProject
    run: Run
    jobs: dict[str, list[dict[str, str]]]
    devices: dict[int, str | None]


@pytest.fixture(scope="module")
def demo(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo, run to its end."""
    project = make_slurm_project(tmp_path_factory.mktemp("demo") / "demo", demo_experiment())
    run = Run(cluster, project)
    devices: dict[int, str | None] = {}
    try:
        while run.running and run.in_time():
            for trainer in run.trainers():
                devices[trainer] = environment_of(trainer).get("CUDA_VISIBLE_DEVICES")
            sleep(0.5)
        run.succeed()
        yield Demo(project, run, run.rules(), devices)
    finally:
        run.kill()
        cluster.reset()


def test_every_job_succeeds_at_once(demo: Demo) -> None:
    assert set(demo.run.states()) == {"COMPLETED"}
    report = demo.project.folder / "results/small/report"
    assert "minillm" in (report / "results.csv").read_text()


def test_small_stages_stay_where_snakemake_runs(demo: Demo) -> None:
    """Only what needs a GPU is a job of its own."""
    assert set(demo.jobs) == {*TRAININGS, *ASKING}
    counts = {rule: len(jobs) for rule, jobs in demo.jobs.items()}
    trainings = {"teacher": 1, "sft": 2, "distill_kd": 2, "distill_minillm": 1}
    assert counts == {**trainings, "evaluate": MODELS, "likelihoods": MODELS}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (
            TRAININGS,
            {"gpus": "gpu:v100l:4", "cores": "16", "memory": "64000", "time": "10:00:00"},
        ),
        (
            ASKING,
            {"gpus": "gpu:v100l:1", "cores": "4", "memory": "16000", "time": "05:00:00"},
        ),
    ],
)
def test_a_job_gets_what_the_profile_says(
    demo: Demo, rules: set[str], expected: dict[str, str]
) -> None:
    """As Slurm tells it, not as Snakemake asked for it."""
    for rule in rules:
        for job in demo.jobs[rule]:
            given = {
                "gpus": job["JOB_GRES"],
                "cores": job["NumCPUs"],
                "memory": job["Mem"],
                "time": job["TimeLimit"],
            }
            assert given == expected, rule
            assert job["NumNodes"] == "1"


def test_each_value_of_a_sweep_is_a_job_with_logs_of_its_own(demo: Demo) -> None:
    """Slurm takes the names of their models, which have `@` and `=`, for comments and folders."""
    table = (demo.project.folder / "results/small/report/results.csv").read_text()
    jobs = sorted(demo.jobs["distill_kd"], key=lambda job: job["Comment"])
    for job, rate in zip(jobs, ("0.001", "0.002"), strict=True):
        model = f"student@learning_rate={rate}"
        assert f"_{model}_kd_1" in job["Comment"] and f"_{model}_kd_1/" in job["StdOut"]
        assert Path(job["StdOut"]).is_file() and f"{model}-kd" in table
        lineage = f"teacher-sft__assistant-minillm__{model}-kd"
        assert (demo.project.folder / f"logs/small/models/{lineage}/seed1.log").stat().st_size


def test_a_training_sees_its_gpus(demo: Demo) -> None:
    """Its process has them in its environment, and Slurm's own wish to have them counted."""
    assert set(demo.devices.values()) == {"0,1,2,3"}
    assert len(demo.devices) == MODELS


def test_a_second_run_has_nothing_to_do(demo: Demo, cluster: Cluster) -> None:
    again = Run(cluster, demo.project)
    assert "Nothing to be done" in again.succeed()
    assert len(again.jobs()) == sum(map(len, demo.jobs.values()))
