"""A trained model that is asked and not trained."""

from pathlib import Path

import torch
from datasets import disable_progress_bars
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from takd import models
from takd.kvcache import check_decoding
from takd.training.devices import DTYPES, choose_precision, own


def settle(threads: int) -> None:
    """Use so many threads, and keep the bars of the libraries off the console."""
    torch.set_num_threads(threads)
    disable_progress_bars()
    logging.disable_progress_bar()


def load(
    folder: Path, tokenizer: PreTrainedTokenizerBase, name: str
) -> tuple[PreTrainedModel, int]:
    """Read a model onto the device at hand, in the numbers that suit it, and its vocabulary.

    Raises:
        InputError: as `models.check_vocabulary`, `models.check_projection` and `check_decoding`.
    """
    model = models.load_model(folder, dtype=DTYPES[choose_precision("auto")])
    vocabulary = models.check_vocabulary(model, tokenizer, name)
    nn.Module.to(models.freeze(model), own())
    models.check_projection(model, name)
    check_decoding(model, name)
    return model, vocabulary
