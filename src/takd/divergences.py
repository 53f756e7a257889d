"""Divergences between a student q and a teacher p, per token, from logits.

All take logits of shape (n, vocabulary) in float32 and give (n,) in nats. Entries that both models rule out
(-inf logits) contribute nothing. `in_chunks` keeps the vocabulary-sized tensors of one chunk of tokens alone in
memory and computes them again in the backward pass.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def _expectation(weights_nv: Tensor, values_nv: Tensor) -> Tensor:
    """Σ_v w v with 0 · (±inf or nan) = 0, (n,); the gradient is as finite as the value."""
    present = weights_nv > 0
    return (weights_nv * values_nv.masked_fill(~present, 0.0)).sum(-1)


def forward_kl(student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p (log p - log q): makes the student cover the teacher (Hinton et al., arXiv 1503.02531)."""
    student_nv, teacher_nv = student_nv.log_softmax(-1), teacher_nv.log_softmax(-1)
    return _expectation(teacher_nv.exp(), teacher_nv - student_nv)


def reverse_kl(student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
    """KL(q ‖ p) = Σ q (log q - log p): makes the student avoid what the teacher rules out (arXiv 2306.08543, eq. 1)."""
    student_nv, teacher_nv = student_nv.log_softmax(-1), teacher_nv.log_softmax(-1)
    return _expectation(student_nv.exp(), student_nv - teacher_nv)


def cross_entropy(student_nv: Tensor, target_n: Tensor) -> Tensor:
    """-log q(target), (n,)."""
    return torch.nn.functional.cross_entropy(student_nv, target_n, reduction="none")


def in_chunks(
    function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor, chunk: int = 2048
) -> tuple[Tensor, ...]:
    """Apply a function of tokens to chunks along the first dimension and join the results.

    Args:
        function: takes tensors of shape (m, ...) and gives a tuple of tensors (m,). What it computes inside is
            thrown away and computed again in the backward pass.
        tensors: (n, ...) each.
        chunk: tokens at a time.
    """
    if tensors[0].shape[0] <= chunk:  # nothing to save by computing twice
        return function(*tensors)
    parts = [
        checkpoint(function, *pieces, use_reentrant=False)
        for pieces in zip(*(tensor.split(chunk) for tensor in tensors), strict=True)
    ]
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))
