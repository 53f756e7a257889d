"""The registry of measures: name, title, definition, unit, direction, digits, and where the value stands.

Tables, figures, CSV files and model cards take from here what they say of a measure. To add a measure, write a function
in `takd.metrics` whose value the evaluation stores, and an entry here. A measure of single answers (`interval`) is
listed with its confidence interval and tested like ROUGE-L. docs/measures.md has formulas and sources.
"""

from typing import Any, NamedTuple

BOOTSTRAP, TRAININGS = "bootstrap", "trainings"


class Measure(NamedTuple):
    """One measure of a model on an evaluation set, or one cost."""

    name: str
    title: str
    definition: str
    path: str = ""
    """Where the value stands: attribute of `results.Evaluation` (`scores`, `likelihoods`, `judge`), then keys."""
    better: str = "higher"
    """ "higher", "lower", or "" where neither is."""
    unit: str = ""
    digits: int = 1
    interval: str = ""
    """`bootstrap` for a score of each answer, which has confidence intervals and tests; `trainings` for a value without
    noise of draws and prompts, whose interval is over training seeds alone; else empty."""

    def of(self, evaluation: Any) -> float | None:
        """Value for one model on one set; None where it was not measured."""
        found = _below(evaluation, self.path.split("."))
        return None if found is None else float(found)

    def by_seed(self, evaluation: Any) -> dict[int, float]:
        """Value for each decoding seed, where it is known."""
        values = (_below(evaluation, self.path.split(".")[:-1]) or {}).get("by_seed") or {}
        return {int(seed): float(value) for seed, value in values.items() if value is not None}


def _below(evaluation: Any, path: list[str]) -> Any:
    found = getattr(evaluation, path[0])
    for key in path[1:]:
        found = None if found is None else found.get(key)
    return found


def _of_teacher(role: str, whose: str, who: str) -> list[Measure]:
    """Measures against a teacher: the direct one or the first of the chain."""
    own = "Mean over the tokens of the model’s own answers of"
    rows = [
        ("perplexity", f"Perplexity of answers under {whose}", "own.teacher_perplexity", "", 2,
         f"exp of the mean −log p of the model’s own answers, p being {who}"),
        ("reverse_kl", f"Reverse KL to {whose}", "own.reverse_kl", "nats", 3,
         f"{own} KL(model ‖ {who}), in nats"),
        ("forward_kl", f"Forward KL to {whose}", "teacher.forward_kl", "nats", 3,
         f"Mean over the tokens of the teacher’s answers of KL({who} ‖ model), in nats"),
        ("exposure_bias", f"ExAccErr to {whose}, %", "exposure_bias.excess_accumulated_error", "%", 1,
         f"How much more the model errs on its own contexts than on those of {who} (ExAccErr)"),
    ]  # fmt: skip
    return [
        Measure(f"{role}_{name}", title, said, f"likelihoods.{role}.{path}", "lower", unit, digits)
        for name, title, path, unit, digits, said in rows
    ]


def _exact(role: str, whose: str, who: str) -> list[Measure]:
    """Divergences over whole responses, enumerated."""
    kinds = (("reverse", f"KL(model ‖ {who})"), ("forward", f"KL({who} ‖ model)"))
    return [
        Measure(f"exact_{role}_{kind}_kl", f"Exact {kind} KL to {whose}",
                f"{said} over whole responses, by enumeration, the mean over prompts, in nats per response",
                f"likelihoods.exact.{role}.{kind}_kl", "lower", "nats", 4, TRAININGS)
        for kind, said in kinds
    ]  # fmt: skip


MEASURES = [
    Measure("rougeL", "ROUGE-L", "F1 of the longest common subsequence of stemmed words, the best over the references",
            "scores.scores.rougeL.mean", interval=BOOTSTRAP),
    Measure("exact_match", "Exact match", "Share of answers that equal a reference but for white space at their ends",
            "scores.scores.exact_match.mean", interval=BOOTSTRAP),
    Measure("answer_accuracy", "Answer accuracy",
            "Share of answers whose final answer, found by the set’s pattern, is that of a reference",
            "scores.scores.answer_accuracy.mean", interval=BOOTSTRAP),
    Measure("normalised_match", "Normalised match", "The same in lower case, without punctuation, with single spaces",
            "scores.scores.normalised_match.mean"),
    Measure("loss", "Loss on references",
            "Mean −log of the model’s probability of a token of the references, in nats",
            "likelihoods.references.loss", "lower", "nats", 3),
    Measure("perplexity", "Perplexity on references", "exp of the loss on the references",
            "likelihoods.references.perplexity", "lower", digits=2),
    Measure("calibration_error", "Calibration error",
            "Mean distance of the likeliest token’s probability from its accuracy, in 15 bins",
            "likelihoods.references.calibration_error", "lower", digits=3),
    *_of_teacher("direct", "its teacher", "its teacher"),
    *_of_teacher("first", "the first teacher", "the first teacher of the chain"),
    *_exact("direct", "its teacher", "its teacher"),
    *_exact("first", "the first teacher", "the first teacher of the chain"),
    *_exact("truth", "the truth", "the distribution of the data"),
    *(
        Measure(f"distinct_{n}", f"Distinct-{n}", f"Different {what}, × 100", f"scores.diversity.distinct_{n}.mean")
        for n, what in (
            (1, "words among all words of the answers of one decoding seed"),
            (2, "pairs of neighbouring words among all pairs"),
            (4, "runs of four words among all such runs"),
        )
    ),
    Measure("self_bleu", "Self-BLEU",
            "How alike the answers of several decoding seeds to one prompt are: BLEU-4 among them",
            "scores.diversity.self_bleu.mean", "lower"),
    Measure("response_tokens", "Response tokens", "Tokens of an answer, the mean; neither more nor fewer is better",
            "scores.response_tokens.mean", "", "tokens"),
    Measure("cut_off", "Share cut off", "Share of answers that reached the greatest length without an end",
            "scores.cut_off", "", digits=3),
    Measure("judge", "Judge, % of references",
            "Sum of the judge’s ratings of the answers over that of the references, × 100",
            "judge.score", unit="%"),
]  # fmt: skip
"""Measures of models on evaluation sets, in the order of tables."""

COSTS = [
    Measure("minutes", "Minutes", "Wall time over all restarts", "", "lower", "minutes"),
    Measure("tokens", "Tokens", "Tokens trained on, sampled or scored", "", "", "tokens", 0),
    Measure("flops", "FLOPs", "FLOPs of trainings without their dev evaluations, and of teacher caches", "", "", "", 0),
    Measure("steps", "Steps", "Optimiser steps", "", "", "steps", 0),
    Measure("skipped", "Steps skipped", "Steps whose gradient was not finite", "", "lower", "steps", 0),
    Measure("hours", "Device hours", "Hours times GPUs, or hours of CPU", "", "lower", "hours", 2),
    Measure("trainings", "Trainings", "Trainings that a model of one seed needs", "", "lower", "", 0),
]  # fmt: skip
"""Measures of the runs of stages (`takd.analysis.costs`)."""

BY_NAME = {measure.name: measure for measure in (*MEASURES, *COSTS)}
TESTED = tuple(measure.name for measure in MEASURES if measure.interval == BOOTSTRAP)
"""Scores of single answers: with confidence intervals, and tested. A set may lack some (`Results.tested`)."""


def measured(results: Any) -> list[Measure]:
    """List the measures that at least one model has."""
    return [m for m in MEASURES if any(m.of(e) is not None for e in results.evaluations.values())]
