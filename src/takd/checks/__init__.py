"""What an experiment file must obey beyond its schema: rules between keys, names that exist."""

from pathlib import Path
from typing import Any

from takd.checks.chains import check_chains
from takd.checks.common import by_hop, distillation_methods, training_settings
from takd.checks.data import check_data
from takd.checks.evaluation import check_evaluation
from takd.checks.models import check_models, gpt2_parameters
from takd.checks.training import DEEPSPEED, check_teacher_writes, check_training
from takd.yamlfile import YamlFile

__all__ = [
    "DEEPSPEED",
    "by_hop",
    "check",
    "distillation_methods",
    "gpt2_parameters",
    "training_settings",
]


def check(file: YamlFile, settings: dict[str, Any], root: Path) -> dict[str, int]:
    """Raise InputError for the first rule that a file breaks; return each model's parameters."""
    check_data(file, settings)
    parameters = check_models(file, settings)
    check_chains(file, settings, parameters)
    check_training(file, settings, root)
    check_teacher_writes(file, settings)
    check_evaluation(file, settings)
    return parameters
