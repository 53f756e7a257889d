"""Planning of seeds and prompts, and adding seeds until a question is decided: how often both are right."""

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import nct

from takd.analysis import looks
from takd.analysis.power import (
    Variances,
    interval_of_sd,
    power,
    prompts_needed,
    seeds_needed,
    told,
    variances,
)
from takd.analysis.statistics import _half_widths, holm, over_trainings

N = 4000
"""Synthetic experiments a case: the standard error of a share of 5 % is 0.34 points, of 80 % it is 0.63."""
UNTIL = {"difference": 1.0, "at_least": 3, "at_most": 9}


def differences(seed, mean, of, seeds, prompts, count=N):
    """Paired differences (count, seeds, prompts) with these variances."""
    rng = np.random.default_rng(seed)
    sizes = (count, seeds, 1), (count, 1, prompts), (count, seeds, prompts)
    return mean + sum(rng.normal(0, v**0.5, size) for v, size in zip(of, sizes, strict=True))


def interval(found, level):
    """Ends of the report's interval, without its p value, which takes a hundred times as long."""
    mean, half = found.mean(axis=(-2, -1)), _half_widths(found)(np.log(level))
    return mean - half, mean + half


def told_by_the_report(found, level=0.05):
    """Whether interval and test over prompts leave zero out; the permutation test is that of t in large samples."""
    low, high = interval(found, level)
    means = found.mean(axis=1)
    errors = means.std(axis=1, ddof=1) / means.shape[1] ** 0.5
    over_prompts = np.abs(means.mean(axis=1)) > -stdtrit(means.shape[1] - 1, level / 2) * errors
    return ((low > 0) | (high < 0)) & over_prompts


CASES = {
    "seeds alone": (Variances(0.3, 0.0, 0.0), 30),
    "both": (Variances(0.3, 4.0, 8.0), 80),
    "prompts above all": (Variances(0.02, 9.0, 5.0), 90),
    "residual alone": (Variances(0.0, 0.0, 30.0), 40),
}


@pytest.mark.parametrize(("of", "prompts"), CASES.values(), ids=CASES)
def test_the_report_tells_a_difference_with_the_power_that_was_planned(of, prompts):
    seeds = seeds_needed(of, 1.0, prompts, 0.8)
    expected = power(of, 1.0, seeds, prompts)
    assert expected >= 0.8 and (seeds == 2 or power(of, 1.0, seeds - 1, prompts) < 0.8)
    found = told_by_the_report(differences(1, 1.0, of, seeds, prompts))
    assert np.mean(found) == pytest.approx(expected, abs=0.02)
    # another level, as that of Holm's first step
    found = told_by_the_report(differences(2, 1.0, of, seeds, prompts), 0.01)
    assert np.mean(found) == pytest.approx(power(of, 1.0, seeds, prompts, 0.01), abs=0.025)


def test_prompts_needed_and_the_difference_told_now_have_the_power():
    of = Variances(0.1, 20.0, 30.0)
    prompts = prompts_needed(of, 1.0, 5, 0.8)
    found = told_by_the_report(differences(3, 1.0, of, 5, prompts))
    assert np.mean(found) == pytest.approx(0.8, abs=0.025)
    least = told(of, 5, 60, 0.8)
    found = told_by_the_report(differences(4, least, of, 5, 60))
    assert np.mean(found) == pytest.approx(0.8, abs=0.025)
    # what no number of seeds, or of prompts, can do
    assert seeds_needed(of, 1.0, 20, 0.8) is None
    assert prompts_needed(Variances(4.0, 1.0, 1.0), 1.0, 3, 0.8) is None


def test_where_prompts_add_no_variance_the_power_is_that_of_the_t_test():
    for seeds in (2, 3, 6, 20):
        limit, shift = -stdtrit(seeds - 1, 0.025), seeds**0.5 / 0.7
        exact = nct.sf(limit, seeds - 1, shift) + nct.cdf(-limit, seeds - 1, shift)
        assert power(Variances(0.49, 0, 0), 1.0, seeds, 9) == pytest.approx(exact, abs=2e-3)


