"""Measures of an evaluation by name: where each value is stored and which direction is better.

docs/measures.md defines them. The report and the tidy files use this list.
"""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from takd.analysis.results import Evaluation, Results


class Measure(NamedTuple):
    """One measure of an evaluation."""

    name: str
    title: str
    file: str
    """Of `scores`, `likelihoods`, `judge`."""
    path: tuple[str, ...]
    better: str
    """ "higher", "lower", or "" where neither is."""
    digits: int = 1

    def of(self, evaluation: Evaluation) -> float | None:
        """Value for one model on one set; None where it was not measured or is not finite."""
        found: Any = getattr(evaluation, self.file)
        for key in self.path:
            found = None if found is None else found.get(key)
        return None if found is None else float(found)

    def by_seed(self, evaluation: Evaluation) -> dict[int, float]:
        """Value for each decoding seed, where it is known."""
        found: Any = getattr(evaluation, self.file)
        for key in self.path[:-1]:
            found = None if found is None else found.get(key)
        values = (found or {}).get("by_seed") or {}
        return {int(seed): float(value) for seed, value in values.items() if value is not None}


def _likelihood(name: str, title: str, *path: str, better: str, digits: int = 2) -> Measure:
    return Measure(name, title, "likelihoods", path, better, digits)


def _of_teacher(role: str, whose: str) -> list[Measure]:
    rows = [
        ("perplexity", f"Perplexity of answers under {whose}", ("own", "teacher_perplexity"), 2),
        ("reverse_kl", f"Reverse KL to {whose}", ("own", "reverse_kl"), 3),
        ("forward_kl", f"Forward KL to {whose}", ("teacher", "forward_kl"), 3),
        ("exposure_bias", f"ExAccErr to {whose}, %", ("exposure_bias", "excess_accumulated_error"), 1),
    ]  # fmt: skip
    return [
        _likelihood(f"{role}_{name}", title, role, *path, better="lower", digits=digits)
        for name, title, path, digits in rows
    ]


MEASURES = [
    Measure("rougeL", "ROUGE-L", "scores", ("scores", "rougeL", "mean"), "higher"),
    Measure("exact_match", "Exact match", "scores", ("scores", "exact_match", "mean"), "higher"),
    Measure("normalised_match", "Normalised match", "scores", ("scores", "normalised_match", "mean"), "higher"),
    _likelihood("loss", "Loss on references", "references", "loss", better="lower", digits=3),
    _likelihood("perplexity", "Perplexity on references", "references", "perplexity", better="lower"),
    _likelihood("calibration_error", "Calibration error", "references", "calibration_error", better="lower", digits=3),
    *_of_teacher("direct", "its teacher"),
    *_of_teacher("first", "the first teacher"),
    *[
        Measure(f"distinct_{n}", f"Distinct-{n}", "scores", ("diversity", f"distinct_{n}", "mean"), "higher")
        for n in (1, 2, 4)
    ],
    Measure("self_bleu", "Self-BLEU", "scores", ("diversity", "self_bleu", "mean"), "lower"),
    Measure("response_tokens", "Response tokens", "scores", ("response_tokens", "mean"), ""),
    Measure("cut_off", "Share cut off", "scores", ("cut_off",), "", 3),
    Measure("judge", "Judge, % of references", "judge", ("score",), "higher"),
]  # fmt: skip


def mean(results: Results, measure: Measure, lineage: str, set_name: str) -> float | None:
    """Mean over training seeds; None if any seed has no value."""
    found = [measure.of(results.evaluations[model.node, set_name]) for model in results.of(lineage)]
    return _mean(found)


def _mean(found: Sequence[float | None]) -> float | None:
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if known and len(known) == len(found) else None


def measured(results: Results) -> list[Measure]:
    """List the measures that at least one model has."""
    return [m for m in MEASURES if any(m.of(e) is not None for e in results.evaluations.values())]
