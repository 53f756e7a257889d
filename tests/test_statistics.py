"""Intervals and tests of the report: how often they hold the truth, against values by hand, and what they let say."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import stdtrit

from takd.analysis import fairness, statistics, table
from takd.analysis.comparisons import Pair, pairs
from takd.analysis.measures import TESTED
from takd.analysis.results import Evaluation, Model, Results
from takd.analysis.statistics import Interval, holm, over_prompts, over_trainings, sign_flip
from takd.analysis.text import p_text
from takd.experiment.lineage import nodes, of_chain

N = 4000
"""Synthetic experiments a case: the standard error of a coverage of 95 % is 0.34 points."""
BAR = (0.93, 0.97)
NOISE = 0.007
"""Two standard errors of a coverage that is measured with N experiments."""


def rouge_like(rng, prompts, columns):
    """Scores as those of ROUGE-L: many zeros, some hundreds, a skewed rest; with their true mean."""
    kind = rng.random((prompts, columns))
    rest = 100 * rng.beta(2, 6, (prompts, columns))
    return np.where(kind < 0.2, 0, np.where(kind < 0.25, 100, rest)), 5 + 0.75 * 25


@pytest.mark.parametrize("prompts", [80, 242, 500])
def test_bootstrap_over_prompts_covers_the_truth(prompts, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    scores, truth = rouge_like(np.random.default_rng(prompts), prompts, N)
    low, high = over_prompts(scores)
    assert BAR[0] <= np.mean((low <= truth) & (truth <= high)) <= BAR[1]
    # neither end is missed much more often than the other: 2.5 % each but for the skew
    assert 0.01 < np.mean(low > truth) < 0.045 and 0.01 < np.mean(high < truth) < 0.045


@pytest.mark.parametrize("prompts", [80, 500])
def test_sign_flip_rejects_equal_models_in_one_of_twenty_cases(prompts, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    rng = np.random.default_rng(prompts)
    # the same prompts, hard for both models, and another spread of each: differences are not symmetric
    hard = rng.exponential(20, (prompts, N))
    ours = hard + rng.exponential(10, (prompts, N))
    theirs = hard + 10 + rng.normal(0, 5, (prompts, N))
    assert 0.03 <= np.mean(sign_flip(ours - theirs) <= 0.05) <= 0.07
    assert np.mean(sign_flip(ours + 5 - theirs) <= 0.05) > 0.95


def effects(rng, trainings, prompts):
    """Effects in N experiments, each with mean 0 and variance 1: of trainings, of prompts, and of two draws averaged.

    The trainings are normal, prompts and draws skewed.
    """
    training = rng.normal(0, 1, (N, trainings, 1))
    prompt = rng.exponential(1, (N, 1, prompts)) - 1
    draws = rng.gamma(2.0, 1, (N, trainings, prompts)) / math.sqrt(2) - math.sqrt(2)
    return training, prompt, draws


def crossed(training, prompt, draws, shares):
    """Scores (N, R, P) with the true mean 0, in whose observed mean's variance the effects have these shares."""
    trainings, prompts = draws.shape[1:]
    sizes = trainings, prompts, trainings * prompts
    seeds, kinds, rest = (math.sqrt(a * b) for a, b in zip(shares, sizes, strict=True))
    return seeds * training + kinds * prompt + rest * draws


SHARES = {
    "no spread over trainings": (0.0, 0.4, 0.6),
    "no spread over trainings, prompts alike": (0.0, 0.0, 1.0),
    "a little": (0.1, 0.5, 0.4),
    "half": (0.5, 0.1, 0.4),
    "trainings alone": (0.98, 0.01, 0.01),
}


@pytest.mark.slow
@pytest.mark.parametrize(("trainings", "prompts"), [(2, 80), (3, 80), (5, 80), (2, 500), (5, 500)])
def test_intervals_over_trainings_cover_the_truth(trainings, prompts):
    drawn = effects(np.random.default_rng(trainings * prompts), trainings, prompts)
    for shares in SHARES.values():
        found = over_trainings(crossed(*drawn, shares))
        coverage = np.mean((found.low <= 0) & (found.high >= 0))
        # two trainings that vary little: the interval is too wide rather than too narrow, see docs/report.md
        highest = 0.98 if trainings == 2 else BAR[1]
        assert BAR[0] <= coverage <= highest + NOISE, (trainings, prompts, shares)
        # the p value says the same as the interval
        assert (found.p > 0.05).tolist() == ((found.low <= 0) & (found.high >= 0)).tolist()


