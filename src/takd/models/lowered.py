"""Weights of a model that autocast computes with, cast once for many passes."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
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
        self.pairs: list[tuple[nn.Parameter, Tensor]] = []
        lowered = lowered_type(model)
        if lowered is None:
            return
        modules = list(model.modules())
        shared = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
        for module in model.base_model.modules():
            if isinstance(module, nn.Linear | Conv1D):
                self.pairs += [
                    (parameter, torch.empty_like(parameter.data, dtype=lowered))
                    for parameter in module.parameters(recurse=False)
                    if parameter.dtype == torch.float32 and id(parameter) not in shared
                ]

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Context in which the model has the copies of its weights, as they are now."""
        weights = [parameter.data for parameter, _ in self.pairs]
        try:
            for parameter, copy in self.pairs:
                copy.copy_(parameter.data)
                parameter.data = copy
            yield
        finally:
            for (parameter, _), weight in zip(self.pairs, weights, strict=True):
                parameter.data = weight

    def bytes(self) -> int:
        """Return the bytes of the copies."""
        return sum(copy.nbytes for _, copy in self.pairs)
