"""Training seeds that are added until they are enough: the experiment with those that decisions ask for so far."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from takd.experiment.experiment import Experiment
from takd.runtime.records import DECISION, read_record


def decision(experiment: Experiment, seeds: int) -> str:
    """Path of the decision after so many training seeds, below the user's folder."""
    return f"results/{experiment.name}/looks/seeds{seeds}/{DECISION}"


@functools.cache
def first(experiment: Experiment, seeds: int) -> Experiment:
    """Return the experiment with its first training seeds only, without looks."""
    return replace(
        experiment,
        settings={**experiment.settings, "seeds": experiment.seeds[:seeds]},
        looks=(),
    )


def asked_for(experiment: Experiment, path_of: Callable[[int], str] | None = None) -> Experiment:
    """Return the experiment with the training seeds that the decisions ask for so far, without looks.

    Args:
        path_of: gives the path of the decision after so many seeds; by default, a missing one is not made yet.
    """
    for seeds in experiment.looks:
        path = experiment.root / (path_of(seeds) if path_of else decision(experiment, seeds))
        if (path_of is None and not path.is_file()) or read_record(path)["decided"]:
            return first(experiment, seeds)
    return first(experiment, len(experiment.seeds)) if experiment.looks else experiment


def look(experiment: Experiment, seeds: int) -> dict[str, Any]:
    """Settings of the stage that decides, after so many training seeds, whether more are needed."""
    looked_at = first(experiment, seeds)
    until = looked_at.settings["until"]
    return {
        "experiment": looked_at.name,
        "models": looked_at.parameters,
        "chains": [{"lineage": chain["lineage"]} for chain in looked_at.chains],
        "nodes": [list(node) for node in looked_at.nodes],
        "teacher_cache": [],
        "sets": until["sets"] or looked_at.sets,
        "seeds": looked_at.seeds,
        "decoding_seeds": looked_at.settings["evaluation"]["seeds"],
        "samples": 0,
        "judge": False,
        "until": until,
    }