def test_the_usual_ways_do_not_cover():
    """With two trainings they fall far below the bar, so the test above can tell a method that does."""
    scores = crossed(*effects(np.random.default_rng(1), 2, 80), (0.9, 0.05, 0.05))
    means = np.abs(scores.mean(axis=(1, 2)))
    by_prompt = scores.mean(axis=1).std(axis=1, ddof=1) / math.sqrt(80)
    assert np.mean(means <= 1.96 * by_prompt) < 0.6
    # the bootstrap draws one of two trainings, or both: it never looks beyond the two
    apart = np.abs(np.diff(scores.mean(axis=2), axis=1)[:, 0]) / 2
    assert np.mean(means <= apart) < 0.6
    # Satterthwaite: t with the degrees of freedom of the estimated variances
    variance = apart**2 + by_prompt**2
    degrees = variance**2 / (apart**4 + by_prompt**4 / 79)
    half = -stdtrit(degrees, 0.025) * np.sqrt(variance)
    assert np.mean(means <= half) < 0.90


def test_interval_over_trainings_by_hand():
    # two trainings with means 1 and 2, no spread over prompts: t of one degree of freedom is 12.706
    one, two = [0.0, 1.0, 2.0], [3.0, 2.0, 1.0]
    found = over_trainings(np.array([one, two]))
    assert found.low == pytest.approx(1.5 - 12.7062 * 0.5, abs=1e-3)
    assert found.high == pytest.approx(1.5 + 12.7062 * 0.5, abs=1e-3)
    # t = 3 with one degree of freedom: 2 atan(1/3) / pi
    assert found.p == pytest.approx(2 * math.atan(1 / 3) / math.pi, rel=1e-6)
    # trainings 1 and 2 on all prompts, which differ by 3: v_R = 1/4; v_P = (var of 0, 3, 6)/3 = 3
    found = over_trainings(np.array([[-2.0, 1.0, 4.0], [-1.0, 2.0, 5.0]]))
    half = (0.25 * 12.7062 + 3 * 4.30265) / math.sqrt(3.25)
    assert found.high - found.low == pytest.approx(2 * half, rel=1e-4)
    # nothing varies
    found = over_trainings(np.array([np.full((2, 4), 3.0), np.zeros((2, 4))]))
    assert found.low.tolist() == [3.0, 0.0] and found.high.tolist() == [3.0, 0.0]
    assert found.p[0] < 1e-9 and found.p[1] == 1


def test_bootstrap_agrees_with_t_where_t_is_right():
    scores = np.random.default_rng(0).normal(50, 10, (100, 3))
    half = 1.9842 * scores.std(axis=0, ddof=1) / 10
    low, high = over_prompts(scores)
    np.testing.assert_allclose(high - low, 2 * half, rtol=0.04)
    np.testing.assert_array_equal(over_prompts(scores), [low, high])


