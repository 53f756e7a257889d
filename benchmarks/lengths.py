"""Lengths of prompts and responses as in instruction data."""

from collections.abc import Sequence

import torch

LONGEST = 256

# Quantiles 0, 0.05, …, 1 of the tokens of a row of databricks-dolly-15k (CC-BY-SA 3.0, (c) 2023 Databricks, Inc.): the
# 11,435 rows that MiniLLM (arXiv 2306.08543) trains on, with GPT-2's tokenizer. Prompts are in the Alpaca template;
# responses have an end token and are cut at 256 tokens.
# fmt: off
PROMPT = (31, 36, 37, 38, 38, 39, 40, 41, 41, 42, 44, 45, 47, 50, 57, 68, 94, 139, 178, 212, 256)
RESPONSE = (2, 5, 9, 13, 15, 19, 24, 28, 33, 38, 45, 52, 60, 70, 82, 95, 111, 136, 173, 255, 256)
# The same of the 500 rows of DollyEval, on which models are scored.
EVALUATED_PROMPT = (33, 36, 36, 37, 38, 39, 40, 40, 41, 42, 43, 44, 46, 47, 51, 62, 79, 129, 174, 213, 256)
EVALUATED_RESPONSE = (2, 5, 12, 14, 18, 22, 27, 31, 37, 42, 49, 57, 68, 83, 97, 114, 133, 166, 205, 256, 256)
# fmt: on


def dolly_lengths(
    count: int, longest: int = LONGEST, *, seed: int = 0, evaluated: bool = False
) -> list[tuple[int, int]]:
    """Return the tokens of prompt and response of a number of rows, in a random order.

    They are quantiles themselves, evenly spaced, so that a few rows are distributed like all. Prompt and response are
    independent (their correlation in the data is -0.12).

    Args:
        longest: of a prompt or of a response; all others shrink with it.
        evaluated: whether as in DollyEval, whose responses are a seventh longer, rather than as in the training rows.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = []
    both = (EVALUATED_PROMPT, EVALUATED_RESPONSE) if evaluated else (PROMPT, RESPONSE)
    for quantiles in both:
        lengths = [
            _quantile(quantiles, (i + 0.5) / count) * longest / LONGEST for i in range(count)
        ]
        order = torch.randperm(count, generator=generator).tolist()
        columns.append([max(1, round(lengths[i])) for i in order])
    return list(zip(*columns, strict=True))


def _quantile(quantiles: Sequence[int], share: float) -> float:
    """Interpolate linearly between the known quantiles."""
    place, part = divmod(share * (len(quantiles) - 1), 1)
    low, high = quantiles[int(place)], quantiles[int(place) + 1]
    return low + part * (high - low)
