"""A trained model that is asked and not trained."""

from pathlib import Path

import torch
from datasets import disable_progress_bars
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from takd import models
from takd.training.devices import DTYPES, choose_precision


def settle(threads: int) -> None:
    """Use so many threads, and keep the bars of the libraries off the console."""
    torch.set_num_threads(threads)
    disable_progress_bars()
    logging.disable_progress_bar()


def device() -> torch.device:
    """The card, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(
    folder: Path, tokenizer: PreTrainedTokenizerBase, name: str
) -> tuple[PreTrainedModel, int]:
    """Read a model onto the device at hand, in the numbers that suit it, and its vocabulary.

    Raises:
        InputError: as `models.check_vocabulary` and `models.check_projection`.
    """
    model = models.load_model(folder, dtype=DTYPES[choose_precision("auto")])
    vocabulary = models.check_vocabulary(model, tokenizer, name)
    nn.Module.to(model, device())
    models.check_projection(model, name)
    return model.eval(), vocabulary
