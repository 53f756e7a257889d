"""What befalls Snakemake itself while its jobs run. docs/faults.md says it for users."""

from slurm.cluster import Cluster
from slurm.conftest import Start
from slurm.runs import SECONDS, TARGET, SlurmProject, slowed


def test_interrupted(
    cluster: Cluster, start: Start, project: SlurmProject, undisturbed: SlurmProject
) -> None:
    """Ctrl-C: the jobs are cancelled, the folder is free again, and the same command goes on."""
    run = start(project, TARGET)
    run.until_checkpoint()
    run.interrupt()
    run.fail()
    assert run.states() == ["CANCELLED"] and not run.trainers()
    again = start(project, TARGET)
    again.succeed()
    assert project.resumed_from() > 0
    project.must_end_as(undisturbed)


def test_killed(
    cluster: Cluster, start: Start, project: SlurmProject, undisturbed: SlurmProject
) -> None:
    """Snakemake is killed while its job runs, and started again and again: no second copy trains."""
    run = start(project, TARGET)
    job = run.until_checkpoint()
    (trainer,) = run.trainers()
    with slowed(trainer):
        run.kill()
        assert "locked" in start(project, TARGET).fail()
        start(project, "--unlock").succeed()
        assert f"job {job} of an earlier run still works in this folder" in (
            start(project, TARGET).fail()
        )
        assert run.trainers() == [trainer] and len(run.jobs()) == 1
    cluster.wait_until("the job ends", lambda: run.states() == ["COMPLETED"], SECONDS)
    assert "Nothing to be done" in start(project, TARGET).succeed()
    project.must_end_as(undisturbed)
