"""Shapes of the models of an experiment."""

from pathlib import Path

from takd.experiment.experiment import Experiment
from takd.experiment.lineage import GIVEN, GIVEN_SEED
from takd.experiment.validation.common import vocabulary_size
from takd.models.shapes import GPT2_VOCABULARY, Shape, estimated, of_config, of_scratch
from takd.runtime.files import model_folder, read_json_object


def weights_of(experiment: Experiment, name: str) -> Path:
    """Folder in the results that holds the weights of a model, to start from or as they are."""
    given = f"models/{name}-{GIVEN}/seed{GIVEN_SEED}"
    folder = given if name in experiment.given else f"base/{name}"
    return experiment.root / "results" / experiment.name / folder


def of_model(experiment: Experiment, name: str) -> Shape:
    """Shape of a model of an experiment: as stated, from its files, or estimated from its size."""
    weights = experiment.settings["models"][name]["weights"]
    vocabulary = vocabulary_size(experiment.settings) or GPT2_VOCABULARY
    if "scratch" in weights:
        return of_scratch(weights["scratch"], vocabulary)
    places = [weights_of(experiment, name) / "model"]
    if "folder" in weights:
        places.append(experiment.root / model_folder(experiment.root, weights["folder"]))
    for place in places:
        if (place / "config.json").is_file():
            return of_config(read_json_object(place / "config.json", f"model '{name}'"))
    return estimated(experiment.parameters[name], vocabulary)
