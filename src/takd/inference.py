"""A trained model that is asked and not trained."""

from pathlib import Path

import torch
from datasets import disable_progress_bars
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from takd import models
from takd.model_checks import check_model
from takd.precision import pretrained_in
from takd.stage import Stage
from takd.training import devices
from takd.training.devices import DTYPES, choose_precision, describe, own


def settle(stage: Stage) -> None:
    """Compute as the stage was told to, and keep the bars of the libraries off the console."""
    devices.settle(stage.threads, stage.deterministic)
    disable_progress_bars()
    logging.disable_progress_bar()


def load(
    stage: Stage,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    longest: int | None = None,
    reads: int | None = None,
) -> tuple[PreTrainedModel, int]:
    """Read a model onto the device at hand, in the numbers that the settings ask for, and its vocabulary.

    Args:
        longest: tokens of the longest text that the model will decode; None if it only reads.
        reads: tokens of the longest text that it will read, if it does not decode.

    Raises:
        InputError: as `models.check_vocabulary` and `check_model`.
    """
    pretrained = pretrained_in(folder)
    precision = choose_precision(stage.spec.get("precision", "auto"), pretrained)
    if precision == "fp32" and torch.cuda.is_available():
        stage.say(f"{name}: {describe(precision, pretrained)}")
    model = models.load_model(folder, dtype=DTYPES[precision])
    vocabulary = models.check_vocabulary(model, tokenizer, name)
    nn.Module.to(models.freeze(model), own())
    check_model(model, name, longest, reads)
    return model, vocabulary
