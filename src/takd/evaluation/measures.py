"""Measures of generated text against its references, each between 0 and 100, higher is better."""

import functools
from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer


@functools.cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(text: str, references: Sequence[str]) -> float:
    """ROUGE-L F1 with stemming (Lin, 2004; the package `rouge_score`), best over the references."""
    scorer = _scorer()
    return 100 * max(scorer.score(reference, text)["rougeL"].fmeasure for reference in references)


def exact_match(text: str, references: Sequence[str]) -> float:
    """100 if the text equals a reference up to white space at its ends, else 0."""
    return 100.0 * any(text.strip() == reference.strip() for reference in references)


MEASURES = {"rougeL": rouge_l, "exact_match": exact_match}
