"""Compare the pairs of models that answer the questions of an experiment, with confidence intervals and tests.

Three questions, each tested on every evaluation set: does a distilled model beat the same model trained on labels
alone; does a chain through assistants beat distillation directly from its head; does one method (or one setting of
it) beat another where the chains are otherwise the same. The tests of one question on one set are one family, with
Holm-corrected p values.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from takd.analysis.results import MEASURES, Results
from takd.analysis.statistics import (
    LEVEL,
    Array,
    Interval,
    holm,
    number,
    over_prompts,
    over_trainings,
    sign_flip,
    standard_error,
)
from takd.experiment.lineage import Hop, join, prefixes, split, supervised

QUESTIONS = {
    "sft": "distilled against trained on labels alone",
    "direct": "through assistants against straight from the teacher",
    "method": "method against method, or setting against setting",
}


@dataclass(frozen=True)
class Score:
    """A mean score x 100, or a mean difference of scores, with its uncertainty."""

    mean: float
    trainings: int
    """Training seeds that are averaged; for a difference those that both models have."""
    se_prompts: float | None
    """Standard error over prompts, each averaged over training and decoding seeds."""
    se_trainings: float | None
    se_draws: float | None
    """Standard error over decoding seeds, each averaged over prompts and training seeds."""
    over_prompts: Interval | None
    """For the models as they were trained; None for fewer than two prompts."""
    over_trainings: Interval | None
    """For the recipe, over all trainings it might have had; None for fewer than two."""

    @property
    def interval(self) -> Interval | None:
        """Confidence interval over trainings if there are several, else over prompts."""
        return self.over_trainings or self.over_prompts

    def text(self, signed: bool = False) -> str:
        """Format as `62.9 (61.2 to 64.4)`."""
        value = number(self.mean, signed)
        return f"{value} ({self.interval.text(signed)})" if self.interval else value


@dataclass(frozen=True)
class Difference(Score):
    """Mean difference of the scores of two models. The p values are corrected within the family."""

    p_prompts: float | None
    p_trainings: float | None

    @property
    def p(self) -> float | None:
        return self.p_prompts if self.over_trainings is None else self.p_trainings

    @property
    def direction(self) -> str:
        return "higher" if self.mean > 0 else "lower"

    @property
    def verdict(self) -> str:
        """`higher` or `lower` if significant, else empty; about the recipe if there are several trainings."""
        return self.direction if _told(self.p, self.interval) else ""

    @property
    def of_models(self) -> str:
        """`higher` or `lower` if significant for these trained models, over prompts alone; else empty."""
        return self.direction if _told(self.p_prompts, self.over_prompts) else ""

    @property
    def words(self) -> str:
        """The verdict in words, with its confidence interval and p value."""
        if self.interval is None:
            return "one prompt tells of no other"
        said = f"95 % interval from {self.interval.text(signed=True)}, {p_text(self.p)}"
        if not self.verdict and not self.interval.holds(0):
            said = said.replace("p\u00a0", "but after correction p\u00a0")
        if self.verdict and self.over_trainings is None:
            return f"{self.verdict} for the one training made here ({said})"
        if self.verdict:
            return f"{self.verdict} ({said})"
        if self.of_models and self.over_prompts:
            return (
                f"{self.of_models} for the {self.trainings} trainings made here"
                f" ({self.over_prompts.text(signed=True)}, {p_text(self.p_prompts)}),"
                f" but for others no difference can be told ({said})"
            )
        return f"no difference can be told ({said})"


def _told(p: float | None, interval: Interval | None) -> bool:
    return p is not None and interval is not None and p <= 1 - LEVEL and not interval.holds(0)


def p_text(p: float | None) -> str:
    """Format a p value with no-break spaces: `p = 0.012`, `p < 0.001`."""
    if p is None:
        return "no p"
    text = "p < 0.001" if p < 0.001 else f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.3f}"
    return text.replace(" ", "\u00a0")


class Pair(NamedTuple):
    """Two lineages to compare: the difference is `ours` minus `theirs`."""

    question: str
    ours: str
    theirs: str


@dataclass(frozen=True)
class Analysis:
    """Scores of all lineages and differences of all pairs, on each evaluation set."""

    scores: dict[tuple[str, str, str], Score] = field(default_factory=dict)
    """(set, lineage, measure) -> score."""
    differences: dict[tuple[str, Pair], Difference] = field(default_factory=dict)
    """(set, pair) -> difference of ROUGE-L."""

    def of(self, set_name: str, question: str) -> list[tuple[Pair, Difference]]:
        """All pairs of one question on one set."""
        return [
            (pair, difference)
            for (name, pair), difference in self.differences.items()
            if (name, pair.question) == (set_name, question)
        ]

    def difference(self, set_name: str, question: str, lineage: str) -> Difference | None:
        """Difference of a lineage from its counterpart; None if it has none."""
        found = (d for pair, d in self.of(set_name, question) if pair.ours == lineage)
        return next(found, None)


def direct(lineage: str) -> str | None:
    """Lineage of the same student distilled by the same method directly from the head of the chain.

    None for a lineage without an assistant.
    """
    head, *rest = split(lineage)
    return join([head, Hop(*rest[-1])]) if len(rest) > 1 else None


def pairs(results: Results) -> list[Pair]:
    """List all pairs that share a training seed, by question."""
    known = results.lineages
    found = [Pair("sft", lineage, supervised(split(lineage)[-1].model)) for lineage in known]
    found += [Pair("direct", lineage, other) for lineage in known if (other := direct(lineage))]
    ends = [prefix for chain in results.spec["chains"] for prefix in prefixes(chain["lineage"])]
    found += [
        Pair("method", later, earlier)
        for earlier, later in itertools.combinations(dict.fromkeys(ends), 2)
        if earlier in known and _one_apart(split(earlier), split(later), results.spec["models"])
    ]
    return [
        pair
        for pair in found
        if pair.ours != pair.theirs and pair.theirs in known and shared(results, pair)
    ]


def _one_apart(ours: Sequence[Hop], theirs: Sequence[Hop], sizes: dict[str, int]) -> bool:
    """Return whether two chains of the same models differ in one hop, or by one method throughout.

    Models count as the same with other settings if one name is the other plus a suffix after a dot (`120M.nomix`) and
    their sizes are equal.
    """
    if len(ours) != len(theirs) or len(ours) == 1:
        return False
    for one, other in zip(ours, theirs, strict=True):
        short, long = sorted((one.model, other.model), key=len)
        same = short == long or long.startswith(f"{short}.")
        if not same or sizes.get(short) != sizes.get(long):
            return False
    apart = sum(one != other for one, other in zip(ours, theirs, strict=True))
    methods = [{hop.method for hop in chain[1:]} for chain in (ours, theirs)]
    same_models = [hop.model for hop in ours] == [hop.model for hop in theirs]
    throughout = same_models and methods[0] != methods[1] and all(len(m) == 1 for m in methods)
    return apart == 1 or throughout


def shared(results: Results, pair: Pair) -> list[int]:
    """Training seeds that both have: the same seed means the same data order and the same supervised start."""
    theirs = results.seeds(pair.theirs)
    return [seed for seed in results.seeds(pair.ours) if seed in theirs]


@functools.lru_cache(maxsize=1)
def analyse(results: Results) -> Analysis:
    """Compute all scores and differences with their uncertainty, once for all parts of the report."""
    analysis = Analysis()
    asked = pairs(results)
    for name in results.spec["sets"]:
        keys = [(lineage, measure) for lineage in results.lineages for measure in MEASURES]
        scores = [
            results.scores(lineage, name, measure, results.seeds(lineage))
            for lineage, measure in keys
        ]
        gaps = [
            results.scores(pair.ours, name, "rougeL", shared(results, pair))
            - results.scores(pair.theirs, name, "rougeL", shared(results, pair))
            for pair in asked
        ]
        intervals = _over_prompts([*scores, *gaps])
        for (lineage, measure), array, interval in zip(keys, scores, intervals, strict=False):
            analysis.scores[name, lineage, measure] = _score(array, interval, 0.0)
        found = _differences(gaps, intervals[len(scores) :])
        for question in QUESTIONS:
            family = [place for place, pair in enumerate(asked) if pair.question == question]
            corrected = _corrected([found[place] for place in family])
            for place, difference in zip(family, corrected, strict=True):
                analysis.differences[name, asked[place]] = difference
    return analysis


def family(gaps: Sequence[Array]) -> list[Difference]:
    """Test differences (R, P, D) on the same P prompts as one family, with corrected p values."""
    return _corrected(_differences(gaps, _over_prompts(gaps))) if gaps else []


def _over_prompts(arrays: Sequence[Array]) -> list[Interval | None]:
    """Confidence intervals of means (R, P, D), with the same resamples of the prompts for all."""
    if arrays[0].shape[1] < 2:
        return [None] * len(arrays)
    ends = over_prompts(np.stack([array.mean(axis=(0, 2)) for array in arrays], axis=1))
    return [Interval(float(low), float(high)) for low, high in ends.T]


def _score(scores_rpd: Array, interval: Interval | None, least: float) -> Score:
    """Mean score (R, P, D), between `least` and 100, with its uncertainty."""
    trainings, prompts, _ = scores_rpd.shape
    recipe = None
    if trainings > 1 and prompts > 1:
        low, high, _ = over_trainings(scores_rpd.mean(axis=2))
        # a mean cannot lie outside the scale
        recipe = Interval(max(least, float(low)), min(100.0, float(high)))
    return Score(
        mean=float(scores_rpd.mean()),
        trainings=trainings,
        se_prompts=standard_error(scores_rpd.mean(axis=(0, 2))),
        se_trainings=standard_error(scores_rpd.mean(axis=(1, 2))),
        se_draws=standard_error(scores_rpd.mean(axis=(0, 1))),
        over_prompts=interval,
        over_trainings=recipe,
    )


def _differences(gaps: Sequence[Array], intervals: Sequence[Interval | None]) -> list[Difference]:
    """Differences with uncorrected p values."""
    if not gaps:
        return []
    p_prompts = sign_flip(np.stack([gap.mean(axis=(0, 2)) for gap in gaps], axis=1))
    found = []
    for gap, interval, p in zip(gaps, intervals, p_prompts.tolist(), strict=True):
        score = _score(gap, interval, -100.0)
        recipe = None
        if score.over_trainings is not None:
            # recipes differ only if these trained models do as well: both tests must reject
            recipe = max(p, float(over_trainings(gap.mean(axis=2)).p))
        alone = None if interval is None else p
        found.append(Difference(**vars(score), p_prompts=alone, p_trainings=recipe))
    return found


def _corrected(family: Sequence[Difference]) -> list[Difference]:
    """Apply Holm's correction to one family, to the p values over prompts and over trainings separately."""
    over_prompts_p = _holm([difference.p_prompts for difference in family])
    over_trainings_p = _holm([difference.p_trainings for difference in family])
    return [
        replace(difference, p_prompts=prompts, p_trainings=trainings)
        for difference, prompts, trainings in zip(
            family, over_prompts_p, over_trainings_p, strict=True
        )
    ]


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Apply Holm's correction to the tests that were made; None stays None."""
    corrected = iter(holm(p for p in p_values if p is not None))
    return [None if p is None else next(corrected) for p in p_values]


