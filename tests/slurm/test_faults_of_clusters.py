"""What a cluster does to jobs that go on. docs/faults.md says it for users."""

import time

from slurm.cluster import GRES, NODES, Cluster
from slurm.conftest import Start
from slurm.runs import TARGET, SlurmProject

# A job of the partition that goes first, on all GPUs.
URGENT = ("--partition=urgent", f"--nodes={len(NODES)}", f"--gres={GRES}", "--output=/dev/null")
ASKS = "Checking the status of"  # what --verbose prints when Slurm is asked for jobs


def test_requeued(
    cluster: Cluster, start: Start, project: SlurmProject, undisturbed: SlurmProject
) -> None:
    """Slurm queues the job again: the same job resumes, and no attempt is used up."""
    run = start(project, TARGET)
    cluster.call("scontrol", "requeue", run.until_checkpoint())
    run.succeed()
    assert run.states() == ["COMPLETED"] and run.jobs()[0]["Restarts"] == "1"
    assert project.resumed_from() > 0
    project.must_end_as(undisturbed)


def test_preempted(
    cluster: Cluster, start: Start, project: SlurmProject, undisturbed: SlurmProject
) -> None:
    """A job that goes first takes the GPUs: the training waits, and resumes."""
    run = start(project, TARGET)
    job = run.until_checkpoint()
    cluster.call("sbatch", *URGENT, "--wrap", "sleep 1000")
    cluster.wait_until("the training is queued again", lambda: run.states() == ["PENDING"])
    urgent = cluster.call("squeue", "--noheader", "--partition=urgent", "--format=%i %T")
    assert urgent.split()[1] == "RUNNING"
    cluster.call("scancel", urgent.split()[0])
    run.succeed()
    assert [each["JobId"] for each in run.jobs()] == [job]
    assert run.states() == ["COMPLETED"] and run.jobs()[0]["Restarts"] == "1"
    assert project.resumed_from() > 0
    project.must_end_as(undisturbed)


def test_node_lost(
    cluster: Cluster, start: Start, project: SlurmProject, undisturbed: SlurmProject
) -> None:
    """The node breaks down: the same job resumes on the other."""
    run = start(project, TARGET)
    run.until_checkpoint()
    (lost,) = (job["NodeList"] for job in run.jobs())
    cluster.lose_node(lost)
    run.succeed()
    (job,) = run.jobs()
    assert job["JobState"] == "COMPLETED" and job["Restarts"] == "1"
    assert {job["NodeList"], lost} == set(NODES)
    assert project.resumed_from() > 0
    project.must_end_as(undisturbed)


def test_controller_away(
    cluster: Cluster, start: Start, project: SlurmProject, undisturbed: SlurmProject
) -> None:
    """slurmctld is away for a while: the training runs on, and so does the run."""
    run = start(project, TARGET, "--verbose")
    run.until_checkpoint()
    asked = run.output.count(ASKS)
    cluster.stop_controller()
    began = time.monotonic()
    cluster.wait_until(
        "half a minute, in which Slurm was asked",
        lambda: time.monotonic() > began + 30 and run.output.count(ASKS) > asked,
        200,
    )
    cluster.start_controller()
    run.succeed()
    assert run.states() == ["COMPLETED"] and run.jobs()[0]["Restarts"] == "0"
    project.must_end_as(undisturbed)
