"""Checks of an experiment file beyond its schema: rules between keys, and names that must exist."""

from pathlib import Path
from typing import Any

from takd.experiment.lineage import SUPERVISED
from takd.experiment.validation.budget import check_budget
from takd.experiment.validation.chains import check_chains
from takd.experiment.validation.common import trained
from takd.experiment.validation.data import check_data, check_splits
from takd.experiment.validation.evaluation import check_evaluation, check_seeds
from takd.experiment.validation.models import check_models
from takd.experiment.validation.training import check_teacher_cache, check_training
from takd.experiment.yaml12 import YamlFile


def check(file: YamlFile, settings: dict[str, Any], root: Path) -> dict[str, int]:
    """Check all rules; return the number of parameters of each model.

    Raises:
        InputError: the file breaks a rule; one line per error.
    """
    check_data(file, settings)
    parameters = check_models(file, settings, root)
    # rules about models and methods apply only to chains that are valid themselves
    sound = check_chains(file, settings, parameters)
    complete = len(sound) == len(settings["chains"])
    of_chains = {**settings, "chains": sound}
    check_splits(file, settings, any(trained(of_chains)))
    if complete:
        check_budget(file, settings)
    check_training(file, of_chains, root)
    if complete and (SUPERVISED in settings["training"] or not any(trained(settings))):
        check_teacher_cache(file, settings)
    check_evaluation(file, of_chains, complete)
    check_seeds(file, of_chains)
    file.refuse()
    return parameters
