"""Exposure bias: the excess error of a model on its own contexts, compared with its teacher's.

Definitions of Arora et al., 2022 (arXiv 2204.01171), with the teacher p as the oracle, as in
MiniLLM (arXiv 2306.08543, appendix B.5, eq. 30 to 32). The error of a model q at a context is KL(p
‖ q) of the next token, exact over the vocabulary. Sums start with the step that predicts the
*first* token: there the context is the prompt in both cases, and both errors are equal. (A script
that starts one step later leaves out this common step, and compares contexts that already differ by
a token.)
"""

from collections.abc import Sequence

import numpy as np

# errors at the steps of one text, from the first step after the prompt on
Errors = Sequence[float]


def accumulated(texts: Sequence[Errors], length: int) -> np.ndarray:
    """Compute the expected sum of errors over the first l steps, l = 1 ... length, (length,).

    For texts written by q this is the accumulated regret R(l) = Σ_{t ≤ l} E_{y_<t ~ q} KL(p ‖ q |
    y_<t). For texts written by p it is l · ε(l) = Σ_{t ≤ l} E_{y_<t ~ p} KL(p ‖ q | y_<t), which is
    KL(p ‖ q) of the first l tokens. After the end of a text the error is 0, since both models agree
    that it is over.
    """
    return np.cumsum(_sums(texts, length)) / len(texts)


def accumulated_while_running(texts: Sequence[Errors], length: int) -> np.ndarray:
    """Compute `accumulated` with each step's mean over the texts that reach it, (length,).

    nan from the first step that no text reaches. Differs where p and q end their texts at different
    lengths: here stopping early avoids no errors. The script of MiniLLM's authors takes the mean
    within a prompt first, and counts prompts without a running text as 0.
    """
    steps = np.array([len(errors) for errors in texts])
    running = (steps[None] > np.arange(length)[:, None]).sum(-1)
    with np.errstate(invalid="ignore"):
        return np.cumsum(_sums(texts, length) / running)


def excess_accumulated_error(regret: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """Compute ExAccErr(l) = (R(l) - l ε(l)) / (l ε(l)) · 100 %, (length,).

    nan where the model makes no error at all. 0 at l = 1. Negative only where the model's own
    contexts are easier for it than its teacher's.

    Args:
        regret: R(l), from texts of the model, (length,).
        oracle: l ε(l), from texts of the teacher, (length,).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(oracle > 0, 100 * (regret - oracle) / oracle, np.nan)


def _sums(texts: Sequence[Errors], length: int) -> np.ndarray:
    """Sum over texts of the errors at each step, (length,)."""
    sums = np.zeros(length)
    for errors in texts:
        first = errors[:length]
        sums[: len(first)] += first
    return sums