def test_variances_are_estimated_without_bias():
    of = Variances(0.5, 3.0, 2.0)
    found = np.array([variances(each) for each in differences(5, 1.0, of, 4, 20, 1000)])
    assert found.mean(axis=0) == pytest.approx(of, rel=0.05)
    # with one training nothing is known of the spread between trainings
    alone = variances(differences(6, 1.0, of, 1, 2000, 1)[0])
    assert np.isnan(alone.trainings) and alone.prompts == pytest.approx(5.0, rel=0.1)
    # 3 seeds, by the table of chi-squared: 2 / 7.378 and 2 / 0.0506
    assert interval_of_sd(1.0, 3) == pytest.approx((0.5207, 6.285), rel=1e-3)


def verdicts(found, until=UNTIL):
    """Verdict and number of seeds of each experiment (N, R, P) that stops at its first decision; empty is undecided."""
    words, taken = np.full(len(found), "", dtype=object), np.full(len(found), until["at_most"])
    for seeds in range(until["at_least"], until["at_most"] + 1):
        ends = zip(*interval(found[:, :seeds], looks.level(until, seeds)), strict=True)
        for at, (low, high) in enumerate(ends):
            row = {"low": low, "high": high}
            row["significant"] = "higher" if low > 0 else "lower" if high < 0 else ""
            if not words[at] and (verdict := looks.verdict(row, until)):
                words[at], taken[at] = verdict, seeds
    return words, taken


@pytest.mark.parametrize("case", ["seeds alone", "both", "prompts above all"])
def test_at_most_five_in_a_hundred_experiments_end_with_a_wrong_verdict(case):
    of, _ = CASES[case]
    # no difference: neither is higher
    words, _ = verdicts(differences(7, 0.0, of, 9, 12))
    assert np.mean((words == "higher") | (words == "lower")) <= 0.05
    # a difference of just the bound: neither within it nor lower
    words, _ = verdicts(differences(8, 1.0, of, 9, 12))
    assert np.mean((words == "within") | (words == "lower")) <= 0.05


def test_the_level_of_all_looks_is_spent():
    words, _ = verdicts(
        differences(9, 0.0, CASES["seeds alone"][0], 9, 12), UNTIL | {"difference": 1e-9}
    )
    assert np.mean(words != "") == pytest.approx(0.05, abs=0.01)


def test_holm_over_questions_and_looks_holds_whatever_stops_the_run():
    # four methods against one baseline: no difference is true, and any that is called significant at any look is wrong
    rng = np.random.default_rng(11)
    scores = rng.normal(0, 1, (5, 1000, 9, 1)) + rng.normal(0, 1, (5, 1000, 9, 3))
    found, wrong = scores[:4] - scores[4], np.zeros(1000, dtype=bool)
    for seeds in range(3, 10):
        p_values = looks.over_all(UNTIL, seeds, over_trainings(found[:, :, :seeds]).p)
        wrong |= [min(holm(family)) <= 0.05 for family in p_values.T]
    assert np.mean(wrong) <= 0.05


@pytest.mark.parametrize(
    ("at_most", "effect", "share"), [(9, 1.0, 1.1), (9, 2.5, 0.62), (12, 1.5, 0.72), (12, 2.0, 0.6)]
)
def test_trainings_of_a_fixed_design_with_equal_power(at_most, effect, share):
    until = UNTIL | {"at_most": at_most, "difference": 1e-9}
    words, taken = verdicts(differences(10, effect, Variances(1.0, 0, 0), at_most, 2), until)
    reached = np.mean(words == "higher")
    fixed = next(n for n in range(2, 99) if power(Variances(1.0, 0, 0), effect, n, 2) >= reached)
    assert taken.mean() <= share * fixed