def test_sign_flip_against_all_assignments():
    differences = np.array([[3.0, 1], [1, -2], [-1, 4], [5, 0], [2, 2], [4, -3], [1, 1], [-2, 1]])
    signs = np.array(list(itertools.product([1, -1], repeat=8)))
    sums = np.abs(signs @ differences)
    exact = (sums >= np.abs(differences.sum(axis=0))).mean(axis=0)
    # four standard errors of 9,999 flips
    np.testing.assert_allclose(sign_flip(differences), exact, atol=4 * 0.005)
    assert sign_flip(np.zeros((8, 1))) == [1.0]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def made(score, chains, seeds=(1, 2, 3), prompts=100, models=None):
    """Results of chains; `score(lineage, seed, rng)` gives (P, D) scores."""
    lineages = [of_chain(*chain) for chain in chains]
    students = dict.fromkeys(model for names, _ in chains for model in names[1:])
    found = nodes(lineages, list(seeds), students)
    used = {model for names, _ in chains for model in names}
    spec = {
        "experiment": "made",
        "seeds": list(seeds),
        "sets": ["heldout"],
        "chains": [{"label": "", "lineage": lineage} for lineage in lineages],
        "models": models or dict.fromkeys(used, 1000),
    }
    evaluations = {}
    for place, node in enumerate(found):
        rng = np.random.default_rng([1, place])
        by_draw = dict.fromkeys(TESTED, score(*node, rng))
        evaluations[node, "heldout"] = Evaluation(
            node, "heldout", {}, {}, list(range(prompts)), by_draw
        )
    manifest = {"parameters": 1000, "steps": 1, "inputs": {}}
    trained = {node: Model(node, manifest, [], [], {}) for node in found}
    return Results(spec, trained, evaluations)


DIRECT = (["teacher", "student"], ["minillm"])
BY_KD = (["teacher", "student"], ["kd"])
THROUGH = (["teacher", "assistant", "student"], ["minillm", "minillm"])
MIXED = (["teacher", "assistant", "student"], ["kd", "minillm"])
OTHER = (["teacher", "assistant", "student"], ["minillm", "kd"])


def test_pairs_are_those_that_a_question_is_about():
    results = made(lambda *_: np.zeros((2, 2)), [DIRECT, BY_KD, THROUGH, MIXED, OTHER], prompts=2)
    direct, by_kd, through, mixed, other = (
        of_chain(*c) for c in (DIRECT, BY_KD, THROUGH, MIXED, OTHER)
    )
    found = pairs(results)
    assert {p for p in found if p.question == "direct"} == {
        Pair("direct", through, direct),
        Pair("direct", mixed, direct),
        Pair("direct", other, by_kd),
    }
    method = {(p.ours, p.theirs) for p in found if p.question == "method"}
    # mixed and other differ in both hops and neither is one method throughout: no question
    assert {(by_kd, direct), (mixed, through), (other, through)} <= method
    assert (other, mixed) not in method
    assert (
        Pair("sft", direct, "student-sft") in found and Pair("sft", through, "student-sft") in found
    )
    assert all(p.ours != p.theirs for p in found)


def test_a_setting_stands_against_the_same_model_with_another():
    chains = [(["teacher", name], ["minillm"]) for name in ("120M", "120M.nomix", "760M", "120Mx")]
    sizes = {"teacher": 9, "120M": 1, "120M.nomix": 1, "760M": 7, "120Mx": 1}
    results = made(lambda *_: np.zeros((2, 2)), chains, prompts=2, models=sizes)
    method = [pair for pair in pairs(results) if pair.question == "method"]
    assert method == [
        Pair("method", "teacher-sft__120M.nomix-minillm", "teacher-sft__120M-minillm")
    ]


def gains(between, seeds):
    """Direct is 6 above SFT, through the assistant 6.1; trainings spread by `between`."""

    def score(lineage, seed, rng):
        kind = np.random.default_rng(0).normal(50, 10, (100, 1))
        gain = {0: 0.0, 1: 6.0, 2: 6.1}[lineage.count("__")]
        return kind + gain + rng.normal(0, between) + rng.normal(0, 3, (100, 2))

    results = made(score, [DIRECT, THROUGH], seeds)
    return results, gain(results, "sft", DIRECT), gain(results, "direct", THROUGH)


def gain(results, question, chain):
    found = table.of(results)
    return table.one(found, question=question, lineage=of_chain(*chain), measure="rougeL")


def test_verdicts_only_where_interval_and_test_allow_them():
    _, over_sft, over_direct = gains(0.2, (1, 2, 3, 4, 5))
    assert over_sft.significant == "higher" and over_sft.text().startswith("+6.")
    assert over_sft.verdict == "significant" and over_sft.several and over_sft.low > 5
    assert not over_direct.significant and over_direct.verdict == "n.s." and over_direct.low < 0
    assert over_sft.low < 6 < over_sft.high


