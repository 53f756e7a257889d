"""Jobs that end badly, and what their next attempt does. docs/faults.md says it for users."""

from pathlib import Path

from slurm.cluster import Cluster
from slurm.conftest import Start
from slurm.runs import LOG, PROFILE, SECONDS, TARGET, SlurmProject, slowed, snakemake_of


def test_failing(cluster: Cluster, start: Start, project: SlurmProject) -> None:
    """A stage fails: its sentence is told, both its logs are named, and the run ends in failure after all attempts."""
    (project.folder / "results/small/base/teacher/model/config.json").write_text("{")
    run = start(project, TARGET, "--retries", "1")
    output = run.fail()
    assert run.states() == ["FAILED", "FAILED"]
    for job in run.jobs():
        assert f"log: {LOG}, {job['StdOut']} (check log file(s) for error details)" in output
        assert "--spec" not in Path(job["StdOut"]).read_text()  # nor is all that in Slurm's log
    assert "--spec" not in output and "Logfile" not in output
    assert "base/teacher/model/config.json: is not what was written" in output.splitlines()[-1]
    assert not (project.folder / TARGET).exists()


def test_cancelled(
    cluster: Cluster, start: Start, project: SlurmProject, undisturbed: SlurmProject
) -> None:
    """Somebody cancels the job: the next attempt resumes."""
    run = start(project, TARGET)
    cluster.call("scancel", run.until_checkpoint())
    output = run.succeed()
    assert "SLURM status is: 'CANCELLED'" in output
    assert f"kill -INT {run.process.pid}`" in output and "press Ctrl-C" in output
    assert run.states() == ["CANCELLED", "COMPLETED"]
    assert project.resumed_from() > 0
    project.must_end_as(undisturbed)


def test_memory_limit(
    cluster: Cluster, start: Start, project: SlurmProject, undisturbed: SlurmProject
) -> None:
    """A job that needs more memory than it has is ended, and gets more in the next attempt."""
    project.replace(PROFILE, "memory: 16000", "memory: 125")  # for each of four GPUs
    run = start(project, TARGET)
    output = run.succeed()
    log = run.jobs()[0]["StdOut"]
    assert log in output and "exceeded memory limit" in Path(log).read_text()
    assert run.states()[0] == "FAILED" and run.states()[-1] == "COMPLETED"
    given = [int(job["Mem"]) for job in run.jobs()]
    assert given == [500, 750, 1000, 1250][: len(given)]
    project.must_end_as(undisturbed)


def test_cancelled_when_all_but_done(
    cluster: Cluster, start: Start, project: SlurmProject, undisturbed: SlurmProject
) -> None:
    """The stage is done, but its job is cancelled before Snakemake has taken note: little is done again."""
    run = start(project, TARGET)
    job = run.until_checkpoint()
    (trainer,) = run.trainers()
    with slowed(snakemake_of(trainer), share=0):
        cluster.wait_until("the stage ends", lambda: not run.trainers(), SECONDS)
        assert (project.folder / TARGET).exists()
        cluster.call("scancel", job)
        cluster.wait_until("the job ends", lambda: run.states() == ["CANCELLED"])
    run.succeed()
    project.must_end_as(undisturbed)
    assert project.resumed_from() > 0
