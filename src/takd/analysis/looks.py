"""Adding training seeds until each question is decided, with the error of looking repeatedly held.

After each of k = first ... last training seeds the differences are tested. A look's p value p_k is compared with a
nominal level in proportion to k, so that all looks together reject a true null hypothesis in 5 % of experiments: a
group sequential design (Pocock, Biometrika 64, 1977) with t statistics. Under the null hypothesis the joint law of the
t statistics of growing samples is free of their variance, and so is that of M = min_k p_k / k, over all looks.

- The p value of a look, over all looks, is P(M <= p_k / k). The least of them over the looks is valid whenever one
  stops (Liu and Anderson, JASA 103, 2008), so Holm's correction holds over the questions and whatever stops the run.
- The interval of a look has the level 1 - k q, with q the 5 % quantile of M: a repeated confidence interval (Jennison
  and Turnbull, JRSS B 51, 1989). With probability 95 % all looks' intervals hold the truth.

A difference is decided where it is significant, or where its interval lies within +- `difference`.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy.special import stdtr

from takd.analysis.statistics import LEVEL, SEED, Array

DRAWS, PART = 400_000, 50_000
"""Experiments that the law of M is simulated with: a standard error of 0.03 points at 5 %."""
WITHIN = "within"
"""Verdict on a difference whose interval lies within the bounds."""

Until = Mapping[str, Any]
"""Settings `seeds.until` of an experiment; None where the number of seeds is fixed."""


@functools.cache
def _least(first: int, last: int) -> Array:
    """Sorted draws of M, for looks with `first` to `last` training seeds."""
    rng = np.random.default_rng(SEED)
    seeds = np.arange(first, last + 1)[:, None]
    found = []
    for _ in range(DRAWS // PART):
        drawn = rng.standard_normal((last, PART))
        sums, squares = drawn.cumsum(axis=0)[first - 1 :], (drawn**2).cumsum(axis=0)[first - 1 :]
        errors = np.sqrt((squares - sums**2 / seeds) / (seeds - 1) * seeds)
        found.append((2 * stdtr(seeds - 1, -np.abs(sums) / errors) / seeds).min(axis=0))
    return np.sort(np.concatenate(found))


def counts(until: Until | None, seeds: int) -> bool:
    """Return whether results with so many training seeds are a look; fewer than the first look has are none."""
    return until is not None and seeds >= until["at_least"]


def level(until: Until | None, seeds: int) -> float:
    """Nominal level of the look with so many training seeds: intervals are at 1 - level."""
    if until is None or not counts(until, seeds):
        return 1 - LEVEL
    least = _least(until["at_least"], until["at_most"])
    return float(seeds * least[int((1 - LEVEL) * (len(least) + 1)) - 1])


def over_all(until: Until | None, seeds: int, p: Any) -> Any:
    """P values over all looks, for p values of the look with so many training seeds."""
    if until is None or not counts(until, seeds):
        return p
    least = _least(until["at_least"], until["at_most"])
    return (np.searchsorted(least, p / seeds, side="right") + 1) / (len(least) + 1)


def decided(rows: Iterable[dict[str, Any]], until: Until) -> list[dict[str, Any]]:
    """Select the differences that are to be decided, each with its verdict.

    Those of models that are trained once for all seeds are left out: more seeds say no more of them.

    Args:
        rows: scores and differences as columns of the table (`takd.analysis.table.Number`).

    Returns:
        The differences with `verdict`: `higher`, `lower`, `within`, or empty where undecided.
    """
    found = []
    for row in rows:
        asked = row["kind"] == "difference" and row["measure"] == until["measure"]
        asked &= not row["stratum"] and row.get("seed") is None
        asked &= until["sets"] is None or row["set"] in until["sets"]
        asked &= until["questions"] is None or row.get("question") in until["questions"]
        if asked and row["n_training_seeds"] > 1:
            found.append(row | {"verdict": verdict(row, until)})
    return found


def verdict(row: Mapping[str, Any], until: Until) -> str:
    """Decide one difference: `higher`, `lower`, `within` the bounds, or empty where undecided."""
    bound = until["difference"]
    inside = row["low"] is not None and -bound <= row["low"] and row["high"] <= bound
    return row["significant"] or (WITHIN if inside else "")
