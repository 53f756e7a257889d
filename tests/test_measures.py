"""Measures against hand values and the package they come from."""

import math
import random
import string
from decimal import Decimal
from functools import partial

import pytest
from rouge_score.rouge_scorer import RougeScorer

from takd.metrics.answers import answer_accuracy, final_answer
from takd.metrics.diversity import _bleu, distinct, self_bleu, words
from takd.metrics.parallel import of_prompt, pooled, score
from takd.metrics.rouge import exact_match, normalised_match, rouge_l, scores

KINDS = "running ran nationalities conditionally the a 3.5 café Ünïcode, end. (x) flies dogs' RUN"


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


def test_rouge_l_equals_the_package_to_the_last_digit_on_made_texts():
    """Words of all kinds: those that stems change, short ones, numbers, other alphabets, punctuation, none."""
    draws = random.Random(7)
    texts = [" ".join(draws.choices(KINDS.split(), k=draws.randrange(40))) for _ in range(200)]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for text, first, second in zip(texts, texts[1:], texts[2:], strict=False):
        each = [scorer.score(r, text)["rougeL"].fmeasure for r in (first, second)]
        assert rouge_l(text, [first, second]) == 100 * max(each)


def test_exact_match():
    assert exact_match(" red cat\n", ["dog", "red cat"]) == 100
    assert exact_match("red  cat", ["red cat"]) == 0


@pytest.mark.parametrize(
    ("text", "references", "strict", "normalised"),
    [
        ("red cat", ["red cat"], 100, 100),
        ("Red, cat!", ["dog", "red  cat"], 0, 100),
        ("the cat", ["cat"], 0, 0),  # articles stay
        ("3.50", ["350"], 0, 100),
        ("ÉTÉ.", ["été"], 0, 100),
        ("大家好。", ["大家好"], 0, 0),  # not of ASCII
        ("don't", ["dont"], 0, 100),
        ("...", ["!"], 0, 100),
        ("a\tb\n\nc", ["a b c"], 0, 100),
        ("yes", ["no", "maybe"], 0, 0),
    ],
)
def test_exact_and_normalised_match(text, references, strict, normalised):
    assert exact_match(text, references) == strict
    assert normalised_match(text, references) == normalised
    assert normalised == 100 * any(plain(text) == plain(r) for r in references)


def plain(text):
    """As in the authors' `rouge_metric.py`."""
    without = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
    return " ".join(without.split())


def test_distinct_n_by_hand():
    texts = ["the red cat", "the red dog", ""]
    assert distinct(texts, 1) == pytest.approx(100 * 4 / 6)  # the red cat dog
    assert distinct(texts, 2) == pytest.approx(100 * 3 / 4)  # the-red, red-cat, red-dog
    assert distinct(texts, 4) is None
    assert distinct(["a b", "c d"], 1) == 100
    # n-grams do not go from one text into the next
    assert distinct(["a b", "a b"], 2) == 50


def test_punctuation_counts_as_words():
    assert words("Yes, it's 3.5!") == ["Yes", ",", "it", "'", "s", "3", ".", "5", "!"]


def test_self_bleu_of_equal_and_of_different_texts():
    text = "one two three four five"
    assert self_bleu([text, text, text]) == pytest.approx(100)
    assert self_bleu([text, "six seven eight nine"]) == 0
    assert self_bleu(["yes", "yes"]) == pytest.approx(100), "short texts can be alike, too"
    assert self_bleu(["", ""]) == 100
    assert self_bleu(["", "yes"]) == 0
    assert self_bleu([text]) is None


def test_self_bleu_by_hand():
    # n-grams of each that the other has, of 1 to 4 words: 4 of 5, 3 of 4, 2 of 3, 1 of 2; equal lengths, no penalty
    expected = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert self_bleu(["a b c d e", "a b c d f"]) == pytest.approx(100 * expected)
    # the first: 4 of 4 of all orders, too short by one word: exp(1 - 5 / 4); the second: 4/5, 3/4, 2/3, 1/2, longer
    pair = (math.exp(1 - 5 / 4), expected)
    assert self_bleu(["a b c d", "a b c d e"]) == pytest.approx(100 * sum(pair) / 2)


def test_self_bleu_takes_all_others_as_references():
    texts = ["a b c d e f", "a b c d x y", "z z c d e f"]
    # of the first, all words, pairs and triples stand in one of the others, and two of three quadruples
    one = (2 / 3) ** (1 / 4)
    assert _bleu(texts[0].split(), [t.split() for t in texts[1:]]) == pytest.approx(one, abs=1e-12)


NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"


@pytest.mark.parametrize(
    ("text", "pattern", "found"),
    [
        ("5 + 7 = 12.\n#### 12", NUMBER, 12),
        ("The answer is 1,200.00.", NUMBER, 1200),
        ("It is -0.50", NUMBER, Decimal("-0.5")),
        ("so 3.10 or 7", NUMBER, 7),
        ("#### 1,200.", r"####\s*(.+)", 1200),
        ("#### +.5 ", r"####\s*(.+)", Decimal("0.5")),
        ("The answer is (B).", r"\(([A-D])\)", "b"),
        ("答案是 四 .", "答案是 (.+)", "四"),
        ("no number", NUMBER, None),
        ("", NUMBER, None),
        ("ab", "a(b)?|(?:c)", "b"),
        ("a", "a(b)?", None),
    ],
)
def test_final_answers(text, pattern, found):
    assert final_answer(text, pattern) == found


def test_answer_accuracy():
    references = ["3 * 4 = 12.\n#### 12", "#### 13"]
    for text, right in (("12", 1), ("13.0!", 1), ("12 or 14", 0), ("none", 0)):
        assert answer_accuracy(text, references, NUMBER) == 100 * right
    # without an answer in the text and in a reference there is no agreement
    assert answer_accuracy("none", ["none"], NUMBER) == 0
    found = scores("I say 12.", references, "standard", NUMBER)
    assert found["answer_accuracy"] == 100 and found["exact_match"] == 0
    assert "answer_accuracy" not in scores("12", references, "standard")


@pytest.mark.slow
def test_scores_do_not_depend_on_the_number_of_processes():
    rows = [([f"the {a} cat sat", f"a {a}"], [f"the {a} cat", "dog"]) for a in "abcdef" * 20]
    texts, references = zip(*rows, strict=True)
    alone = score(texts, references, threads=1)
    assert alone[0]["rougeL"][0] == rouge_l(texts[0][0], references[0])
    assert pooled(partial(of_prompt, "standard"), texts, references, 2) == alone
    answers = score(texts, references, threads=1, pattern="(cat|dog)")
    assert answers[0]["answer_accuracy"] == [100, 0]
    measure = partial(of_prompt, "standard", pattern="(cat|dog)")
    assert pooled(measure, texts, references, 2) == answers
