"""A training that is spread over the nodes of its job."""

import json
from typing import Any

from slurm.cluster import NODES, Cluster, environment_of
from slurm.conftest import Start
from slurm.runs import PROFILE, SECONDS, TARGET, TRAINED, SlurmProject


def test_two_nodes_train_together(cluster: Cluster, start: Start, project: SlurmProject) -> None:
    """Each has its process, and they agree on one model."""
    project.replace(PROFILE, "nodes: 1", "nodes: 2")

    def shorten(experiment: dict[str, Any]) -> None:
        experiment["models"]["teacher"]["training"]["sft"].update(steps=40, evaluate_every=20)

    project.experiment(shorten)
    run = start(project, TARGET)
    places: set[str | None] = set()

    def both_train() -> bool:
        places.update(environment_of(each).get("SLURMD_NODENAME") for each in run.trainers())
        return places == set(NODES) or not run.running

    cluster.wait_until("both nodes train", both_train, SECONDS)
    run.succeed()
    (job,) = run.jobs()
    assert job["NumNodes"] == "2" and places == set(NODES)
    lines = (project.folder / TRAINED / "metrics.jsonl").read_text().splitlines()
    (end,) = (line for line in map(json.loads, lines) if line["kind"] == "end")
    assert end["processes"] == 2