def test_two_trainings_that_spread_say_nothing_of_a_third():
    _, over_sft, _ = gains(2.0, (1, 2))
    assert over_sft.significant_these_checkpoints == "higher" and not over_sft.significant
    assert over_sft.verdict == "n.s."
    assert over_sft.interval.holds(0) and not over_sft.prompts_interval.holds(0)


def test_one_training_speaks_of_itself_alone():
    results, over_sft, over_direct = gains(0.0, (1,))
    assert not over_sft.several and over_sft.p == over_sft.prompts_p < 0.01
    assert over_sft.significant == over_sft.significant_these_checkpoints == "higher"
    assert not over_direct.significant and over_direct.verdict == "n.s."
    score = table.one(table.of(results), kind="score", lineage=of_chain(*DIRECT), measure="rougeL")
    assert score.se_training_seeds is None and score.interval == score.prompts_interval
    by_prompt = results.scores(of_chain(*DIRECT), "heldout", "rougeL", [1]).mean(axis=(0, 2))
    assert score.se_prompts == pytest.approx(by_prompt.std(ddof=1) / 10)


def test_p_values_are_corrected_within_a_question_and_a_set():
    results, over_sft, _ = gains(0.0, (1,))
    family = table.rows(table.of(results), question="sft", measure="rougeL")
    # three distilled models, all far above: the smallest p there is, times three
    assert len(family) == 3 and over_sft.p == pytest.approx(3 / (statistics.RESAMPLES + 1))
    assert over_sft.family == 3 and over_sft.p_raw == pytest.approx(over_sft.p / 3)


def test_equal_scores_and_a_single_prompt_are_no_error():
    results = made(lambda *_: np.full((1, 2), 40.0), [DIRECT, THROUGH], (1, 2), prompts=1)
    found = gain(results, "direct", THROUGH)
    assert (found.value, found.interval, found.p, found.verdict) == (0.0, None, None, "")
    score = table.one(table.of(results), kind="score", lineage=of_chain(*DIRECT), measure="rougeL")
    assert score.text() == "40.0"
    results = made(lambda *_: np.full((9, 1), 100.0), [DIRECT, THROUGH], (1, 2), prompts=9)
    found = gain(results, "direct", THROUGH)
    assert found.interval == Interval(0.0, 0.0) and found.p == 1 and not found.significant


def test_an_interval_ends_where_the_scale_ends():
    def score(lineage, seed, rng):
        return np.full((20, 1), 90.0 + 4 * seed) + rng.normal(0, 1, (20, 1))

    found = table.of(made(score, [DIRECT], (1, 2), prompts=20))
    wanted = {"lineage": of_chain(*DIRECT), "measure": "rougeL"}
    interval = table.one(found, kind="score", **wanted).interval
    assert interval.high == 100 and interval.low > 0


def test_strata_and_exact_match_are_tested_beside_and_change_no_other_number():
    def score(lineage, seed, rng):
        gain = np.where(np.arange(60) % 3 == 0, 20.0, 0.0)[:, None] * lineage.count("__")
        return 40 + gain + rng.normal(0, 3, (60, 2))

    results = made(score, [DIRECT, BY_KD], (1, 2, 3), prompts=60)
    plain = gain(results, "sft", DIRECT)
    for evaluation in results.evaluations.values():
        evaluation.strata.extend("copy" if row % 3 == 0 else "count" for row in range(60))
    again = Results(results.spec, results.models, results.evaluations)
    assert gain(again, "sft", DIRECT) == plain
    wanted = {"question": "sft", "lineage": of_chain(*DIRECT), "stratum": table.EACH}
    by_stratum = {(row.measure, row.stratum): row for row in table.rows(table.of(again), **wanted)}
    assert set(by_stratum) == {(m, s) for m in TESTED for s in ("copy", "count")}
    copy, count = (by_stratum["exact_match", name] for name in ("copy", "count"))
    assert copy.significant == "higher" and copy.n_prompts == 20
    assert not count.significant and count.n_prompts == 40
    # two models against SFT in two strata: one family
    assert copy.family == count.family == 4 and plain.family == 2
    values = table.rows(
        table.of(again), **{**wanted, "stratum": "copy"}, seed=table.EACH, measure="rougeL"
    )
    assert [row.seed for row in values] == [1, 2, 3]
    assert np.mean([row.value for row in values]) == pytest.approx(
        by_stratum["rougeL", "copy"].value
    )


