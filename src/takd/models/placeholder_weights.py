"""Models with made-up weights that use almost no memory, built from a configuration alone.

They show what a model family computes, for a model of any size, on the machine that starts the
workflow. Each parameter is a strided view of a few random numbers, and a forward pass materialises
one parameter at a time.
"""

import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def hollow(config: Any, drawn_as: Callable[[str], str] = lambda name: name) -> Any:
    """Build a causal language model in evaluation mode, with weights seeded by parameter names.

    Args:
        drawn_as: maps a parameter's name to the name that seeds its numbers, so that parameters
            with different names can get equal numbers.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        # "eager" computes one expert after the other; the batched kernels need contiguous matrices
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
    """Random numbers seeded by the name; a matrix repeats them along its diagonals."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    few = torch.randn(sum(shape) + 1, generator=generator)
    if len(shape) < 2:
        return 1 + few[: shape.numel()].view(shape) / 8
    # about as large as trained weights, so that positions and attention windows affect the result
    return (few * 2 / shape[-1] ** 0.5).as_strided(shape, [1] * len(shape))
