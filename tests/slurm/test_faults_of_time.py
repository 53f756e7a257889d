"""A training whose job has too little time. docs/faults.md says it for users."""

from slurm.cluster import Cluster
from slurm.conftest import Start
from slurm.runs import PROFILE, SECONDS, TARGET, SlurmProject, slowed

# A minute for the first attempt, which is less than it needs; enough for the next, on any machine.
SHORT = "runtime: 1 if attempt == 1 else 20"


def test_time_is_up(
    cluster: Cluster, start: Start, project: SlurmProject, undisturbed: SlurmProject
) -> None:
    """The training stops by itself before its time is up; the next slice resumes."""
    project.replace(PROFILE, "runtime: ?60 * hours", SHORT)
    run = start(project, TARGET)
    job = run.until_checkpoint()
    (trainer,) = run.trainers()
    # of a minute, 5 % are less than what it takes to start; of hours they are enough
    cluster.call("scontrol", "update", f"jobid={job}", "timelimit=10")
    with slowed(trainer):
        cluster.wait_until("the training stops", lambda: trainer not in run.trainers(), SECONDS)
    output = run.succeed()
    assert "its time is up; the next run resumes from there" in output
    assert run.states()[0] == "FAILED" and run.states()[-1] == "COMPLETED"
    assert project.resumed_from() > 0
    project.must_end_as(undisturbed)


def test_time_limit(
    cluster: Cluster, start: Start, project: SlurmProject, undisturbed: SlurmProject
) -> None:
    """A training that does not stop by itself is ended by Slurm, and resumes from its last checkpoint."""
    project.replace(PROFILE, "runtime: ?60 * hours", SHORT)
    run = start(project, TARGET)
    run.until_checkpoint()
    (trainer,) = run.trainers()
    with slowed(trainer, share=0):
        cluster.wait_until("Slurm ends it", lambda: run.states()[0] == "TIMEOUT", 150)
    output = run.succeed()
    assert "SLURM status is: 'TIMEOUT'" in output
    assert run.states()[-1] == "COMPLETED"
    assert project.resumed_from() > 0
    project.must_end_as(undisturbed)
