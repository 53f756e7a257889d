"""Measures of generated text against its references, each between 0 and 100, higher is better.

Trainings judge their dev answers by them. docs/measures.md has all measures side by side.
"""

import functools
import string
from collections.abc import Sequence

from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize
from rouge_score.tokenizers import Tokenizer

from takd.evaluation import words

STEMS = 2**16  # words whose stems are kept
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class _Stemmer:
    """The stemmer of `rouge_score`, that stems a word once: stemming takes it 40 % of its time."""

    def __init__(self) -> None:
        self.stem = functools.lru_cache(STEMS)(PorterStemmer().stem)


class _Standard(Tokenizer):
    def __init__(self) -> None:
        self._stemmer = _Stemmer()

    def tokenize(self, text: str) -> list[str]:
        return tokenize(text, self._stemmer)


class _Unicode(_Standard):
    def tokenize(self, text: str) -> list[str]:
        # the stemmer is for English words of four letters and more, as `rouge_score` has it
        stem = self._stemmer.stem
        found = words.tokens(text)
        return [stem(word) if len(word) > 3 and word.isascii() else word for word in found]


@functools.cache
def _scorer(tokenizer: str) -> RougeScorer:
    kind = {words.STANDARD: _Standard, words.UNICODE: _Unicode}[tokenizer]
    return RougeScorer(["rougeL"], tokenizer=kind())


def rouge_l(text: str, references: Sequence[str], tokenizer: str = words.AUTO) -> float:
    """ROUGE-L F1 with stemming (Lin, 2004; the package `rouge_score`), best over the references.

    Args:
        tokenizer: "standard", the package's (a–z and 0–9 alone); "unicode", `takd.evaluation.words`; or "auto", the
            second where the first tells little of the references. The stages name the one that the data stage chose
            for the whole set.
    """
    scorer = _scorer(words.suited(references) if tokenizer == words.AUTO else tokenizer)
    return 100 * max(scorer.score(reference, text)["rougeL"].fmeasure for reference in references)


def exact_match(text: str, references: Sequence[str]) -> float:
    """100 if the text equals a reference up to white space at its ends, else 0."""
    return 100.0 * any(text.strip() == reference.strip() for reference in references)


def normalised_match(text: str, references: Sequence[str]) -> float:
    """100 if the text equals a reference in lower case, without ASCII punctuation, with single spaces; else 0.

    The exact match of MiniLLM's code, which has it from SQuAD and keeps articles.
    """
    return 100.0 * any(_normalised(text) == _normalised(reference) for reference in references)


def _normalised(text: str) -> str:
    return " ".join(text.lower().translate(NO_PUNCTUATION).split())


MEASURES = ("rougeL", "exact_match", "normalised_match")


def scores(text: str, references: Sequence[str], tokenizer: str) -> dict[str, float]:
    """All measures of one text; `tokenizer` as for `rouge_l`."""
    found = (
        rouge_l(text, references, tokenizer),
        exact_match(text, references),
        normalised_match(text, references),
    )
    return dict(zip(MEASURES, found, strict=True))