def estimates(arrays: Sequence[Array], least: Sequence[float]) -> list[dict[str, Any]]:
    """Means x 100 of scores (R, P, D) on the same P prompts, with their uncertainty, as columns of the table.

    Args:
        arrays: scores or differences of scores, by training seed, prompt and decoding seed; all share the resamples.
        least: lowest value that each may have; the greatest is 100.
    """
    ends: list[Any] = [(None, None)] * len(arrays)
    if arrays and arrays[0].shape[1] > 1:
        ends = over_prompts(
            np.stack([array.mean(axis=(0, 2)) for array in arrays], axis=1)
        ).T.tolist()
    found = []
    for array, (prompts_low, prompts_high), lowest in zip(arrays, ends, least, strict=True):
        trainings, prompts, _ = array.shape
        low, high = prompts_low, prompts_high
        if trainings > 1 and prompts > 1:
            across = over_trainings(array.mean(axis=2))
            # a mean cannot lie outside the scale
            low, high = max(lowest, float(across.low)), min(100.0, float(across.high))
        found.append(
            {
                "value": float(array.mean()),
                "low": low,
                "high": high,
                "prompts_low": prompts_low,
                "prompts_high": prompts_high,
                "se_prompts": standard_error(array.mean(axis=(0, 2))),
                "se_training_seeds": standard_error(array.mean(axis=(1, 2))),
                "se_decoding_seeds": standard_error(array.mean(axis=(0, 1))),
                "n_training_seeds": trainings,
                "n_prompts": prompts,
            }
        )
    return found


