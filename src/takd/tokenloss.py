"""Losses that are sums over tokens, with the product with the vocabulary inside.

A loss needs its logits for one moment only. Here a chunk of tokens is projected, compared, and differentiated at
once: what leaves is a number, and the gradients of the hidden states and of the head. No tensor of
(tokens, vocabulary) lives longer than its chunk, and nothing is computed twice. (Liger's fused linear losses work
the same way, for losses and cards that are written down beforehand; this takes any loss.)
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from takd.models import autocast_type, cut, output_layer, vocabulary_product, wide_product

# (logits (m, vocabulary), columns of the same tokens) -> loss of each token (m,), statistics of each token (m,)
TokenLoss = Callable[[Tensor, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]

# bytes of one (chunk, vocabulary) tensor: a CPU is fastest where few pages are new, a GPU where its cores are filled
CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
TILE = 64  # tokens: matrix products are fastest in multiples of it
HEAD_ROWS = 16384  # of a half-precision head whose float32 gradients are made at once


def chunk_size(vocabulary: int, device: torch.device) -> int:
    """Tokens of a chunk."""
    tokens = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (4 * vocabulary)
    return max(16, tokens - tokens % TILE if tokens > TILE else tokens)


def sum_over_tokens(
    loss: TokenLoss,
    model: PreTrainedModel,
    hidden_nh: Tensor,
    columns: Mapping[str, Tensor],
    vocabulary: int,
    *,
    chunk: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of a loss over tokens, with gradients for the hidden states and the model's head, and of its statistics.

    Without gradients enabled, nothing is differentiated.

    Args:
        loss: of some tokens; the gradient flows through its logits alone.
        model: whose output embedding makes logits of hidden states.
        hidden_nh: (n, hidden size).
        columns: what else the loss reads of each token, (n, ...) each.
        vocabulary: entries to which logits are cut.
        chunk: tokens at a time; None chooses by the device.

    Returns:
        The sum and the sums of the statistics, all without shape. Sums over no tokens are 0.
    """
    size = chunk or chunk_size(vocabulary, hidden_nh.device)
    head = output_layer(model)
    statistics: dict[str, Tensor] = {}
    learns = torch.is_grad_enabled()

    def fused(hidden_nh: Tensor) -> Tensor:
        return _Fused.apply(
            *(hidden_nh, head.weight, head.bias),
            *(loss, columns, vocabulary, size, statistics, learns),
        )

    # ZeRO-3 gathers the weight for the layer's own forward pass only. All chunks are in one pass, since processes
    # with different numbers of chunks would else take part in different numbers of collective operations.
    head.forward = fused  # type: ignore[assignment]
    try:
        return head(hidden_nh), statistics
    finally:
        del head.forward


def _pieces(columns: Mapping[str, Tensor], start: int, size: int) -> dict[str, Tensor]:
    return {name: column[start : start + size] for name, column in columns.items()}


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value_m in values.items():
        value = value_m.detach().sum()
        sums[name] = sums[name] + value if name in sums else value


class _Fused(torch.autograd.Function):
    """Forward and backward in one pass over the chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nh: Tensor,
        weight_vh: Tensor,
        bias_v: Tensor | None,
        loss: TokenLoss,
        columns: Mapping[str, Tensor],
        vocabulary: int,
        size: int,
        statistics: dict[str, Tensor],
        learns: bool,
    ) -> Tensor:
        device = hidden_nh.device
        dtype = autocast_type(device) or weight_vh.dtype
        head_vh, head_bias_v = weight_vh[:vocabulary].to(dtype), cut(bias_v, vocabulary)
        inputs = hidden_nh, weight_vh, bias_v
        # gradients are float32, and rounded after they have been scaled: before, they may leave float16's range
        gradients = [
            torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
            if learns and wanted and tensor is not None
            else None
            for tensor, wanted in zip(inputs, ctx.needs_input_grad[:3], strict=True)
        ]
        hidden_grad, weight_grad, bias_grad = gradients
        learns = any(gradient is not None for gradient in gradients)
        total = torch.zeros((), device=device)
        for start in range(0, hidden_nh.shape[0], size):
            piece_mh = hidden_nh[start : start + size].to(dtype)
            logits_mv = vocabulary_product(piece_mh, head_vh, head_bias_v)
            with torch.enable_grad() if learns else torch.no_grad():
                logits_mv.requires_grad_(learns)
                value_m, values = loss(logits_mv, _pieces(columns, start, size))
                value = value_m.sum()
            if learns:
                (grad_mv,) = torch.autograd.grad(value, logits_mv)
                if bias_grad is not None:
                    bias_grad[:vocabulary] += grad_mv.sum(0)
                grad_mv, unit = _in_range(grad_mv, dtype)
                if hidden_grad is not None:
                    piece_grad = wide_product(grad_mv, head_vh)
                    hidden_grad[start : start + size] = _scaled(piece_grad, unit)
                if weight_grad is not None and dtype == weight_grad.dtype:
                    weight_grad[:vocabulary].addmm_(grad_mv.T, piece_mh)
                elif weight_grad is not None:
                    # part by part: a whole product would take as much memory as the head's gradient once more
                    for row in range(0, vocabulary, HEAD_ROWS):
                        part = slice(row, min(row + HEAD_ROWS, vocabulary))
                        product = wide_product(grad_mv[:, part].T, piece_mh)
                        weight_grad[part] += _scaled(product, unit)
            total = total + value.detach()
            _add(statistics, values)
        ctx.save_for_backward(*gradients)
        ctx.types = [None if tensor is None else tensor.dtype for tensor in inputs]
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (scale,) = gradients
        # the head's gradient is as large as the head: leave it as it is where there is nothing to scale
        scaled = scale.device.type != "cpu" or scale.item() != 1.0
        found = [
            None if grad is None else (grad.mul_(scale) if scaled else grad).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.types, strict=True)
        ]
        return *found, None, None, None, None, None, None


def _scaled(product: Tensor, unit: Tensor | None) -> Tensor:
    return product if unit is None else product.mul_(unit)


def _in_range(grad_mv: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Gradients in the type of a product, and the unit that they are in (None: 1).

    Float16 has no numbers above 65504 and few digits below 6e-5, and no loss is scaled yet: its largest gradient
    becomes about 1. The unit is a power of two, so that no digit changes.
    """
    if dtype != torch.float16:
        return grad_mv.to(dtype), None
    largest = grad_mv.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    unit = largest.log2().floor().exp2()
    return (grad_mv / unit).to(dtype), unit
