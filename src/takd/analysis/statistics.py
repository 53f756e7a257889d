"""Uncertainty of a mean score and of a difference, over prompts and over trainings.

A score y_rpd belongs to training r of R, prompt p of P and draw d of D (a decoding seed). Draws are averaged first, so
that what remains of their noise is part of the spread over prompts. The estimand is the mean over the population of
prompts that the set samples, and over all draws,

- of *these checkpoints*: `over_prompts` (percentile bootstrap) and `sign_flip` (permutation test), or
- of *the method*, over all trainings it might have had: `over_trainings`, for R >= 2.

All functions apply to differences of scores, paired by prompt, draw and training, as well. There is no bootstrap over
trainings: with two to five of them its intervals are far too narrow. docs/report.md gives the measured coverage.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

Array = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 9_999
"""Resamples of a bootstrap and of a permutation test; with one more, p values are multiples of 1/10,000."""
SEED = 20_230_614
CELLS = 4_000_000
"""Numbers that a part of the resamples may hold at once."""


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def text(self, signed: bool = False, digits: int = 1) -> str:
        """Format as `−0.4 to 1.2`; `signed` writes a plus or a minus before both ends."""
        return f"{number(self.low, signed, digits)} to {number(self.high, signed, digits)}"


def number(value: float, signed: bool = False, digits: int = 1) -> str:
    """Format a number with a true minus; what rounds to zero has no sign unless `signed` is set."""
    value = round(value, digits) + 0.0
    return (f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}").replace("-", "−")


def standard_error(values: Array) -> float | None:
    """Standard error of the mean of independent values (n,); None for fewer than two."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def over_prompts(scores_pk: Array) -> Array:
    """Bootstrap confidence intervals of the means over prompts, for these checkpoints.

    The percentile interval, with Phi(-sqrt(P/(P-1)) t_{P-1}) instead of 2.5 % at each end, since a resample's spread
    lacks the factor P/(P-1) and its quantiles are not those of t (Hesterberg, The American Statistician 69(4), 2015,
    section 4.3).

    Args:
        scores_pk: scores of P >= 2 prompts in K columns (models, or their differences), which share the resamples.

    Returns:
        Lower and upper ends (2, K).
    """
    prompts = len(scores_pk)
    means = []
    rng = np.random.default_rng(SEED)
    for size in _parts(prompts):
        drawn = rng.integers(0, prompts, (size, prompts))
        drawn += prompts * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * prompts).reshape(size, prompts)
        means.append(counts @ scores_pk / prompts)
    tail = ndtr(math.sqrt(prompts / (prompts - 1)) * stdtrit(prompts - 1, (1 - LEVEL) / 2))
    return np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)


def sign_flip(differences_pk: Array) -> Array:
    """Paired permutation tests over prompts: two-sided p values for no difference between two trained models.

    Under the null hypothesis the two scores of a prompt are exchangeable, so the sign of each prompt's difference may
    be flipped (Fisher's randomisation test). For differences that are not symmetric about zero it still tests their
    mean, in large samples (Romano, JASA 85, 1990). The observed assignment counts as one of them, so p is never zero
    (Phipson and Smyth, 2010).

    Args:
        differences_pk: differences of P prompts in K pairs, which share the flips.

    Returns:
        p values (K,).
    """
    observed = np.abs(differences_pk.sum(axis=0))
    # rounding must not separate equal sums
    reached = observed - 1e-9 * np.abs(differences_pk).sum(axis=0)
    count = np.zeros(differences_pk.shape[1])
    rng = np.random.default_rng(SEED)
    for size in _parts(len(differences_pk)):
        signs = 2.0 * rng.integers(0, 2, (size, len(differences_pk)), dtype=np.int8) - 1
        count += (np.abs(signs @ differences_pk) >= reached).sum(axis=0)
    return (count + 1) / (RESAMPLES + 1)


