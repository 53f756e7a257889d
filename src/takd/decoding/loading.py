"""Load trained models for evaluation and generation."""

from pathlib import Path

import torch
from datasets import disable_progress_bars
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from takd.decoding.model_checks import check_model
from takd.models import causal_lm, devices
from takd.models.devices import DTYPES, choose_precision, describe, device_name, own
from takd.models.precision import pretrained_in
from takd.runtime.files import write_text
from takd.runtime.metrics_log import Journal
from takd.runtime.stage import Stage


def settle(stage: Stage) -> None:
    """Set threads and determinism for a stage, and hide the progress bars of libraries."""
    devices.settle(stage.threads, stage.deterministic)
    disable_progress_bars()
    logging.disable_progress_bar()


def close_log(stage: Stage, journal: Journal, count: int, tokens: int, processes: int = 1) -> None:
    """Write the last line of a stage's log, and the log as the output `metrics`.

    Args:
        count: texts that the stage has dealt with, in all attempts.
        tokens: their tokens.
    """
    journal.tokens = tokens
    journal.close(count, device=device_name(own()), processes=processes, **stage.origin())
    write_text(stage.outputs["metrics"], journal.path.read_text(encoding="utf-8"))


def load(
    stage: Stage,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    longest: int | None = None,
    reads: int | None = None,
) -> tuple[PreTrainedModel, int]:
    """Load a model onto this process's device for inference.

    Args:
        longest: tokens of the longest text that the model will decode; None if it only reads texts.
        reads: tokens of the longest text that the model will read, if it does not decode.

    Returns:
        The model, in the precision that the settings choose, and the number of vocabulary entries
            that it shares with the tokenizer.

    Raises:
        InputError: as `models.check_vocabulary` and `check_model`.
    """
    pretrained = pretrained_in(folder)
    precision = choose_precision(stage.spec.get("precision", "auto"), pretrained)
    if precision == "fp32" and torch.cuda.is_available():
        stage.say(f"{name}: {describe(precision, pretrained)}")
    model = causal_lm.load_model(folder, dtype=DTYPES[precision])
    vocabulary = causal_lm.check_vocabulary(model, tokenizer, name)
    nn.Module.to(causal_lm.freeze(model), own())
    check_model(model, name, longest, reads)
    return model, vocabulary
