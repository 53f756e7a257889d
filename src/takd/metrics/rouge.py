"""Measures of generated text against references, between 0 and 100; higher is better.

Also used for dev evaluations. docs/measures.md lists all measures.
"""

import functools
import string
from collections.abc import Callable, Sequence

from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize
from rouge_score.tokenizers import Tokenizer

from takd.metrics import words
from takd.metrics.answers import answer_accuracy

STEMS = 2**16  # words whose stems are cached
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class _Words(Tokenizer):
    """Stemmed tokens; stems are cached, since stemming takes 40 % of the time of `rouge_score`."""

    def __init__(self, tokenizer: str) -> None:
        self._unicode = tokenizer == words.UNICODE
        self.stem = functools.lru_cache(STEMS)(PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        if not self._unicode:
            return tokenize(text, self)  # it takes the method `stem` of its stemmer
        # the stemmer is for English words of four letters and more, as `rouge_score` has it
        found = words.tokens(text)
        return [self.stem(word) if len(word) > 3 and word.isascii() else word for word in found]


@functools.cache
def _scorer(tokenizer: str) -> RougeScorer:
    return RougeScorer(["rougeL"], tokenizer=_Words(tokenizer))


def rouge_l(text: str, references: Sequence[str], tokenizer: str = words.AUTO) -> float:
    """Compute ROUGE-L F1 with stemming (Lin, 2004; package `rouge_score`), best over references.

    Args:
        tokenizer: "standard", the package's (a–z and 0–9 only); "unicode", that of
            `takd.metrics.words`; or "auto", which uses "unicode" if "standard" ignores most of
            the references. Stages pass the one that the data stage chose for the whole set.
    """
    scorer = _scorer(words.suited(references) if tokenizer == words.AUTO else tokenizer)
    return 100 * max(scorer.score(reference, text)["rougeL"].fmeasure for reference in references)


def exact_match(text: str, references: Sequence[str]) -> float:
    """Return 100 if the text equals a reference, apart from surrounding white space, else 0."""
    return 100.0 * any(text.strip() == reference.strip() for reference in references)


def normalised_match(text: str, references: Sequence[str]) -> float:
    """Return 100 if the normalised text equals a normalised reference, else 0.

    Normalised: lower case, no ASCII punctuation, single spaces. As in MiniLLM's code, which follows
    SQuAD but keeps articles.
    """
    return 100.0 * any(_normalised(text) == _normalised(reference) for reference in references)


def _normalised(text: str) -> str:
    return " ".join(text.lower().translate(NO_PUNCTUATION).split())


MEASURES: dict[str, Callable[[str, Sequence[str], str], float]] = {
    "rougeL": rouge_l,
    "exact_match": lambda text, references, _: exact_match(text, references),
    "normalised_match": lambda text, references, _: normalised_match(text, references),
}


ANSWER = "answer_accuracy"  # of sets that name a pattern of the answer


def names(pattern: str | None) -> list[str]:
    """List the measures of a text, on a set with or without a pattern of the answer."""
    return [*MEASURES, *([ANSWER] if pattern else [])]


def scores(
    text: str, references: Sequence[str], tokenizer: str, pattern: str | None = None
) -> dict[str, float]:
    """Compute all measures of a text; `tokenizer` as for `rouge_l`, `pattern` as for `answer_accuracy`."""
    found = {name: measure(text, references, tokenizer) for name, measure in MEASURES.items()}
    return found | ({ANSWER: answer_accuracy(text, references, pattern)} if pattern else {})