def _parts(prompts: int) -> Iterable[int]:
    """Sizes of the batches in which the resamples are drawn."""
    size = max(1, CELLS // prompts)
    return (min(size, RESAMPLES - start) for start in range(0, RESAMPLES, size))


def of_trainings(values: Array) -> Interval | None:
    """The t interval of the mean of trainings' values (R,); None for fewer than two."""
    error = standard_error(values)
    if error is None:
        return None
    half = error * float(stdtrit(len(values) - 1, (1 + LEVEL) / 2))
    return Interval(float(values.mean()) - half, float(values.mean()) + half)


class OverTrainings(NamedTuple):
    """Ends of an interval over trainings and prompts, and its test; arrays of the leading shape of the scores."""

    low: Any
    high: Any
    p: Any
    """Two-sided p value of a mean of zero; the interval holds zero just if it is above the level."""


def over_trainings(scores_rp: Array, level: float = 1 - LEVEL) -> OverTrainings:
    """Confidence interval of a mean over trainings and prompts, both random and crossed.

    Two-way random effects, y_rp = m + a_r + b_p + e_rp. The variance of the mean has a part of the trainings, v_R =
    MS_R/(RP) with R - 1 degrees of freedom, and one of the prompts, v_P = (MS_P - MS_E)/(RP), at least 0, with P - 1
    (MS: mean squares of trainings, prompts, residual). The quantile is that of Cochran and Cox (Experimental Designs,
    1950, section 4.14): the mean of both quantiles of t, weighted by v_R and v_P. Satterthwaite's degrees of freedom
    would be large where v_R is small by chance: with two trainings they cover only 87 %.

    Args:
        scores_rp: (..., R, P) with R >= 2 trainings and P >= 2 prompts, draws averaged.
        level: of the test; the confidence interval is at 1 - level.
    """
    mean = scores_rp.mean(axis=(-2, -1))
    half = _half_widths(scores_rp)
    # the half width falls as p grows: bisection finds the p at which the interval ends at zero
    low, high = np.full_like(mean, math.log(1e-12)), np.zeros_like(mean)
    for _ in range(50):
        middle = (low + high) / 2
        longer = half(middle) > np.abs(mean)
        low, high = np.where(longer, middle, low), np.where(longer, high, middle)
    p = np.where(mean == 0, 1.0, np.exp((low + high) / 2))
    length = half(math.log(level))
    return OverTrainings(mean - length, mean + length, p)


def _half_widths(scores_rp: Array) -> Callable[[Any], Any]:
    """Return half the width of the confidence interval at level 1 - p, as a function of log p (R = 1: over prompts)."""
    trainings, prompts = scores_rp.shape[-2:]
    mean = scores_rp.mean(axis=(-2, -1))
    by_training = scores_rp.mean(axis=-1)
    by_prompt = scores_rp.mean(axis=-2)
    var_prompts = by_prompt.var(axis=-1, ddof=1)
    var_trainings = np.zeros_like(mean)
    if trainings > 1:
        residual = scores_rp - by_training[..., :, None] - by_prompt[..., None, :]
        residual += mean[..., None, None]
        degrees = (trainings - 1) * (prompts - 1)
        residual_variance = (residual**2).sum(axis=(-2, -1)) / degrees
        var_trainings = by_training.var(axis=-1, ddof=1) / trainings
        var_prompts = np.maximum(var_prompts - residual_variance / trainings, 0)
    var_prompts = var_prompts / prompts
    variance = var_trainings + var_prompts

    def half(log_p: Any) -> Any:
        tail = np.exp(log_p) / 2
        ends = var_prompts * stdtrit(prompts - 1, tail)
        if trainings > 1:
            ends = var_trainings * stdtrit(trainings - 1, tail) + ends
        # equal scores have a standard error of zero
        nothing = np.zeros_like(variance)
        return -np.divide(ends, np.sqrt(variance), out=nothing, where=variance > 0)

    return half


def ratio(above_rp: Array, below_rp: Array, level: float = 1 - LEVEL) -> Interval | None:
    """Confidence interval of a ratio of two means over the same trainings and prompts.

    It holds each ratio θ for which the mean of above − θ below is not significantly different from zero (Fieller,
    Journal of the Royal Statistical Society B 16, 1954), by the interval of `over_trainings`, or by t over prompts for
    one training.

    Args:
        above_rp, below_rp: (R, P) with P >= 2 prompts, draws averaged.
        level: the confidence interval is at 1 - level.

    Returns:
        The interval; None where the mean below is not significantly different from zero, as any ratio is then possible.
    """

    def rejected(ratio: float) -> bool:
        scores_rp = above_rp - ratio * below_rp
        return bool(abs(scores_rp.mean()) > _half_widths(scores_rp)(math.log(level)))

    below = float(below_rp.mean())
    if not abs(below) > _half_widths(below_rp)(math.log(level)):
        return None
    middle = float(above_rp.mean()) / below
    spread = above_rp - middle * below_rp
    step = float(_half_widths(spread)(math.log(level))) / abs(below)

    def end(step: float) -> float:
        far = step
        # for ratios beyond all bounds, the mean below decides, which is significant
        while far and not rejected(middle + far):
            far *= 2
        near = 0.0
        for _ in range(60):
            between = (near + far) / 2
            near, far = (near, between) if rejected(middle + between) else (between, far)
        return middle + near

    return Interval(end(-step), end(step))


def holm(p_values: Iterable[float]) -> list[float]:
    """Adjust p values for multiple tests by Holm's method (Scandinavian Journal of Statistics 6, 1979).

    The k-th smallest of m p values is multiplied by m - k + 1, and none falls below an earlier one; the tests may
    depend on each other in any way.
    """
    found = list(p_values)
    adjusted = [1.0] * len(found)
    reached = 0.0
    for rank, place in enumerate(sorted(range(len(found)), key=found.__getitem__)):
        reached = max(reached, min(1.0, (len(found) - rank) * found[place]))
        adjusted[place] = reached
    return adjusted
