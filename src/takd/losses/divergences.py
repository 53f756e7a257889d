"""Divergences between a student q and a teacher p, per token.

All functions take log-probabilities of shape (n, choices) and return (n,) in nats. Choices are the
tokens of a vocabulary, or some tokens and the remaining mass (`coarsen`). Tokens with probability 0
(-inf) in both models contribute nothing, and gradients stay finite wherever the values are.
"""

import math

import torch
from torch import Tensor

LEAST = 1e-37  # stands for probability 0; its logarithm is finite in float32


def expectation(weights_nv: Tensor, values_nv: Tensor) -> Tensor:
    """Compute Σ_v w v with 0 · (±inf or nan) = 0, (n,)."""
    sums_n = (weights_nv * values_nv).sum(-1)
    if sums_n.isfinite().all():
        return sums_n
    # masking takes as long as the rest of the computation, and is almost never needed
    return (weights_nv * values_nv.masked_fill(weights_nv <= 0, 0.0)).sum(-1)


def log_likelihood(log_nv: Tensor, targets_n: Tensor) -> Tensor:
    """Pick the log-probability of each token's target, (n,)."""
    return log_nv.gather(-1, targets_n[:, None])[:, 0]


def forward_kl(student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p (log p - log q), which is mode-covering (Hinton et al., arXiv 1503.02531)."""
    return expectation(teacher_nv.exp(), teacher_nv - student_nv)


def reverse_kl(student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
    """KL(q ‖ p) = Σ q (log q - log p), which is mode-seeking (MiniLLM, arXiv 2306.08543, eq. 1)."""
    return expectation(student_nv.exp(), student_nv - teacher_nv)


def mixture(first_nv: Tensor, second_nv: Tensor, share: float) -> Tensor:
    """Log-probabilities of share · first + (1 - share) · second, 0 < share < 1, (n, choices).

    A token with probability 0 in both gets a very small probability whose gradient is 0.
    """
    # takes half the time of logaddexp, whose gradient is not finite where both inputs are -inf
    return (share * first_nv.exp() + (1 - share) * second_nv.exp()).clamp(min=LEAST).log()


def alpha_mixture(first_nv: Tensor, second_nv: Tensor, share: float, alpha: float) -> Tensor:
    """Log-probabilities of the α-mixture of two distributions, (n, choices) (AMiD, arXiv 2510.15982).

        r ∝ [ share · first^e + (1 - share) · second^e ]^(1/e),  e = (1 - α)/2,  0 < share < 1

    α = -1 is the arithmetic mean, and α = 1, by continuity, the geometric one. The larger α, the
    less probability a token gets that only one of the two finds likely.
    """
    exponent = (1 - alpha) / 2
    # a finite logarithm: of -inf in both, or times a negative exponent, gradients would not be
    first_nv, second_nv = (log_nv.clamp(min=math.log(LEAST)) for log_nv in (first_nv, second_nv))
    if exponent == 0:
        mixed_nv = share * first_nv + (1 - share) * second_nv
    else:
        parts = math.log(share) + exponent * first_nv, math.log1p(-share) + exponent * second_nv
        mixed_nv = torch.logaddexp(*parts) / exponent
    return mixed_nv.log_softmax(-1)


def jensen_shannon(student_nv: Tensor, teacher_nv: Tensor, beta: float = 0.5) -> Tensor:
    """β KL(p ‖ m) + (1 - β) KL(q ‖ m) with m = β p + (1 - β) q (GKD, arXiv 2306.13649, eq. 1).

    β = 1/2 is the Jensen-Shannon divergence. Divided by β it tends to KL(p ‖ q) as β → 0; divided
    by 1 - β it tends to KL(q ‖ p) as β → 1. β = 0 and β = 1 return these limits.
    """
    if beta == 0:
        return forward_kl(student_nv, teacher_nv)
    if beta == 1:
        return reverse_kl(student_nv, teacher_nv)
    mixed_nv = mixture(teacher_nv, student_nv, beta)
    return beta * forward_kl(mixed_nv, teacher_nv) + (1 - beta) * reverse_kl(student_nv, mixed_nv)


def total_variation(student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
    """½ Σ |p - q|, between 0 and 1 (f-distillation, arXiv 2307.15190, section 3)."""
    return 0.5 * (teacher_nv.exp() - student_nv.exp()).abs().sum(-1)


def skewed_forward_kl(student_nv: Tensor, teacher_nv: Tensor, skew: float) -> Tensor:
    """KL(p ‖ λ p + (1 - λ) q), at most -log λ; λ = 0 is KL(p ‖ q).

    DistiLLM, arXiv 2402.03898, section 3.1.
    """
    if skew == 0:
        return forward_kl(student_nv, teacher_nv)
    return forward_kl(mixture(teacher_nv, student_nv, skew), teacher_nv)


def skewed_reverse_kl(student_nv: Tensor, teacher_nv: Tensor, skew: float) -> Tensor:
    """KL(q ‖ (1 - λ) p + λ q), at most -log λ; λ = 0 is KL(q ‖ p).

    DistiLLM, arXiv 2402.03898, section 3.1.
    """
    if skew == 0:
        return reverse_kl(student_nv, teacher_nv)
    return reverse_kl(student_nv, mixture(student_nv, teacher_nv, skew))


def alpha_beta(student_nv: Tensor, teacher_nv: Tensor, alpha: float, beta: float) -> Tensor:
    """α-β divergence (ABKD, arXiv 2505.04560, definition 4.1), α, β ≥ 0 and α + β > 0.

        D = -1/(αβ) Σ [ p^α q^β - α/(α+β) p^(α+β) - β/(α+β) q^(α+β) ]

    (1, 0) is KL(p ‖ q) and (0, 1) is KL(q ‖ p), by continuity; α = β = 1 is half the squared
    distance, α = β = ½ four times the squared Hellinger distance. A larger α gives more weight to
    tokens where p is large, a larger β to tokens where q is large.
    """
    if alpha == 0:
        # the limit; with β = 1 the last two terms cancel in the sum
        powers = (beta * student_nv).exp()
        log_part = expectation(powers, beta * (student_nv - teacher_nv))
        return (log_part - powers.sum(-1) + (beta * teacher_nv).exp().sum(-1)) / beta**2
    if beta == 0:
        powers = (alpha * teacher_nv).exp()
        log_part = expectation(powers, alpha * (teacher_nv - student_nv))
        return (log_part - powers.sum(-1) + (alpha * student_nv).exp().sum(-1)) / alpha**2
    both = alpha + beta
    return (
        alpha / both * (both * teacher_nv).exp()
        + beta / both * (both * student_nv).exp()
        - (alpha * teacher_nv + beta * student_nv).exp()
    ).sum(-1) / (alpha * beta)


def coarsen(log_nv: Tensor, tokens_nk: Tensor) -> Tensor:
    """Log-probabilities of k tokens and of all other tokens together, (n, k + 1).

    Coarsening both distributions never increases a divergence (KL, Jensen-Shannon, total
    variation), and leaves it equal where the other tokens have no mass.
    """
    named_nk = log_nv.gather(-1, tokens_nk)
    return torch.cat([named_nk, log_tail(named_nk)], -1)


def log_tail(named_nk: Tensor) -> Tensor:
    """Log of the probability mass that the given log-probabilities leave over, (n, 1)."""
    # rounding may make the remaining mass negative
    return (1.0 - named_nk.exp().sum(-1, keepdim=True)).clamp(min=LEAST).log()
