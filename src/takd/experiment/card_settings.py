"""Settings of a model card, taken from the experiment; read while Snakemake plans."""

from typing import Any

from takd.experiment.experiment import Experiment
from takd.experiment.lineage import split


def card_settings(experiment: Experiment, lineage: str, seed: int) -> dict[str, Any]:
    """Settings of the stage that writes the card of one model.

    They cover the models of its chain only, so that adding a chain or a seed rewrites no card.
    """
    hops = [hop.model for hop in split(lineage)]
    report = experiment.report_spec()
    kept = ("experiment", "title", "description", "sets", "decoding", "decoding_seeds")
    return {
        **{key: report[key] for key in kept},
        "nodes": [[lineage, seed]],
        "models": {name: experiment.parameters[name] for name in hops},
        "weights": {name: experiment.settings["models"][name]["weights"] for name in hops},
        # also needed to read the evaluations
        "chains": [],
        "written": [],
        "samples": 0,
        "judge": bool(report["judge"]),
        "sources": {
            name: experiment.data_spec(name)["source"]
            for name in experiment.splits
            if name != "dev"
        },
        "template": experiment.data_spec("train")["template"],
    }
