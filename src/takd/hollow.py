"""A model as its configuration describes it, with made-up weights that take next to no memory.

What a family computes, and from which settings, can so be seen of a model of any size on the machine that starts the
workflow: its parameters are views of a few random numbers each, and a forward pass makes one of them whole at a time.
"""

import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def hollow(config: Any, drawn_as: Callable[[str], str] = lambda name: name) -> Any:
    """A causal language model in evaluation mode; equal names and shapes of parameters get equal numbers.

    Args:
        drawn_as: the name by which a parameter's numbers are drawn, given its own.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        # experts one after the other, as products of many at once want whole matrices
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, experts_implementation="eager"
        )
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            numbers = _numbers(drawn_as(f"{path}.{key}"), parameter.shape)
            setattr(module, key, nn.Parameter(numbers, requires_grad=False))
    model.tie_weights()
    return model.eval()


def _numbers(name: str, shape: torch.Size) -> Tensor:
    """Random numbers that depend on the name: those of a matrix are repeated along its diagonals."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    few = torch.randn(sum(shape) + 1, generator=generator)
    if len(shape) < 2:
        return 1 + few[: shape.numel()].view(shape) / 8
    # about as large as those of trained models, so that positions and windows matter
    return (few * 2 / shape[-1] ** 0.5).as_strided(shape, [1] * len(shape))
