"""Measures against hand values and the package they come from."""

import pytest
from rouge_score.rouge_scorer import RougeScorer

from takd.evaluation.measures import exact_match, rouge_l


def test_rouge_l_by_hand():
    # longest common subsequence "the cat sat": 3 of 4 and 3 of 5 words, F1 = 6 / 9
    assert rouge_l("the cat sat down", ["so the black cat sat"]) == pytest.approx(100 * 2 / 3)
    assert rouge_l("running dogs", ["run dog"]) == 100  # stems
    assert rouge_l("", ["a word"]) == 0


def test_rouge_l_takes_the_best_reference_and_equals_the_package():
    text, references = "a small red cat", ["a dog", "the small red cat sleeps", "cat"]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    each = [scorer.score(r, text)["rougeL"].fmeasure for r in references]
    assert rouge_l(text, references) == 100 * max(each) > 100 * each[0]


def test_exact_match():
    assert exact_match(" red cat\n", ["dog", "red cat"]) == 100
    assert exact_match("red  cat", ["red cat"]) == 0
