"""Scores of many responses, computed in several processes if that is worthwhile."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from takd.metrics import diversity, rouge, words
from takd.runtime.imports import hide

# approximate word pairs that ROUGE compares per second, and seconds to start a process
PAIRS_PER_SECOND = 2e6
START_SECONDS = 3.0
PIECE = 32  # prompts per task of the pool


def of_prompt(
    tokenizer: str, texts: Sequence[str], references: Sequence[str], pattern: str | None = None
) -> dict[str, list[float] | float | None]:
    """Compute all measures of one prompt's responses, individually and together."""
    of_texts = [rouge.scores(text, references, tokenizer, pattern) for text in texts]
    found = {name: [scores[name] for scores in of_texts] for name in rouge.names(pattern)}
    return {**found, "self_bleu": diversity.self_bleu(texts, tokenizer)}


def score(
    texts: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    threads: int,
    tokenizer: str = words.STANDARD,
    pattern: str | None = None,
) -> list[dict[str, Any]]:
    """Compute `of_prompt` for the responses `texts` to each prompt, in at most `threads` processes."""
    split = words.tokens if tokenizer == words.UNICODE else str.split
    pairs = sum(
        sum(len(split(text)) for text in responses) * sum(len(split(text)) for text in right)
        for responses, right in zip(texts, references, strict=True)
    )
    workers = min(threads, int(pairs / PAIRS_PER_SECOND / START_SECONDS))
    measure = partial(of_prompt, tokenizer, pattern=pattern)
    if workers < 2:
        return list(map(measure, texts, references))
    return pooled(measure, texts, references, workers)


def pooled(
    measure: Callable[..., Any],
    texts: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    workers: int,
) -> list[dict[str, Any]]:
    """Compute `measure` of the responses and references of each prompt in a pool of processes."""
    # no fork: the parent has threads and may use a GPU
    context = multiprocessing.get_context("spawn")
    # scipy, which nltk would import, takes seconds
    with ProcessPoolExecutor(workers, context, initializer=hide, initargs=("scipy",)) as pool:
        return list(pool.map(measure, texts, references, chunksize=PIECE))
