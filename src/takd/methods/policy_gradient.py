"""Terms of the policy gradient: rewards, returns, importance weights and the clipped loss."""

import functools
import math

import torch
from torch import Tensor

ROOM = 64  # tokens by which the matrices of discounts grow, so that few of them are computed


def rewards(student_t: Tensor, teacher_t: Tensor, scale: float, limit: float | None) -> Tensor:
    """Compute r_t = (log p - log q) / scale, clipped to ±limit (None: not clipped), (length,)."""
    reward_t = (teacher_t - student_t) / scale
    return reward_t if limit is None else reward_t.clamp(-limit, limit)


def returns(
    rewards_bt: Tensor,
    lengths_b: Tensor,
    discount: float,
    include_current: bool,
    length_normalisation: bool,
) -> Tensor:
    """Compute the returns R_t = Σ_k γ^(k-t) r_k of each response, (batch, length).

    Args:
        rewards_bt: rewards, padded with zeros on the right.
        lengths_b: tokens of each response.
        discount: γ.
        include_current: sum from k = t (the authors' code); else from k = t + 1 with discounts
            starting at 1, which is the paper's R_{t+1}, since the single-step term covers t.
        length_normalisation: divide by the number of rewards summed (at least 1).
    """
    length, first = rewards_bt.shape[1], 0 if include_current else 1
    weights_tk = _discounts(math.ceil(length / ROOM) * ROOM, discount, first)
    weights_tk = weights_tk[:length, :length].contiguous()
    result_bt = rewards_bt @ weights_tk.to(rewards_bt.dtype).T
    if length_normalisation:
        # tokens of the response from t on, or after t
        at_t = torch.arange(length)
        result_bt = result_bt / (lengths_b[:, None] - at_t - first).clamp(min=1)
    return result_bt


@functools.lru_cache(maxsize=4)
def _discounts(length: int, discount: float, first: int) -> Tensor:
    """Discount of reward k in return t, and 0 for earlier rewards, (length, length)."""
    at_t = torch.arange(length)
    later_tk = at_t[None, :] - at_t[:, None] - first
    return torch.where(later_tk >= 0, discount ** later_tk.clamp(min=0), 0.0)


def whiten(values_n: Tensor, slots: int) -> Tensor:
    """Subtract the mean and divide by the standard deviation over `slots` values, (n,).

    Args:
        slots: number of values that the statistics count; those beyond n are zeros. The authors' code whitens
            over padded responses, which shifts and shrinks every advantage; n itself whitens over tokens.
    """
    mean = values_n.sum() / slots
    # each padding slot holds 0, and so adds mean²
    squares = ((values_n - mean) ** 2).sum() + (slots - values_n.numel()) * mean**2
    return (values_n - mean) * torch.rsqrt(squares / slots + 1e-8)


def importance_weights(student_t: Tensor, mixed_t: Tensor, kind: str) -> Tensor:
    """Compute w_t of one response, (length,).

    Args:
        student_t, mixed_t: log q and log p̃ of its tokens, (length,).
        kind: "token" for q / p̃ at the token, "prefix" for its product up to the token, "none" for
            1.
    """
    if kind == "none":
        return torch.ones_like(student_t)
    log_t = student_t - mixed_t
    return (log_t if kind == "token" else log_t.cumsum(0)).exp()


def state_weights(student_t: Tensor, mixed_t: Tensor) -> Tensor:
    """Compute the product of q / p̃ over the tokens before each token, (length,).

    It is the probability that q reaches that state, relative to p̃.
    """
    log_t = student_t - mixed_t
    # the sum without the token itself, so that the first token's weight is 1
    return (log_t.cumsum(0) - log_t).exp()


def policy_loss(
    log_ratio_n: Tensor,
    weight_n: Tensor,
    advantage_n: Tensor,
    clip: float | None,
    clip_weighted_ratio: bool,
) -> Tensor:
    """Compute the clipped policy-gradient loss of each token, (n,).

    Args:
        log_ratio_n: log q - log q_drawn; gradients flow through it only.
        weight_n: importance weight w.
        advantage_n: advantage A.
        clip: ε; None for no clipping.
        clip_weighted_ratio: clip ρ w, as the authors' code does; else clip ρ, then multiply by w.
    """
    ratio_n = log_ratio_n.exp()
    plain_n = -advantage_n * ratio_n * weight_n
    if clip is None:
        return plain_n
    if clip_weighted_ratio:
        clipped_n = (ratio_n * weight_n).clamp(1 - clip, 1 + clip)
    else:
        clipped_n = ratio_n.clamp(1 - clip, 1 + clip) * weight_n
    # the larger of the two losses, as in PPO: a pessimistic bound
    return torch.maximum(plain_n, -advantage_n * clipped_n)
