"""Losses that are sums over tokens, fused with the output projection to the vocabulary.

Each chunk of tokens is projected to logits, compared, and differentiated at once, which yields the
loss and the gradients of the hidden states and of the output embedding. So logits exist for one
chunk at a time, and nothing is computed twice. On a CPU, a chunk's losses are computed block by
block, in its cache, between products of the whole chunk. Liger's fused linear losses work the same way for a
fixed set of losses and GPUs; this function takes any loss.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from takd.losses.amounts import HEAD_ROWS, block_tokens, chunk_tokens
from takd.models.logits import (
    autocast_type,
    cut,
    head_weight,
    output_layer,
    vocabulary_product,
    wide_product,
)

# (logits (m, vocabulary), columns of the same tokens) -> loss and statistics of each token, (m,)
TokenLoss = Callable[[Tensor, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
# columns of a chunk -> those that the loss gets
Prepared = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def chunk_size(vocabulary: int, device: torch.device) -> int:
    """Return the number of tokens per chunk on a device."""
    return chunk_tokens(vocabulary, device.type)


def sum_over_tokens(
    loss: TokenLoss,
    model: PreTrainedModel,
    hidden_nh: Tensor,
    columns: Mapping[str, Tensor],
    vocabulary: int,
    *,
    chunk: int | None = None,
    prepared: Prepared = dict,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum a loss and its statistics over tokens, with gradients for hidden states and head.

    With gradients disabled, only the values are computed. The head is the output embedding.

    Args:
        loss: loss and statistics of some tokens; gradients flow through its logits only.
        model: model whose head computes the logits.
        hidden_nh: hidden states, (n, hidden size).
        columns: other inputs of the loss, (n, ...) each.
        vocabulary: entries to which logits are cut.
        chunk: tokens per chunk; None chooses by the device.
        prepared: computes columns for the tokens of a chunk together, such as the teacher's logits.
            The loss gets them for a few of these tokens at a time.

    Returns:
        The sum of the loss and the sums of the statistics, all scalars. Sums over no tokens are 0.
    """
    size = chunk or chunk_size(vocabulary, hidden_nh.device)
    head = output_layer(model)
    statistics: dict[str, Tensor] = {}
    # read here, since autograd disables gradients within `_Fused.forward`
    learns = torch.is_grad_enabled()

    def fused(hidden_nh: Tensor) -> Tensor:
        dtype = autocast_type(hidden_nh.device) or head.weight.dtype
        return _Fused.apply(
            *(hidden_nh, head.weight, head.bias, head_weight(head, vocabulary, dtype)),
            *(loss, columns, prepared, vocabulary, size, statistics, learns),
        )

    # ZeRO-3 gathers the weight only while the layer's own forward runs, so the fused loss replaces
    # it. All chunks share one call: the number of chunks differs between processes, and the number
    # of collective operations must not
    head.forward = fused  # type: ignore[assignment]
    try:
        return head(hidden_nh), statistics
    finally:
        del head.forward


def _pieces(columns: Mapping[str, Tensor], start: int, size: int) -> dict[str, Tensor]:
    return {name: column[start : start + size] for name, column in columns.items()}


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value_m in values.items():
        value = value_m.sum()
        sums[name] = sums[name] + value if name in sums else value


def _in_blocks(
    loss: TokenLoss, logits_mv: Tensor, columns: dict[str, Tensor], learns: bool
) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """Compute the loss and the statistics of a chunk's tokens, and the gradients of its logits.

    The gradients take the memory of the logits, unless one block holds all tokens.
    """
    count, vocabulary = logits_mv.shape
    size = block_tokens(vocabulary, logits_mv.device.type) or count
    found: list[dict[str, Tensor]] = []
    grad_mv = None
    for start in range(0, count, size):
        with torch.enable_grad() if learns else torch.no_grad():
            # a leaf tensor, so that this backward pass ends at the logits
            block_mv = logits_mv[start : start + size].detach().requires_grad_(learns)
            # of one block the columns themselves, so that the loss can let go of large ones
            piece = _pieces(columns, start, size) if size < count else columns
            value_m, values = loss(block_mv, piece)
            value = value_m.sum()
        if learns:
            (grad_mv,) = torch.autograd.grad(value, block_mv)
            if size < count:
                logits_mv[start : start + size] = grad_mv
        found.append({"": value_m.detach(), **{n: v.detach() for n, v in values.items()}})
    whole = found[0] if len(found) == 1 else {n: torch.cat([f[n] for f in found]) for n in found[0]}
    if learns and size < count:
        grad_mv = logits_mv
    return whole.pop(""), whole, grad_mv


