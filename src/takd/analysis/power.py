"""How many training seeds and prompts tell a difference, from the variances of paired differences.

A difference y_rp of training r and prompt p is m + a_r + b_p + e_rp, as in `statistics.over_trainings`. The power is
that of the report's test at one level: the interval across trainings and the test over prompts must leave zero out.
Under normality the mean and the mean squares that these are made of are independent, so that the power is the mean,
over draws of the mean squares, of a probability that is known: no experiment is simulated as a whole.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import chdtri, ndtr, stdtrit

from takd.analysis.statistics import LEVEL, SEED, Array, Interval

DRAWS = 2_000
MOST = 1_000, 1_000_000
"""Training seeds and prompts that are searched, at most."""


class Variances(NamedTuple):
    """Variances of a paired difference. What is over prompts includes the noise of the draws."""

    trainings: float
    """Between trainings, over all prompts; nan where unknown."""
    prompts: float
    """Between prompts, over all trainings; with one training all that differs between prompts."""
    residual: float
    """Of a training's difference on one prompt, beside both."""

    def over_seeds(self, prompts: int) -> float:
        """Standard deviation between trainings of the mean over so many prompts."""
        return math.sqrt(self.trainings + self.residual / prompts)


def variances(difference_rp: Array) -> Variances:
    """Estimate the variances of differences (R, P) by the analysis of variance; no estimate is below zero."""
    trainings, prompts = difference_rp.shape
    by_prompt = difference_rp.mean(axis=0).var(ddof=1)
    if trainings == 1:
        return Variances(math.nan, float(by_prompt), 0.0)
    by_training = difference_rp.mean(axis=1)
    rest = difference_rp - by_training[:, None] - difference_rp.mean(axis=0) + difference_rp.mean()
    residual = float((rest**2).sum() / ((trainings - 1) * (prompts - 1)))
    return Variances(
        max(0.0, float(by_training.var(ddof=1)) - residual / prompts),
        max(0.0, float(by_prompt) - residual / trainings),
        residual,
    )


def interval_of_sd(sd: float, seeds: int) -> Interval:
    """Confidence interval of a standard deviation over seeds, by its chi-squared distribution."""
    tails = chdtri(seeds - 1, np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Interval(*(sd * np.sqrt((seeds - 1) / tails)).tolist())


@functools.cache
def _ranks() -> Array:
    """Upper tails (3, DRAWS) of three independent variables, each spread evenly (a Latin hypercube)."""
    rng = np.random.default_rng(SEED)
    return np.stack([(rng.permutation(DRAWS) + 0.5) / DRAWS for _ in range(3)])


def power(
    of: Variances, difference: float, seeds: int, prompts: int, level: float = 1 - LEVEL
) -> float:
    """Probability that the report's test tells a true difference, at one level.

    Args:
        of: its variances; with one seed the test is over prompts, for these checkpoints, and that between trainings
            does not matter.
        seeds: training seeds.
        level: of the test; Holm's first step among m tests is at level / m.
    """
    tails = _ranks()
    count = seeds * prompts
    quantile = -stdtrit(prompts - 1, level / 2)
    variance = of.prompts / prompts + of.residual / count
    over_prompts = _chi(prompts - 1, tails[1], variance)
    half = quantile * over_prompts**0.5
    if seeds > 1:
        degrees = (seeds - 1) * (prompts - 1)
        variance = of.trainings / seeds + variance
        first = _chi(seeds - 1, tails[0], (of.trainings + of.residual / prompts) / seeds)
        second = np.maximum(over_prompts - _chi(degrees, tails[2], of.residual / count), 0)
        ends = first * -stdtrit(seeds - 1, level / 2) + second * quantile
        total = np.sqrt(first + second)
        half = np.maximum(half, np.divide(ends, total, out=np.zeros(DRAWS), where=total > 0))
    if variance == 0:
        return float(difference > 0)
    ends = (np.array([[difference], [-difference]]) - half) / math.sqrt(variance)
    return float(ndtr(ends).sum(axis=0).mean())


def _chi(degrees: int, tails: Array, expected: float) -> Array:
    """Draws of a variance's estimate with these degrees of freedom."""
    return expected * chdtri(degrees, tails) / degrees


def seeds_needed(
    of: Variances, difference: float, prompts: int, wanted: float, level: float = 1 - LEVEL
) -> int | None:
    """Least number of training seeds, two or more, with the wanted power; None if there is none up to 1,000."""
    return _least(lambda seeds: power(of, difference, seeds, prompts, level) >= wanted, 2, MOST[0])


def prompts_needed(
    of: Variances, difference: float, seeds: int, wanted: float, level: float = 1 - LEVEL
) -> int | None:
    """Least number of prompts with the wanted power; None if there is none up to a million."""
    return _least(lambda count: power(of, difference, seeds, count, level) >= wanted, 3, MOST[1])


def _least(enough: Callable[[int], bool], first: int, last: int) -> int | None:
    """Least number from `first` to `last` that is enough, where all above it are as well."""
    if not enough(last):
        return None
    while first < last:
        middle = (first + last) // 2
        first, last = (first, middle) if enough(middle) else (middle + 1, last)
    return last


def told(of: Variances, seeds: int, prompts: int, wanted: float, level: float = 1 - LEVEL) -> float:
    """Least difference that is told with the wanted power."""
    low, high = 0.0, 1.0
    while power(of, high, seeds, prompts, level) < wanted:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if power(of, middle, seeds, prompts, level) >= wanted else (middle, high)
        )
    return high
