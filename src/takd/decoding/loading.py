"""What stages that ask a model load, how they set up libraries, and the end of their logs."""

import os
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from takd.decoding.model_checks import check_model
from takd.models import causal_lm
from takd.models.logits import freeze
from takd.models.precision import (
    choose_precision,
    current_device,
    describe,
    device_name,
    pretrained_in,
    torch_dtype,
)
from takd.runtime.files import write_text
from takd.runtime.metrics_log import Journal
from takd.runtime.stage import Stage


def configure_libraries(stage: Stage) -> None:
    """Set threads and determinism of torch for a stage, and hide progress bars; before CUDA is used.

    With `deterministic`, operations without a deterministic variant raise RuntimeError, which
    `takd.runtime.stage` reports as one sentence.
    """
    logging.disable_progress_bar()
    torch.set_num_threads(stage.threads)
    if not stage.deterministic:
        return
    # cuBLAS is deterministic with a fixed workspace only; in-network sums (NVLS) have no fixed
    # order of summation
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("NCCL_ALGO", "Ring")
    torch.use_deterministic_algorithms(True)
    # filling each new tensor takes time, and no result depends on uninitialised memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def load(
    stage: Stage,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    longest: int | None = None,
    reads: int | None = None,
    precision: str | None = None,
) -> tuple[PreTrainedModel, int]:
    """Load a model onto this process's device for inference.

    Args:
        name: name of the model, for messages.
        longest: tokens of the longest text that the model will decode; None if it only reads texts.
        reads: tokens of the longest text that the model will read, if it does not decode.
        precision: "auto", "fp32", "fp16" or "bf16"; None for that of the settings.

    Returns:
        The model, in that precision, and the number of vocabulary entries
            that it shares with the tokenizer.

    Raises:
        InputError: as `models.check_vocabulary` and `check_model`.
    """
    pretrained = pretrained_in(folder)
    setting = precision or stage.spec.get("precision", "auto")
    precision = choose_precision(setting, pretrained)
    if precision == "fp32" and torch.cuda.is_available():
        stage.say(f"{name}: {describe(precision, pretrained)}")
    model = causal_lm.load_model(folder, dtype=torch_dtype(precision))
    vocabulary = causal_lm.check_vocabulary(model, tokenizer, name)
    nn.Module.to(freeze(model), current_device())
    check_model(model, name, longest, reads)
    return model, vocabulary


def close_log(stage: Stage, journal: Journal, count: int, tokens: int, processes: int = 1) -> None:
    """Write the last line of a stage's log, and the log as the output `metrics`.

    Args:
        count: texts that the stage has dealt with, in all attempts.
        tokens: their tokens.
    """
    journal.tokens = tokens
    journal.close(count, device=device_name(), processes=processes, **stage.origin())
    write_text(stage.outputs["metrics"], journal.path.read_text(encoding="utf-8"))