class _Fused(torch.autograd.Function):
    """Loss, and its gradients, in one pass over the chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nh: Tensor,
        weight_vh: Tensor,
        bias_v: Tensor | None,
        head_vh: Tensor,
        loss: TokenLoss,
        columns: Mapping[str, Tensor],
        prepared: Prepared,
        vocabulary: int,
        size: int,
        statistics: dict[str, Tensor],
        learns: bool,
    ) -> Tensor:
        dtype, head_bias_v = head_vh.dtype, cut(bias_v, vocabulary)
        inputs = hidden_nh, weight_vh, bias_v
        # in float32, and rounded to the operands' dtype after scaling in `backward`: unscaled, they
        # may leave float16's range
        gradients = [
            torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
            if learns and wanted and tensor is not None
            else None
            for tensor, wanted in zip(inputs, ctx.needs_input_grad[:3], strict=True)
        ]
        # computed in the forward pass, for an incoming gradient of 1: the loss is a sum, so that
        # `backward` only has to scale them. With logits Z = H Wᵀ + b and G = ∂L/∂Z of a chunk:
        # ∂L/∂H = G W, ∂L/∂W = Gᵀ H, ∂L/∂b = Σ G
        hidden_grad, weight_grad, bias_grad = gradients
        learns = any(gradient is not None for gradient in gradients)
        total = torch.zeros((), device=hidden_nh.device)
        for start in range(0, hidden_nh.shape[0], size):
            piece_mh = hidden_nh[start : start + size].to(dtype)
            logits_mv = vocabulary_product(piece_mh, head_vh, head_bias_v)
            piece = prepared(_pieces(columns, start, size))
            value_m, values, grad_mv = _in_blocks(loss, logits_mv, piece, learns)
            if grad_mv is not None:
                if bias_grad is not None:
                    bias_grad[:vocabulary] += grad_mv.sum(0)
                grad_mv, unit = _in_range(grad_mv, dtype)
                if hidden_grad is not None:
                    piece_grad = wide_product(grad_mv, head_vh)
                    hidden_grad[start : start + size] = _scaled(piece_grad, unit)
                if weight_grad is not None and dtype == weight_grad.dtype:
                    weight_grad[:vocabulary].addmm_(grad_mv.T, piece_mh)
                elif weight_grad is not None:
                    # in parts: the whole product would need as much memory again as the gradient
                    for row in range(0, vocabulary, HEAD_ROWS):
                        part = slice(row, min(row + HEAD_ROWS, vocabulary))
                        product = wide_product(grad_mv[:, part].T, piece_mh)
                        weight_grad[part] += _scaled(product, unit)
            total = total + value_m.sum()
            # returned through the dictionary: they need no gradients, and their names vary
            _add(statistics, values)
            # gone before the next chunk needs memory
            del logits_mv, piece, grad_mv
        ctx.save_for_backward(*gradients)
        ctx.types = [None if tensor is None else tensor.dtype for tensor in inputs]
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (scale,) = gradients
        # the head's gradient is large: skip the multiplication by 1. On a GPU, reading the scale
        # would wait for the device
        scaled = scale.device.type != "cpu" or scale.item() != 1.0
        found = [
            None if grad is None else (grad.mul_(scale) if scaled else grad).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.types, strict=True)
        ]
        return *found, None, None, None, None, None, None, None, None


def _scaled(product: Tensor, unit: Tensor | None) -> Tensor:
    return product if unit is None else product.mul_(unit)


def _in_range(grad_mv: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Cast logit gradients to a dtype; also return the unit that they were divided by (None: 1).

    Float16 has no numbers above 65504 and few digits below 6e-5, and the loss is not scaled yet, so
    the largest gradient is brought near 1. The unit is a power of two, so no digit changes.
    """
    if dtype != torch.float16:
        return grad_mv.to(dtype), None
    largest = grad_mv.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    unit = largest.log2().floor().exp2()
    return (grad_mv / unit).to(dtype), unit
