"""Losses that are sums over tokens, with the product with the vocabulary inside.

A loss needs its logits for one moment only. Here a chunk of tokens is projected, compared, and differentiated at
once: what leaves is a number, and the gradients of the hidden states and of the head. No tensor of
(tokens, vocabulary) lives longer than its chunk, and nothing is computed twice. (Liger's fused linear losses work
the same way, for losses and cards that are written down beforehand; this takes any loss.)
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from takd.models import project, vocabulary_product

# (logits (m, vocabulary), columns of the same tokens) -> loss of each token (m,), statistics of each token (m,)
TokenLoss = Callable[[Tensor, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]

# bytes of one (chunk, vocabulary) tensor: a CPU is fastest where few pages are new, a GPU where its cores are filled
CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
TILE = 64  # tokens: matrix products are fastest in multiples of it


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
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None or hasattr(head.weight, "ds_id"):
        # ZeRO-3 puts the weight together for the module's own passes only: compute those twice
        return _recomputed(loss, model, hidden_nh, columns, vocabulary, size)
    statistics: dict[str, Tensor] = {}
    total: Tensor = _Fused.apply(
        hidden_nh, head.weight, loss, columns, vocabulary, size, statistics
    )
    return total, statistics


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
        loss: TokenLoss,
        columns: Mapping[str, Tensor],
        vocabulary: int,
        size: int,
        statistics: dict[str, Tensor],
    ) -> Tensor:
        device = hidden_nh.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        dtype = half or weight_vh.dtype
        head_vh = weight_vh[:vocabulary].to(dtype)
        hidden_grad = torch.empty_like(hidden_nh) if ctx.needs_input_grad[0] else None
        weight_grad = None
        if ctx.needs_input_grad[1]:
            # chunks add up in float32: the sum may leave the range of half precision before it is scaled
            wide = torch.promote_types(weight_vh.dtype, torch.float32)
            weight_grad = torch.zeros_like(weight_vh, dtype=wide)
        learns = hidden_grad is not None or weight_grad is not None
        total = torch.zeros((), device=hidden_nh.device)
        for start in range(0, hidden_nh.shape[0], size):
            piece_mh = hidden_nh[start : start + size].to(dtype)
            logits_mv = vocabulary_product(piece_mh, head_vh).float()
            with torch.enable_grad() if learns else torch.no_grad():
                logits_mv.requires_grad_(learns)
                value_m, values = loss(logits_mv, _pieces(columns, start, size))
                value = value_m.sum()
            if learns:
                (grad_mv,) = torch.autograd.grad(value, logits_mv)
                grad_mv = grad_mv.to(dtype)
                if hidden_grad is not None:
                    hidden_grad[start : start + size] = grad_mv @ head_vh
                if weight_grad is not None and dtype == weight_grad.dtype:
                    weight_grad[:vocabulary].addmm_(grad_mv.T, piece_mh)
                elif weight_grad is not None:
                    weight_grad[:vocabulary] += grad_mv.T @ piece_mh
            total = total + value.detach()
            _add(statistics, values)
        ctx.weight_dtype = weight_vh.dtype
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (scale,) = gradients
        hidden_grad, weight_grad = ctx.saved_tensors
        # the head's gradient is as large as the head: leave it as it is where there is nothing to scale
        if scale.device.type != "cpu" or scale.item() != 1.0:
            hidden_grad, weight_grad = (
                grad if grad is None else grad.mul_(scale) for grad in (hidden_grad, weight_grad)
            )
        if weight_grad is not None:
            weight_grad = weight_grad.to(ctx.weight_dtype)
        return hidden_grad, weight_grad, None, None, None, None, None


def _recomputed(
    loss: TokenLoss,
    model: PreTrainedModel,
    hidden_nh: Tensor,
    columns: Mapping[str, Tensor],
    vocabulary: int,
    size: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same by projecting each chunk once more in the backward pass."""
    names = list(columns)

    def one(hidden_mh: Tensor, *values: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits_mv = project(model, hidden_mh, vocabulary)
        value_m, statistics = loss(logits_mv, dict(zip(names, values, strict=True)))
        return value_m.sum(), statistics

    total = hidden_nh.float().sum() * 0.0  # part of the graph even where there are no tokens
    sums: dict[str, Tensor] = {}
    for start in range(0, hidden_nh.shape[0], size):
        pieces = _pieces(columns, start, size).values()
        value, statistics = checkpoint(
            one, hidden_nh[start : start + size], *pieces, use_reentrant=False
        )
        total = total + value
        _add(sums, statistics)
    return total, sums
