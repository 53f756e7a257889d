"""Optimizer steps of takd's training loop, on one device, without a stage."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from lengths import dolly_lengths
from models import VOCABULARY, random_texts
from torch import Tensor
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from takd.methods.base import Method
from takd.models.logits import unchanged, without_autocast
from takd.training.devices import seed_generators

# MiniLLM's objective as in the authors' code, takd's defaults
MINILLM: dict[str, Any] = {
    "teacher_mix": 0.2,
    "temperature": 1.0,
    "discount": 0.95,
    "return_includes_current": True,
    "reward_scale": 0.5,
    "reward_clip": 100.0,
    "length_normalisation": True,
    "whitening": "slots",
    "ratio_clip": 0.2,
    "clip_weighted_ratio": True,
    "advantage": "teacher",
    "importance": "token",
    "single_step_weight": 1.0,
    "single_step_importance": False,
    "mean_over": "tokens",
    "lm_weight": 0.0,
    "lm_teacher_share": 0.5,
    "lm_batch_size": None,
    "lm_teacher_outputs": "live",
    "gradient_clip": 1.0,
}


def labelled_rows(
    lengths: Sequence[tuple[int, int]], *, vocabulary: int = VOCABULARY, seed: int = 0
) -> Dataset:
    """Make rows of random tokens in the format of the data stage, in memory.

    Args:
        lengths: tokens of prompt and response of each row.
    """
    prompts, responses = (
        random_texts(column, seed=seed + i, vocabulary=vocabulary)
        for i, column in enumerate(zip(*lengths, strict=True))
    )
    ids = list(range(len(lengths)))
    return Dataset.from_dict({"id": ids, "prompt_ids": prompts, "response_ids": responses})


def dolly_rows(count: int, longest: int, *, vocabulary: int = VOCABULARY) -> Dataset:
    """Make rows with the lengths of Dolly; `longest` as in `dolly_lengths`."""
    return labelled_rows(dolly_lengths(count, longest), vocabulary=vocabulary)


def settings(batch_size: int, **more: Any) -> dict[str, Any]:
    """Return the settings that all methods have, with those of one."""
    common = {"batch_size": batch_size, "gradient_clip": 1.0, "steps": 1_000_000, "epochs": None}
    return common | more


def adamw(student: PreTrainedModel) -> Optimizer:
    """Make the loop's optimizer, with a learning rate so low that a few steps change little."""
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    return AdamW(trained, lr=5e-6, betas=(0.9, 0.999), weight_decay=0.0, fused=True)


def optimizer_step(
    method: Method,
    student: PreTrainedModel,
    optimizer: Optimizer,
    step: int,
    micro_batch: int,
    autocast: torch.dtype | None = None,
) -> dict[str, float]:
    """Take an optimizer step as `takd.training.loop.Run.optimize`: global batch, loss, gradient and update.

    A method that draws has to be prepared for the step before.

    Args:
        autocast: type of the products, as mixed precision has it; None for that of the parameters.

    Returns:
        Loss, statistics, and the norm of the gradient.
    """
    if not student.training:
        student.train()
    seed_generators(step)
    sums: dict[str, Tensor] = {}
    for part in method.parts(step):
        rows = sorted(part.rows, key=len)
        with mixed_precision(student.device, autocast), unchanged(student):
            for first in range(0, len(rows), micro_batch):
                loss, statistics = part.loss(student, rows[first : first + micro_batch])
                with without_autocast(student.device):
                    loss.backward()
                for name, value in {"loss": loss.detach(), **statistics}.items():
                    sums[name] = sums[name] + value if name in sums else value
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, method.settings["gradient_clip"])
    optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()
    means = torch.stack([*sums.values(), norm]).tolist()
    return dict(zip([*sums, "gradient_norm"], means, strict=True))


def mixed_precision(
    device: torch.device, dtype: torch.dtype | None
) -> contextlib.AbstractContextManager[Any]:
    """Return autocast to another type, or a context without effect."""
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