def tests(gaps: Sequence[Array]) -> list[dict[str, float | None]]:
    """Uncorrected p values of differences (R, P, D) on the same P prompts, as columns of the table.

    `prompts_p_raw` is of these checkpoints, `p_raw` across training seeds where there are several.
    """
    if not gaps:
        return []
    found = []
    p_values = sign_flip(np.stack([gap.mean(axis=(0, 2)) for gap in gaps], axis=1)).tolist()
    for gap, p in zip(gaps, p_values, strict=True):
        trainings, prompts, _ = gap.shape
        alone = p if prompts > 1 else None
        across = alone
        if trainings > 1 and prompts > 1:
            # methods differ only if these checkpoints do as well: both tests must reject
            across = max(p, float(over_trainings(gap.mean(axis=2)).p))
        found.append({"p_raw": across, "prompts_p_raw": alone})
    return found


def corrected(family: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Apply Holm's correction to one family of differences, and say which are significant.

    p values across training seeds and p values over prompts are corrected separately.
    """
    prompts_p = _holm([one["prompts_p_raw"] for one in family])
    several = [one["n_training_seeds"] > 1 for one in family]
    across_p = _holm(
        [one["p_raw"] if many else None for one, many in zip(family, several, strict=True)]
    )
    found = []
    for one, over_prompts_p, many, across in zip(family, prompts_p, several, across_p, strict=True):
        p = across if many else over_prompts_p
        checkpoints = _significant(
            one["value"], over_prompts_p, one["prompts_low"], one["prompts_high"]
        )
        more: dict[str, Any] = {"p": p, "prompts_p": over_prompts_p, "family": len(family)}
        more["significant"] = _significant(one["value"], p, one["low"], one["high"])
        found.append(one | more | {"significant_these_checkpoints": checkpoints})
    return found


def _significant(value: float, p: float | None, low: float | None, high: float | None) -> str:
    """`higher` or `lower` where the corrected p is at most 5 % and the interval leaves zero out; else empty."""
    if p is None or low is None or high is None or p > 1 - LEVEL or low <= 0 <= high:
        return ""
    return "higher" if value > 0 else "lower"
