"""Fixtures: a cluster, runs on it, and an uninterrupted training."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import made_once

from slurm.cluster import Cluster, missing
from slurm.experiments import training_experiment
from slurm.runs import PROFILE, TARGET, Run, SlurmProject, make_slurm_project

Start = Callable[..., Run]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster for this session, or for each pytest-xdist worker; always stopped at the end."""
    if reason := missing():
        pytest.skip(reason)
    # not pytest's own folder: the paths of sockets have to be short
    with tempfile.TemporaryDirectory(prefix="takd-slurm-") as folder, Cluster(Path(folder)) as up:
        yield up


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path) -> Iterator[Start]:
    """Function that starts runs. After the test, their output is printed, and the cluster is reset.

    The folder of the test is there until then.
    """
    runs: list[Run] = []

    def begin(project: SlurmProject, *arguments: str) -> Run:
        runs.append(Run(cluster, project, *arguments))
        return runs[-1]

    yield begin
    for run in runs:
        run.kill()
        print(f"=== snakemake in {run.project.folder}\n{run.output}")
        for log in sorted((run.project.folder / "logs").rglob("*.log")):
            print(f"--- {log}\n{log.read_text(errors='replace')}")
    print(f"=== Slurm\n{cluster.log()}")
    cluster.reset()


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> SlurmProject:
    """A copy with an uninterrupted training. Shared: tests must copy it before changing it."""

    def train(folder: Path) -> None:
        project = make_slurm_project(folder, training_experiment())
        # more threads than cores would slow each other down
        project.replace(PROFILE, "  teacher: ?cores * gpus", "  teacher: 1")
        run = Run(cluster, project, TARGET)
        try:
            run.succeed()
        finally:
            run.kill()

    return SlurmProject(made_once(tmp_path_factory, "undisturbed", train))


@pytest.fixture
def project(undisturbed: SlurmProject, tmp_path: Path) -> SlurmProject:
    """A copy in which everything but the training is finished."""
    project = undisturbed.copy(tmp_path / "project")
    for folder in ("results/small/models", "logs"):
        shutil.rmtree(project.folder / folder)
    return project
