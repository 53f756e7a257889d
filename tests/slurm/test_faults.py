"""What goes wrong on a cluster, and what becomes of a training then. docs/faults.md says it for users.

Wherever a training goes on, it has to end with the weights of one that nothing disturbed, byte for byte.
"""

import time

from slurm.cluster import GRES, NODES, Cluster
from slurm.conftest import Start
from slurm.runs import LOG, PROFILE, TARGET, SlurmProject, slowed

# A job of the partition that goes first, on all GPUs.
URGENT = ("--partition=urgent", f"--nodes={len(NODES)}", f"--gres={GRES}", "--output=/dev/null")

# A minute for the first attempt, which is less than it needs; enough for the next, on any machine.
SHORT = "runtime: 1 if attempt == 1 else 20"
ASKS = "Checking the status of"  # what --verbose prints when Slurm is asked for jobs


def ends_as_undisturbed(project: SlurmProject, undisturbed: SlurmProject, total: int = 300) -> None:
    """The training is whole: its weights, and each of its steps told once."""
    assert project.weights() == undisturbed.weights()
    assert project.steps() == undisturbed.steps() == list(range(1, total + 1))
    assert not project.checkpoints()


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
    ends_as_undisturbed(project, undisturbed)


def test_requeued(
    cluster: Cluster, start: Start, project: SlurmProject, undisturbed: SlurmProject
) -> None:
    """Slurm queues the job again: the same job resumes, and no attempt is used up."""
    run = start(project, TARGET)
    cluster.call("scontrol", "requeue", run.until_checkpoint())
    run.succeed()
    assert run.states() == ["COMPLETED"] and run.jobs()[0]["Restarts"] == "1"
    assert project.resumed_from() > 0
    ends_as_undisturbed(project, undisturbed)


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
    ends_as_undisturbed(project, undisturbed)


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
    ends_as_undisturbed(project, undisturbed)


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
    ends_as_undisturbed(project, undisturbed)


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
    ends_as_undisturbed(project, undisturbed)


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
    ends_as_undisturbed(project, undisturbed)


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
    ends_as_undisturbed(project, undisturbed)


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
    ends_as_undisturbed(project, undisturbed)


def test_head_killed(
    cluster: Cluster, start: Start, project: SlurmProject, undisturbed: SlurmProject
) -> None:
    """Snakemake is killed while its job runs, and started again: no second copy trains."""
    run = start(project, TARGET)
    run.until_checkpoint()
    (trainer,) = run.trainers()
    with slowed(trainer):
        run.kill()
        refused = start(project, TARGET).fail()
        assert "locked" in refused
        assert run.trainers() == [trainer] and len(run.jobs()) == 1
    cluster.wait_until("the job ends", lambda: run.states() == ["COMPLETED"], 120)
    start(project, "--unlock").succeed()
    assert "Nothing to be done" in start(project, TARGET).succeed()
    ends_as_undisturbed(project, undisturbed)
