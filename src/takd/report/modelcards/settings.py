"""What a model card is told of its experiment; read while Snakemake plans."""

from typing import Any

from takd.experiment import Experiment
from takd.lineage import split


def card_settings(experiment: Experiment, lineage: str, seed: int) -> dict[str, Any]:
    """Settings of the stage that writes the card of one model.

    Nothing in it is of other models than those of the chain, so that a chain or a seed more rewrites no card.
    """
    hops = [hop.model for hop in split(lineage)]
    report = experiment.report_spec()
    kept = ("experiment", "title", "description", "sets", "decoding", "decoding_seeds")
    return {
        **{key: report[key] for key in kept},
        "nodes": [[lineage, seed]],
        "models": {name: experiment.parameters[name] for name in hops},
        "weights": {name: experiment.settings["models"][name]["weights"] for name in hops},
        # what the reader of evaluations asks for besides
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
