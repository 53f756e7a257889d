"""Jobs that end badly, and what their next attempt does. docs/faults.md says it for users."""

from slurm.cluster import Cluster
from slurm.conftest import Start
from slurm.runs import LOG, PROFILE, TARGET, SlurmProject, slowed

# A minute for the first attempt, which is less than it needs; enough for the next, on any machine.
SHORT = "runtime: 1 if attempt == 1 else 20"


def test_failing(cluster: Cluster, start: Start, project: SlurmProject) -> None:
    """A stage fails: both its logs are named and shown, and the run ends in failure after all attempts."""
    (project.folder / "results/small/base/teacher/model/config.json").write_text("{")
    run = start(project, TARGET, "--retries", "1")
    output = run.fail()
    assert run.states() == ["FAILED", "FAILED"]
    for job in run.jobs():
        assert f"log: {LOG}, {job['StdOut']} (check log file(s) for error details)" in output
        assert f"Logfile {LOG}:" in output and f"Logfile {job['StdOut']}:" in output
    assert "not a valid JSON file" in output  # the reason itself
    assert not (project.folder / TARGET).exists()


def test_cancelled(
    cluster: Cluster, start: Start, project: SlurmProject, undisturbed: SlurmProject
) -> None:
    """Somebody cancels the job: the next attempt resumes."""
    run = start(project, TARGET)
    cluster.call("scancel", run.until_checkpoint())
    output = run.succeed()
    assert "SLURM status is: 'CANCELLED'" in output
    assert run.states() == ["CANCELLED", "COMPLETED"]
    assert project.resumed_from() > 0
    project.must_end_as(undisturbed)


def test_memory_limit(
    cluster: Cluster, start: Start, project: SlurmProject, undisturbed: SlurmProject
) -> None:
    """A job that needs more memory than it has is ended, and gets more in the next attempt."""
    project.replace(PROFILE, "memory: 16000", "memory: 125")  # for each of four GPUs
    run = start(project, TARGET)
    assert "exceeded memory limit" in run.succeed()
    assert run.states()[0] == "FAILED" and run.states()[-1] == "COMPLETED"
    given = [int(job["Mem"]) for job in run.jobs()]
    assert given == [500, 750, 1000, 1250][: len(given)]
    project.must_end_as(undisturbed)


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
        cluster.wait_until("the training stops", lambda: trainer not in run.trainers(), 120)
    output = run.succeed()
    assert "its time is up; the next run goes on from there" in output
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
