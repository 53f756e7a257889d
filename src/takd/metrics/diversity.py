"""Diversity of a model's responses, between 0 and 100, without references."""

import statistics
from collections.abc import Iterable, Sequence

from nltk.tokenize import wordpunct_tokenize
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.util import ngrams

from takd.metrics.words import STANDARD, UNICODE, pieces

DISTINCT = (1, 2, 4)  # lengths of the n-grams: those of Li et al. and that of MiniLLM
BLEU = 4


def words(text: str, tokenizer: str = STANDARD) -> list[str]:
    """Split a text into words and runs of punctuation, independently of the model's tokenizer.

    For sets whose ROUGE tokenizer is "unicode", each character of scripts without spaces is a word;
    otherwise a sentence would be a single word.
    """
    return pieces(text) if tokenizer == UNICODE else wordpunct_tokenize(text)


def distinct(texts: Iterable[str], n: int, tokenizer: str = STANDARD) -> float | None:
    """Compute distinct-n: the share of different n-grams among all n-grams of all texts, x 100.

    Li et al., 2016 (arXiv 1510.03055, section 5.2) divide by the number of words. As in MiniLLM
    (arXiv 2306.08543, section 3.3: N / C, for n = 4), this divides by the number of n-grams, so 100
    means that none occurs twice. It falls with the number of texts: compare sets of equal size
    only. None if there are no n-grams.
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        found = list(ngrams(words(text, tokenizer), n))
        seen.update(found)
        total += len(found)
    return 100 * len(seen) / total if total else None


def self_bleu(texts: Sequence[str], tokenizer: str = STANDARD) -> float | None:
    """Compute self-BLEU, the mean BLEU of each text against the others, x 100; low is diverse.

    Zhu et al., 2018 (Texygen, arXiv 1802.01886, section 3.3), for the responses to one prompt with
    several seeds. BLEU (Papineni et al., 2002) up to 4-grams, with smoothing method 1 of Chen and
    Cherry (2014), as in Texygen. Texts of fewer than four words use the n-grams that they have;
    texts without words equal each other. None for fewer than two texts.
    """
    if len(texts) < 2:
        return None
    split = [words(text, tokenizer) for text in texts]
    scores = [_bleu(one, split[:at] + split[at + 1 :]) for at, one in enumerate(split)]
    return 100 * statistics.fmean(scores)


def _bleu(text: list[str], references: list[list[str]]) -> float:
    if not text:
        return float([] in references)
    order = min(BLEU, len(text))
    smoothing = SmoothingFunction().method1
    # left out: a reference without words has no length that a text could be close to
    longer = [reference for reference in references if reference]
    return float(sentence_bleu(longer, text, [1 / order] * order, smoothing)) if longer else 0.0
