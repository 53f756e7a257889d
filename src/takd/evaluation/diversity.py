"""How different the answers of a model are, between 0 and 100; no references are needed."""

import statistics
from collections.abc import Iterable, Sequence

from nltk.tokenize import wordpunct_tokenize
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.util import ngrams

from takd.evaluation.words import STANDARD, UNICODE, pieces

DISTINCT = (1, 2, 4)  # lengths of the n-grams: those of Li et al. and that of MiniLLM
BLEU = 4


def words(text: str, tokenizer: str = STANDARD) -> list[str]:
    """Words and runs of punctuation, as diversity counts them: the same for all models, whatever their tokenizer.

    Where ROUGE has "unicode" tokens on a set, single characters are words in scripts that put no spaces between them,
    whose sentences would else be one word each.
    """
    return pieces(text) if tokenizer == UNICODE else wordpunct_tokenize(text)


def distinct(texts: Iterable[str], n: int, tokenizer: str = STANDARD) -> float | None:
    """Distinct-n: different n-grams of words among all n-grams of all texts together, x 100.

    Li et al., 2016 (arXiv 1510.03055, section 5.2), who divide by the number of words; divided by the number of
    n-grams, as here, in MiniLLM (arXiv 2306.08543, section 3.3: N / C, for n = 4), so that 100 means that none occurs
    twice. Falls with the number of texts: compare sets of equal size only. None without n-grams.
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        found = list(ngrams(words(text, tokenizer), n))
        seen.update(found)
        total += len(found)
    return 100 * len(seen) / total if total else None


def self_bleu(texts: Sequence[str], tokenizer: str = STANDARD) -> float | None:
    """Self-BLEU: mean BLEU of each text with the others as its references, x 100; lower is more diverse.

    Zhu et al., 2018 (Texygen, arXiv 1802.01886, section 3.3), of the answers that one prompt gets with several seeds.
    BLEU (Papineni et al., 2002) up to 4-grams with smoothing method 1 of Chen and Cherry (2014), which Texygen uses
    too; a text of fewer than four words is judged by the n-grams that it has. Texts without words equal each other.
    None for fewer than two texts.
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
    # of no value to nltk: a reference without words has no length to be near to
    longer = [reference for reference in references if reference]
    return float(sentence_bleu(longer, text, [1 / order] * order, smoothing)) if longer else 0.0