def test_a_measure_of_one_set_alone_is_tested_there_and_changes_no_other_number():
    def score(lineage, seed, rng):
        return 40 + 20.0 * lineage.count("__") + rng.normal(0, 3, (60, 2))

    results = made(score, [DIRECT, BY_KD], (1, 2, 3), prompts=60)
    for evaluation in results.evaluations.values():
        evaluation.by_draw.pop("answer_accuracy", None)
    without = table.of(Results(results.spec, results.models, results.evaluations))
    plain = gain(results, "sft", DIRECT)
    assert not table.rows(without, measure="answer_accuracy") and results.tested("heldout") == [
        "rougeL",
        "exact_match",
    ]
    for evaluation in results.evaluations.values():
        evaluation.by_draw["answer_accuracy"] = evaluation.by_draw["exact_match"] / 2
    again = Results(results.spec, results.models, results.evaluations)
    assert gain(again, "sft", DIRECT) == plain
    wanted = {"question": "sft", "lineage": of_chain(*DIRECT), "measure": "answer_accuracy"}
    found = table.one(table.of(again), **wanted)
    assert found.significant == "higher" and found.family == 2 and found.interval


def test_numbers_are_written_with_a_true_minus_and_no_minus_zero():
    assert statistics.number(-1.25) == "−1.2" and statistics.number(2, signed=True) == "+2.0"
    assert statistics.number(-0.04) == "0.0"
    assert Interval(-0.44, 1.0).text(signed=True) == "−0.4 to +1.0"
    assert p_text(0.0004) == "p\u00a0<\u00a00.001"
    assert p_text(0.0123) == "p\u00a0=\u00a00.012"


def trained(results, lineage, settings, steps, inputs):
    """Give the trainings of a lineage what their manifests hold."""
    for node, model in results.models.items():
        if node.lineage == lineage:
            method = lineage.rpartition("-")[2]
            model.manifest.update(
                spec={"settings": settings}, steps=steps, inputs=inputs, method=method
            )


def test_what_differs_besides_the_method_is_said():
    results = made(lambda *_: np.zeros((2, 2)), [DIRECT, BY_KD, THROUGH], (1,), prompts=2)
    for node, model in results.models.items():
        results.models[node] = replace(model, manifest=dict(model.manifest))
    common = {"batch_size": 32, "learning_rate": 1e-3}
    rollouts = common | {"rows": None, "start": "sft", "teacher_mix": 0.2, "steps": 320}
    labels = common | {"rows": 1000, "start": "base", "responses": "labels", "steps": 900}
    direct, by_kd, through = map(lambda chain: of_chain(*chain), (DIRECT, BY_KD, THROUGH))
    train = {"train": ["a" * 64]}
    for lineage in (direct, through):
        trained(results, lineage, rollouts, 320, train | {"init": ["b" * 64]})
    trained(results, by_kd, labels | {"batch_size": 64}, 900, train | {"base": ["c" * 64]})
    pair = Pair("method", direct, by_kd)
    found = {one.what: (one.ours, one.theirs) for one in fairness.unequal(results, pair)}
    assert found == {
        "training rows": ("all", "1,000"), "responses": ("rollouts", "labels"),
        "start": ("SFT", "starting weights"), "steps": ("320", "900"), "batch_size": ("32", "64"),
    }  # fmt: skip
    assert fairness.warning(results, pair) == (
        "Arms differ in data or start: training rows all against 1,000, responses rollouts against labels,"
        " start SFT against starting weights."
    )
    # where the size of the training split is known, its number stands for all of it
    known = replace(results, training_rows=20_000)
    assert "training rows 20,000 against 1,000," in fairness.warning(known, pair)
    assert "training rows" not in fairness.warning(replace(results, training_rows=800), pair)
    assert fairness.warning(results, Pair("direct", through, direct)) == ""
    assert fairness.unequal(results, Pair("direct", through, direct)) == []
