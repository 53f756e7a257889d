"""Measures of many answers, by several processes where there is enough to do for them."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from takd.evaluation import diversity, measures

# pairs of words that ROUGE compares in a second, about, and what starting a process costs
PAIRS_PER_SECOND = 2e6
START_SECONDS = 3.0
PIECE = 32  # prompts that a process scores at a time


def of_prompt(
    texts: Sequence[str], references: Sequence[str]
) -> dict[str, list[float] | float | None]:
    """All measures of one prompt: of each answer, and of the answers together."""
    found: dict[str, list[float] | float | None] = {
        name: [measure(text, references) for text in texts]
        for name, measure in measures.MEASURES.items()
    }
    found["self_bleu"] = diversity.self_bleu(texts)
    return found


def score(
    texts: Sequence[Sequence[str]], references: Sequence[Sequence[str]], threads: int
) -> list[dict[str, Any]]:
    """`of_prompt` of each prompt.

    Args:
        texts: answers to each prompt.
        references: of each prompt.
        threads: most processes.
    """
    pairs = sum(
        len(text.split()) * len(reference.split())
        for answers, right in zip(texts, references, strict=True)
        for text in answers
        for reference in right
    )
    workers = min(threads, int(pairs / PAIRS_PER_SECOND / START_SECONDS))
    if workers < 2:
        return list(map(of_prompt, texts, references))
    return pooled(texts, references, workers)


def pooled(
    texts: Sequence[Sequence[str]], references: Sequence[Sequence[str]], workers: int
) -> list[dict[str, Any]]:
    """The same by so many processes."""
    # not forked: the parent holds threads, and a GPU
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return list(pool.map(of_prompt, texts, references, chunksize=PIECE))
