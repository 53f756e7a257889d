"""Training seeds that are added until they are enough, by jobs of a cluster."""

from pathlib import Path

from test_looks import WIDE, decisions, looking, reported, seeds

from slurm.cluster import Cluster
from slurm.conftest import Start
from slurm.runs import for_cluster


def test_a_look_submits_the_jobs_of_another_seed(
    cluster: Cluster, start: Start, tmp_path: Path
) -> None:
    """Three seeds are there; the look after them, which is no job, is undecided, and asks for a fourth."""
    local = looking(tmp_path / "project", WIDE, at_most=4)
    local.run("--quiet", "rules", "--config", "seeds=3")
    run = start(for_cluster(local.folder))
    assert "look after 3 training seeds: 0 of 1 differences decided" in run.succeed()
    assert decisions(local) == {3: False} and reported(local) == seeds(local) == [1, 2, 3, 4]
    counts = {rule: len(jobs) for rule, jobs in run.rules().items()}
    assert counts == {"sft": 1, "distill_kd": 1, "evaluate": 2, "likelihoods": 2}
    assert set(run.states()) == {"COMPLETED"}
    assert "Nothing to be done" in start(run.project).succeed()
    assert len(run.jobs()) == 6
