"""Calibration of a model: expected calibration error of its next-token predictions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

BINS = 15  # Guo et al.'s M

# for each bin: predictions, correct ones, sum of confidences; (3, BINS)
Counts = np.ndarray


def count(confidence_n: np.ndarray, correct_n: np.ndarray) -> Counts:
    """Count predictions by their confidence, (3, BINS).

    Bin m of M holds confidences in ((m - 1) / M, m / M].

    Args:
        confidence_n: probability of the likeliest token, in (0, 1].
        correct_n: whether that token was the next one.
    """
    bin_n = np.clip(np.ceil(confidence_n * BINS).astype(int) - 1, 0, BINS - 1)
    weights = (None, correct_n.astype(float), confidence_n.astype(float))
    return np.stack([np.bincount(bin_n, w, BINS).astype(float) for w in weights])


def expected_calibration_error(counts: Counts) -> float:
    """Compute ECE = Σ_m |B_m| / n · |accuracy(B_m) - confidence(B_m)|, between 0 and 1.

    Guo et al., 2017 (arXiv 1706.04599, eq. 3). MiniLLM (arXiv 2306.08543) reports it for zero-shot
    classification; here it is for the next token of the references. Biased upwards where bins hold
    few predictions.
    """
    total, correct, confidence = counts
    return float(np.abs(correct - confidence).sum() / total.sum())


def packed(counts: Counts) -> dict[str, list[float]]:
    """Convert non-empty bins for JSON: index -> predictions, correct ones, sum of confidences."""
    full = np.flatnonzero(counts[0])
    return {
        str(m): [int(counts[0, m]), int(counts[1, m]), round(counts[2, m], 6)]
        for m in full.tolist()
    }


def unpacked(bins: Mapping[str, Any]) -> Counts:
    """Convert the output of `packed` back to counts."""
    counts = np.zeros((3, BINS))
    for number, values in bins.items():
        counts[:, int(number)] = values
    return counts
