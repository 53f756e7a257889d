"""Weights of a model that autocast computes with, cast once for many passes."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from takd.models.logits import lowered_type


class LoweredWeights:
    """Half-precision copies of the matrices and biases that autocast would cast to that type.

    Autocast keeps such copies until its context ends, but a CUDA graph would hold the addresses of
    copies that are gone, or cast all weights in each step. These copies stay at their addresses.
    Embeddings, which autocast leaves as they are, and what shares their weights have none.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.copies: list[tuple[nn.Module, str, nn.Parameter]] = []
        lowered = lowered_type(model)
        if lowered is None:
            return
        modules = list(model.modules())
        shared = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
        for module in model.base_model.modules():
            if isinstance(module, nn.Linear | Conv1D):
                self.copies += [
                    (module, name, nn.Parameter(parameter.detach().to(lowered), False))
                    for name, parameter in module.named_parameters(recurse=False)
                    if parameter.dtype == torch.float32 and id(parameter) not in shared
                ]

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Context in which the model has the copies of its weights, as they are now."""
        weights = [module.get_parameter(name) for module, name, _ in self.copies]
        try:
            for (module, name, copy), weight in zip(self.copies, weights, strict=True):
                copy.copy_(weight.detach())
                setattr(module, name, copy)
            yield
        finally:
            for (module, name, _), weight in zip(self.copies, weights, strict=True):
                setattr(module, name, weight)

    def bytes(self) -> int:
        """Return the bytes of the copies."""
        return sum(copy.nbytes for _, _, copy in self.copies)
