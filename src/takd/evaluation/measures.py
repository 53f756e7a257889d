"""Measures of generated text, each between 0 and 100: quality against references, and diversity.

Those that need a model are in `takd.evaluation.likelihoods`; docs/measures.md has all of them side by side.
"""

import functools
import statistics
from collections.abc import Iterable, Sequence

from nltk.stem.porter import PorterStemmer
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.util import ngrams
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize
from rouge_score.tokenizers import Tokenizer

DISTINCT = (1, 2, 4)  # lengths of the n-grams: those of Li et al. and that of MiniLLM
BLEU = 4
STEMS = 2**16  # words whose stems are kept


class _Stemmer:
    """The stemmer of `rouge_score`, that stems a word once: stemming takes it 40 % of its time."""

    def __init__(self) -> None:
        self.stem = functools.lru_cache(STEMS)(PorterStemmer().stem)


class _Tokenizer(Tokenizer):
    def __init__(self) -> None:
        self._stemmer = _Stemmer()

    def tokenize(self, text: str) -> list[str]:
        return tokenize(text, self._stemmer)


@functools.cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], tokenizer=_Tokenizer())


def rouge_l(text: str, references: Sequence[str]) -> float:
    """ROUGE-L F1 with stemming (Lin, 2004; the package `rouge_score`), best over the references."""
    scorer = _scorer()
    return 100 * max(scorer.score(reference, text)["rougeL"].fmeasure for reference in references)


def exact_match(text: str, references: Sequence[str]) -> float:
    """100 if the text equals a reference up to white space at its ends, else 0."""
    return 100.0 * any(text.strip() == reference.strip() for reference in references)


MEASURES = {"rougeL": rouge_l, "exact_match": exact_match}


def words(text: str) -> list[str]:
    """Words and runs of punctuation, as diversity counts them: the same for all models, whatever their tokenizer."""
    return wordpunct_tokenize(text)


def distinct(texts: Iterable[str], n: int) -> float | None:
    """Distinct-n: different n-grams of words among all n-grams of all texts together, x 100.

    Li et al., 2016 (arXiv 1510.03055, section 5.2), who divide by the number of words; divided by the number of
    n-grams, as here, in MiniLLM (arXiv 2306.08543, section 3.3: N / C, for n = 4), so that 100 means that none occurs
    twice. Falls with the number of texts: compare sets of equal size only. None without n-grams.
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        found = list(ngrams(words(text), n))
        seen.update(found)
        total += len(found)
    return 100 * len(seen) / total if total else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """Self-BLEU: mean BLEU of each text with the others as its references, x 100; lower is more diverse.

    Zhu et al., 2018 (Texygen, arXiv 1802.01886, section 3.3), of the answers that one prompt gets with several seeds.
    BLEU (Papineni et al., 2002) up to 4-grams with smoothing method 1 of Chen and Cherry (2014), which Texygen uses
    too; a text of fewer than four words is judged by the n-grams that it has. Texts without words equal each other.
    None for fewer than two texts.
    """
    if len(texts) < 2:
        return None
    split = [words(text) for text in texts]
    scores = [_bleu(one, split[:at] + split[at + 1 :]) for at, one in enumerate(split)]
    return 100 * statistics.fmean(scores)


def _bleu(text: list[str], references: list[list[str]]) -> float:
    if not text:
        return float([] in references)
    order = min(BLEU, len(text))
    smoothing = SmoothingFunction().method1
    # of no value to nltk: a reference without words has no length to be near to
    longer = [reference for reference in references if reference]
    return float(sentence_bleu(longer, text, [1 / order] * order, smoothing)) if longer else 0.0


def score(texts: Sequence[str], references: Sequence[str]) -> dict[str, list[float] | float | None]:
    """All measures of one prompt: of each answer, and of the answers together."""
    found: dict[str, list[float] | float | None] = {
        name: [measure(text, references) for text in texts] for name, measure in MEASURES.items()
    }
    found["self_bleu"] = self_bleu(texts)
    return found
