"""From hidden states to logits: the output embedding, in float32, under autocast or without it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

VOCABULARY_BLOCK = 2048
HALVES = (torch.float16, torch.bfloat16)
_FROZEN, _CASTS = "takd_frozen", "takd_casts"


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Prepare a model for inference: no dropout, no gradients, and computation in its own dtype.

    A teacher runs inside its student's autocast. Autocast would keep the hidden states of
    half-precision weights in float32, cast norms at each step, and lower a model that needs float32
    because it overflows in float16.
    """
    setattr(model, _FROZEN, True)
    return model.eval().requires_grad_(False)


def lowered_type(model: PreTrainedModel) -> torch.dtype | None:
    """Return the dtype to which autocast now casts this model's products; None if it does not."""
    return None if getattr(model, _FROZEN, False) else autocast_type(model.device)


def autocast_type(device: torch.device) -> torch.dtype | None:
    """Return the dtype to which autocast casts matrix products now; None if it is off."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Context in which products are computed in the dtypes of their operands."""
    if autocast_type(device) is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def project(model: PreTrainedModel, hidden: Tensor, vocabulary: int) -> Tensor:
    """Compute float32 logits without gradients, (..., hidden size) to (..., vocabulary).

    Only the operands are rounded to half precision. Rounding GPT-2's logits, which are near -65, to
    bfloat16 would give each log-probability an error with standard deviation 0.13, and so distort
    ratios and importance weights of policy gradients; with rounded operands the error is 0.001.
    """
    head = output_layer(model)
    dtype = lowered_type(model) or head.weight.dtype
    with torch.no_grad():
        return vocabulary_product(
            hidden.to(dtype), head_weight(head, vocabulary, dtype), cut(head.bias, vocabulary)
        )


class Head:
    """The output embedding for many products: cut to the vocabulary and cast once.

    The cast weights, if there are any, stay at their address; `refresh` takes over changed ones.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: int) -> None:
        self.layer, self.vocabulary = output_layer(model), vocabulary
        weight_vh = self.layer.weight[:vocabulary].detach()
        dtype = lowered_type(model) or weight_vh.dtype
        self.operand = dtype
        # a CPU multiplies half-precision numbers in float32, as `wide_product`
        if dtype in HALVES and weight_vh.device.type == "cpu":
            dtype = torch.float32
        self.weight_vh = weight_vh.to(self.operand).to(dtype)
        self.copied = self.weight_vh.data_ptr() != weight_vh.data_ptr()
        self.result = torch.float32 if dtype in HALVES else dtype
        blocks = weight_vh.device.type == "cpu" and len(weight_vh) > 2 * VOCABULARY_BLOCK
        self.block = VOCABULARY_BLOCK if blocks else len(weight_vh)
        self.parts = [part_vh.T for part_vh in self.weight_vh.split(self.block)]

    def refresh(self) -> None:
        """Take over the weights as they are now."""
        weight_vh = self.layer.weight[: self.vocabulary].detach()
        if self.copied:
            self.weight_vh.copy_(weight_vh.to(self.operand))
        else:
            self.weight_vh = weight_vh
            self.parts = [part_vh.T for part_vh in weight_vh.split(self.block)]

    def __call__(self, hidden_nh: Tensor, out_nv: Tensor) -> Tensor:
        """Compute the logits of `project`, (n, vocabulary), into a given tensor."""
        hidden_nh = hidden_nh.to(self.operand).to(self.weight_vh.dtype)
        same = self.weight_vh.dtype == self.result
        wide: dict[str, Any] = {} if same else {"out_dtype": self.result}
        with without_autocast(out_nv.device):
            # most vocabularies of small models are one block: each view is a call for every token
            whole = self.block == len(self.weight_vh)
            pieces = [out_nv] if whole else out_nv.split(self.block, -1)
            for part_hv, part_nv in zip(self.parts, pieces, strict=True):
                torch.mm(hidden_nh, part_hv, out=part_nv, **wide)
            if (bias_v := cut(self.layer.bias, self.vocabulary)) is not None:
                out_nv += bias_v.to(out_nv.dtype)
        return out_nv


@contextlib.contextmanager
def unchanged(model: PreTrainedModel) -> Iterator[None]:
    """Context in which the weights do not change, so that the head is cast once in all."""
    head = output_layer(model)
    setattr(head, _CASTS, {})
    try:
        yield
    finally:
        delattr(head, _CASTS)


def head_weight(head: nn.Linear, vocabulary: int, dtype: torch.dtype) -> Tensor:
    """Return the weight of an output embedding, cut to the tokenizer's entries, in a dtype."""
    weight_vh, casts = head.weight.detach()[:vocabulary], getattr(head, _CASTS, None)
    if casts is None or weight_vh.dtype == dtype:
        return weight_vh.to(dtype)
    if (vocabulary, dtype) not in casts:
        casts[vocabulary, dtype] = weight_vh.to(dtype)
    return casts[vocabulary, dtype]


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """Return the output embedding, which computes logits from the last hidden states."""
    # asked for in every pass: transformers would search the model for other embeddings first
    head = getattr(model, "lm_head", None) or model.get_output_embeddings()
    assert isinstance(head, nn.Linear), type(head)  # ensured by check_projection
    return head


def cut(bias_v: Tensor | None, vocabulary: int) -> Tensor | None:
    """Cut the bias of the output embedding, if there is one, to the entries of the tokenizer."""
    return None if bias_v is None else bias_v[:vocabulary]


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Divide logits by a temperature; temperature 1 returns them as they are."""
    return logits if temperature == 1 else logits / temperature


def wide_product(left_nk: Tensor, right_km: Tensor) -> Tensor:
    """Multiply matrices (n, k) and (k, m), with a float32 result for half-precision operands.

    A GPU accumulates in float32 and returns that; a CPU, on which half-precision products are slow,
    multiplies in float32.
    """
    with without_autocast(left_nk.device):
        if left_nk.dtype not in HALVES:
            return left_nk @ right_km
        if left_nk.device.type == "cuda":
            return torch.mm(left_nk, right_km, out_dtype=torch.float32)
        return left_nk.float() @ right_km.float()


def vocabulary_product(hidden: Tensor, weight_vh: Tensor, bias_v: Tensor | None = None) -> Tensor:
    """Compute logits without gradients, (..., hidden size) to (..., vocabulary), in float32 or wider.

    On a CPU this runs in blocks of the vocabulary, because a product of a few rows with 50,000
    columns reaches half of the library's speed.
    """
    flat_nh = hidden.reshape(-1, hidden.shape[-1])
    rows = weight_vh.shape[0]
    if hidden.device.type == "cpu" and rows > 2 * VOCABULARY_BLOCK:
        # half precision is multiplied in float32, as `wide_product` does
        half = flat_nh.dtype in HALVES
        flat_nh = flat_nh.float() if half else flat_nh
        logits_nv = flat_nh.new_empty(len(flat_nh), rows)
        with without_autocast(hidden.device), torch.no_grad():
            for start in range(0, rows, VOCABULARY_BLOCK):
                part = slice(start, start + VOCABULARY_BLOCK)
                part_vh = weight_vh[part].float() if half else weight_vh[part]
                torch.mm(flat_nh, part_vh.T, out=logits_nv[:, part])
    else:
        logits_nv = wide_product(flat_nh, weight_vh.T)
    if bias_v is not None:
        logits_nv = logits_nv + bias_v.to(logits_nv.dtype)
    return logits_nv.unflatten(0, hidden.shape[:-1]) if hidden.ndim != 2 else logits_nv
