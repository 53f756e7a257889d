"""Means with their spread, differences between models, and when a difference may be called one."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Estimate(NamedTuple):
    """A mean over `n` training seeds and their standard deviation (n - 1 in the denominator; None for one)."""

    mean: float
    sd: float | None
    n: int

    def text(self, signed: bool = False, digits: int = 1) -> str:
        """`78.1 ± 0.4`, or `78.1` without a spread; `signed` writes a plus or a minus before it."""
        value = f"{self.mean:+.{digits}f}" if signed else f"{self.mean:.{digits}f}"
        value = value.replace("-", "−")
        return value if self.sd is None else f"{value} ± {self.sd:.{digits}f}"


def estimate(values: Iterable[float]) -> Estimate | None:
    """Mean and spread of the values; None if there are none."""
    found = list(values)
    if not found:
        return None
    sd = statistics.stdev(found) if len(found) > 1 else None
    return Estimate(statistics.fmean(found), sd, len(found))


class Gain(NamedTuple):
    """How far a model is above another one, and the yardstick for it."""

    difference: Estimate
    spread: float | None

    @property
    def exceeds(self) -> bool | None:
        """Whether the difference is larger than the spread; None if no spread is known."""
        return None if self.spread is None else abs(self.difference.mean) > self.spread

    @property
    def verdict(self) -> str:
        """The difference in words."""
        if self.exceeds is None:
            return "one training seed: no spread is known"
        if not self.exceeds:
            return "within the spread over training seeds"
        return f"{'higher' if self.difference.mean > 0 else 'lower'} by more than the spread"


def gain(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Gain | None:
    """Difference of two models, paired by training seed; None if they share no seed.

    The spread it is held against is the largest of three standard deviations over the shared seeds: of the
    paired differences, of this model, of the other. The paired one alone can be tiny by chance with two seeds.
    """
    shared = [seed for seed in ours if seed in theirs]
    difference = estimate(ours[seed] - theirs[seed] for seed in shared)
    if difference is None:
        return None
    if difference.sd is None:
        return Gain(difference, None)
    spreads = (
        difference.sd,
        statistics.stdev(ours[seed] for seed in shared),
        statistics.stdev(theirs[seed] for seed in shared),
    )
    return Gain(difference, max(spreads))


def standard_error(values: Iterable[float]) -> float | None:
    """Standard error of the mean over prompts; None for fewer than two."""
    found = list(values)
    return statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
