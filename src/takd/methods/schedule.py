"""Optimizer steps of a training, from its settings and its number of rows; learning rate of each.

Without torch, since a plan counts them too.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

DIAGNOSED = 128
"""Dev responses, the first so many, that student and teacher read for diagnostics."""


def steps_per_round(settings: Mapping[str, Any]) -> int:
    """Optimizer steps on the responses of one round (`rollouts_per_round`)."""
    return settings["rollouts_per_round"] // settings["batch_size"] * settings["inner_epochs"]


def total_steps(settings: Mapping[str, Any], rows: int | None) -> int | None:
    """Optimizer steps of a training: the smaller one of `steps` and `epochs`.

    An epoch is a pass over the training rows, or over the prompts of the rounds.

    Args:
        rows: number of training rows; None if unknown.

    Returns:
        The steps; None if they depend on an unknown number of rows.
    """
    bounds = [settings["steps"]] if settings["steps"] else []
    if settings["epochs"] and rows is not None:
        if "rollouts_per_round" in settings:
            epoch = rows / settings["rollouts_per_round"] * steps_per_round(settings)
        else:
            epoch = rows / settings["batch_size"]
        bounds.append(math.ceil(settings["epochs"] * epoch))
    return max(1, min(bounds)) if bounds else None


def learning_rate(settings: Mapping[str, Any], step: int, total: int) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up, then the schedule.

    The schedule is constant, or a linear or cosine decay to 0.
    """
    peak, warmup = settings["learning_rate"], settings["warmup_steps"]
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(total - warmup, 1)
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda _: 1.0,
        "linear": lambda x: 1.0 - x,
        "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),
    }
    return peak * shapes[settings["schedule"]](done)
