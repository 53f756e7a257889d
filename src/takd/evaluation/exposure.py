"""Exposure bias: what a model errs more on the contexts that it writes itself than on those that its teacher writes.

Definitions of Arora et al., 2022 (arXiv 2204.01171), with the teacher p as the oracle, as in MiniLLM (arXiv 2306.08543,
appendix B.5, eq. 30 to 32). The error of a model q at a context is KL(p ‖ q) of the next token there, exact over the
vocabulary, of the step that predicts the *first* token on: there, after the prompt, both contexts are the same, and so
are both errors. (A script that begins one step later compares contexts that are one token apart already at its
beginning, and loses the step that both have in common.)
"""

from collections.abc import Sequence

import numpy as np

# errors at the steps of one text, the first one after the prompt first
Errors = Sequence[float]


def accumulated(texts: Sequence[Errors], length: int) -> np.ndarray:
    """Expected sum of the errors of the first l steps, l = 1 ... length, (length,).

    Of texts that q wrote, the accumulated regret R(l) = Σ_{t ≤ l} E_{y_<t ~ q} KL(p ‖ q | y_<t); of texts that p wrote,
    l · ε(l) = Σ_{t ≤ l} E_{y_<t ~ p} KL(p ‖ q | y_<t), which is KL(p ‖ q) of the first l tokens. After its end a text
    has no more steps, and both models agree that it is over: the error there is 0.
    """
    return np.cumsum(_sums(texts, length)) / len(texts)


def accumulated_while_running(texts: Sequence[Errors], length: int) -> np.ndarray:
    """The same with the mean at each step over those texts that reach it, (length,); nan from where none does.

    Differs where p and q end their texts at different lengths: here who stops early saves no errors. The script of
    MiniLLM's authors takes the mean within a prompt first, and counts prompts without a running text as 0.
    """
    steps = np.array([len(errors) for errors in texts])
    running = (steps[None] > np.arange(length)[:, None]).sum(-1)
    with np.errstate(invalid="ignore"):
        return np.cumsum(_sums(texts, length) / running)


def excess_accumulated_error(regret: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """ExAccErr(l) = (R(l) - l ε(l)) / (l ε(l)) · 100 %, of each length; nan where the model makes no error at all.

    0 at l = 1. Below 0 only where the model's own contexts are truly easier for it than its teacher's.

    Args:
        regret: R(l), from texts of the model.
        oracle: l ε(l), from texts of the teacher.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(oracle > 0, 100 * (regret - oracle) / oracle, np.nan)


def _sums(texts: Sequence[Errors], length: int) -> np.ndarray:
    """Sum over the texts of the errors at each step, (length,)."""
    sums = np.zeros(length)
    for errors in texts:
        first = errors[:length]
        sums[: len(first)] += first
    return sums
