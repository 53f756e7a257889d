"""The distribution that a student and its teacher sample from together."""

import math

import torch
from torch import Tensor


def shares(teacher_mix: float, device: torch.device) -> Tensor:
    """Return log(1 - α) and log α, (2, 1, 1), for `mixture`."""
    logs = math.log1p(-teacher_mix), math.log(teacher_mix)
    return torch.tensor(logs, dtype=torch.float64, device=device)[:, None, None]


def mixture(logs_kbv: Tensor, shares_k11: Tensor, out_kbv: Tensor | None = None) -> Tensor:
    """Compute log p̃ = log(α p + (1 - α) q) from log q and log p, (2, ...), elementwise.

    Args:
        out_kbv: memory for the computation, (2, ...); the result is its first half.
    """
    # a mixture of probabilities, not of logits, and computed from logarithms: a token that both
    # models find unlikely keeps its digits
    student_bv, teacher_bv = torch.add(logs_kbv, shares_k11, out=out_kbv)
    return torch.logaddexp(teacher_bv, student_bv, out=student_bv)


def speculative(logs_kbv: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Compute the distribution of tokens that a student proposes and its teacher replaces.

    A proposal from q is kept if fewer than k tokens are likelier under p, so that ties of the k-th
    are kept too; else the token comes from p (SKD, arXiv 2410.11325, algorithm 1). Both draws
    together are one from r(v) = q(v) [v in the top k] + Q p(v), where Q is the probability under q
    of all tokens outside of the top k. So a token needs one value of noise, as any other does.

    Args:
        logs_kbv: log q and log p, (2, rows, vocabulary).

    Returns:
        log r, (rows, vocabulary), and log Q, (rows,).
    """
    student_bv, teacher_bv = logs_kbv
    outside_bv = teacher_bv < teacher_bv.topk(top_k).values[:, -1:]
    replaced_b1 = student_bv.masked_fill(~outside_bv, -math.inf).logsumexp(-1, keepdim=True)
    kept_bv = student_bv.masked_fill(outside_bv, -math.inf)
    return torch.logaddexp(kept_bv, teacher_bv + replaced_b1), replaced_b1[:, 0]
