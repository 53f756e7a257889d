"""Compare the pairs of models that answer the questions of an experiment, with confidence intervals and tests.

Six questions, each tested on every evaluation set: does a distilled model beat its SFT baseline; does a chain through
assistants beat direct distillation from its head; does one method (or one setting of it) beat another where the chains
are otherwise the same; does a model that is trained here beat one that stands alone in a chain and is taken as it is,
such as its own starting weights; does a control (`takd.experiment.controls`) beat the SFT baseline; does a method beat
its control. Controls take part in the last two alone. The tests of one question and measure on one set are one family,
with Holm-corrected p values; those of its strata are another.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from takd.analysis import looks, statistics
from takd.analysis.looks import Until
from takd.analysis.results import Results
from takd.analysis.statistics import LEVEL, Array
from takd.experiment.controls import controls
from takd.experiment.lineage import (
    ARM,
    Hop,
    control_of,
    is_given,
    join,
    own,
    prefixes,
    split,
    supervised,
)

Columns = dict[str, Any]
"""A number as columns of the table: fields of `takd.analysis.table.Number`."""
STRATA = 30
"""Strata that scores are broken down by, at most; those with most prompts."""


class Pair(NamedTuple):
    """Two lineages to compare: the difference is `ours` minus `theirs`."""

    question: str
    ours: str
    theirs: str


def direct(lineage: str) -> str | None:
    """Lineage of the same student distilled by the same method directly from the head of the chain.

    None for a lineage without an assistant.
    """
    head, *rest = split(lineage)
    return join([head, Hop(*rest[-1])]) if len(rest) > 1 else None


def pairs(results: Results) -> list[Pair]:
    """List all pairs that share a training seed, by question."""
    known = results.lineages
    found = [
        Pair("control" if control_of(ours) else "sft", ours, supervised(split(ours)[-1].model))
        for ours in known
    ]
    found += [
        Pair("teacher", ours, other) for other in known for ours in known if controls(ours, other)
    ]
    known = [lineage for lineage in known if not control_of(lineage)]
    found += [Pair("direct", lineage, other) for lineage in known if (other := direct(lineage))]
    ends = [prefix for chain in results.spec["chains"] for prefix in prefixes(chain["lineage"])]
    ends = [lineage for lineage in dict.fromkeys(ends) if lineage in known]
    first: dict[str, str] = {}
    for end in ends:
        first.setdefault(_without_values(end), end)
    found += [
        Pair("method", later, earlier)
        for earlier, later in itertools.combinations(ends, 2)
        if _one_apart(split(earlier), split(later), results.spec["models"])
        # of a sweep, the first value is what the others are compared with
        if _without_values(earlier) != _without_values(later)
        or earlier == first[_without_values(earlier)]
    ]
    alone = [chain["lineage"] for chain in results.spec["chains"] if is_given(chain["lineage"])]
    found += [
        Pair("given", ours, theirs) for theirs in alone for ours in known if not is_given(ours)
    ]
    return [
        pair
        for pair in found
        if pair.ours != pair.theirs and pair.theirs in results.lineages and shared(results, pair)
    ]


def _without_values(lineage: str) -> str:
    return join(Hop(own(hop.model), hop.method) for hop in split(lineage))


def _one_apart(ours: Sequence[Hop], theirs: Sequence[Hop], sizes: dict[str, int]) -> bool:
    """Return whether two chains of the same models differ in one hop, or by one method or values of sweeps throughout.

    Models count as the same with other settings if they are of one sweep, or if one name is the other plus a suffix
    after a dot (`120M.nomix`) and their sizes are equal.
    """
    if len(ours) != len(theirs) or len(ours) == 1:
        return False
    for one, other in zip(ours, theirs, strict=True):
        (short, values), (long, others) = sorted(
            (hop.model.partition(ARM)[::2] for hop in (one, other)), key=lambda parts: len(parts[0])
        )
        same = short == long or (long.startswith(f"{short}.") and values == others)
        if not same or sizes.get(short) != sizes.get(long):
            return False
    unequal = [(one, other) for one, other in zip(ours, theirs, strict=True) if one != other]
    if all(
        own(one.model) == own(other.model) and one.method == other.method for one, other in unequal
    ):
        parts = [[set(hop.model.split(ARM)) for hop in pair] for pair in unequal]
        return all(one - other == parts[0][0] - parts[0][1] for one, other in parts)
    apart = len(unequal)
    methods = [{hop.method for hop in chain[1:]} for chain in (ours, theirs)]
    same_models = [hop.model for hop in ours] == [hop.model for hop in theirs]
    throughout = same_models and methods[0] != methods[1] and all(len(m) == 1 for m in methods)
    return apart == 1 or throughout


def shared(results: Results, pair: Pair) -> list[int]:
    """Training seeds that both have: the same seed means the same data order and the same supervised start.

    A model that is taken as it is stands beside all seeds of the other.
    """
    ours, theirs = results.seeds(pair.ours), results.seeds(pair.theirs)
    return ours if is_given(pair.theirs) else [seed for seed in ours if seed in theirs]


def tested(results: Results) -> Iterator[Columns]:
    """Yield the scores of single answers and their differences as columns of the table: overall, then by stratum."""
    for name in results.spec["sets"]:
        first = results.evaluations[results.nodes[0], name]
        yield from _of_prompts(results, name, {"": np.ones(len(first.ids), dtype=bool)})
        strata = np.array(first.strata)
        most = Counter(filter(None, first.strata)).most_common(STRATA)
        yield from _of_prompts(results, name, {value: strata == value for value, _ in most})


def _of_prompts(results: Results, name: str, strata: dict[str, Any]) -> Iterator[Columns]:
    """Yield scores and differences over the prompts of each stratum; all strata are one family of tests."""
    asked = [(pair, shared(results, pair)) for pair in pairs(results)]
    until = results.spec.get("until")
    families: dict[tuple[str, str], list[tuple[Columns, Columns, list[Columns]]]] = {}
    for stratum, chosen in strata.items():

        def of(measure: str, lineage: str, seeds: list[int], chosen: Any = chosen) -> Array:
            # sums depend on the order in memory, which selecting rows would change
            return np.ascontiguousarray(results.scores(lineage, name, measure, seeds)[:, chosen])

        scores: list[tuple[Columns, list[int], Array]] = []
        gaps: list[tuple[Columns, list[int], Array]] = []
        for measure in results.tested(name):
            place = {"set": name, "stratum": stratum, "measure": measure}
            for lineage in results.lineages:
                seeds = results.seeds(lineage)
                about = place | {"kind": "score", "lineage": lineage}
                scores.append((about, seeds, of(measure, lineage, seeds)))
            for (question, ours, theirs), seeds in asked:
                about = place | {"kind": "difference", "question": question}
                gap = of(measure, ours, seeds) - of(measure, theirs, seeds)
                gaps.append((about | {"lineage": ours, "other": theirs}, seeds, gap))
        floors = [0.0] * len(scores) + [-100.0] * len(gaps)
        found = estimates([array for *_, array in scores + gaps], floors, until)
        for (about, seeds, array), estimate in zip(scores, found, strict=False):
            alone = {"n_training_seeds": 0} if is_given(about["lineage"]) else {}
            yield about | estimate | alone
            if stratum:
                yield from _by_seed(about, seeds, array)
        p_values = tests([gap for *_, gap in gaps], until)
        for (about, seeds, gap), estimate, p in zip(
            gaps, found[len(scores) :], p_values, strict=True
        ):
            family = families.setdefault((about["question"], about["measure"]), [])
            family.append((about, estimate | p, _by_seed(about, seeds, gap)))
    for family in families.values():
        estimated = corrected([estimate for _, estimate, _ in family])
        for (about, _, by_seed), estimate in zip(family, estimated, strict=True):
            yield about | estimate
            yield from by_seed


def _by_seed(about: Columns, seeds: list[int], scores_rpd: Array) -> list[Columns]:
    """Mean of each training seed."""
    return [
        about | {"value": value, "seed": seed, "n_prompts": scores_rpd.shape[1]}
        for seed, value in zip(seeds, scores_rpd.mean(axis=(1, 2)).tolist(), strict=True)
    ]


def estimates(
    arrays: Sequence[Array], least: Sequence[float], until: Until | None = None
) -> list[Columns]:
    """Means x 100 of scores (R, P, D) on the same P prompts, with their uncertainty, as columns of the table.

    Args:
        arrays: scores or differences of scores, by training seed, prompt and decoding seed; all share the resamples.
        least: lowest value that each may have; the greatest is 100.
        until: settings `seeds.until`, where seeds are added until the questions are decided.
    """
    ends: list[Any] = [(None, None)] * len(arrays)
    if arrays and arrays[0].shape[1] > 1:
        scores_pk = np.stack([array.mean(axis=(0, 2)) for array in arrays], axis=1)
        ends = statistics.over_prompts(scores_pk).T.tolist()
    found = []
    for array, (prompts_low, prompts_high), lowest in zip(arrays, ends, least, strict=True):
        trainings, prompts, _ = array.shape
        low, high = prompts_low, prompts_high
        if trainings > 1 and prompts > 1:
            across = statistics.over_trainings(array.mean(axis=2), looks.level(until, trainings))
            # a mean cannot lie outside the scale
            low, high = max(lowest, float(across.low)), min(100.0, float(across.high))
        one: Columns = {"value": float(array.mean()), "low": low, "high": high}
        one |= {"prompts_low": prompts_low, "prompts_high": prompts_high}
        for what, axes in (
            ("training_seeds", (1, 2)),
            ("prompts", (0, 2)),
            ("decoding_seeds", (0, 1)),
        ):
            one[f"se_{what}"] = statistics.standard_error(array.mean(axis=axes))
        found.append(one | {"n_training_seeds": trainings, "n_prompts": prompts})
    return found


def tests(gaps: Sequence[Array], until: Until | None = None) -> list[Columns]:
    """Uncorrected p values of differences (R, P, D) on the same P prompts, as columns of the table.

    `prompts_p_raw` is of these checkpoints, `p_raw` across training seeds where there are several, over all looks.
    """
    if not gaps:
        return []
    found = []
    p_values = statistics.sign_flip(
        np.stack([gap.mean(axis=(0, 2)) for gap in gaps], axis=1)
    ).tolist()
    for gap, p in zip(gaps, p_values, strict=True):
        trainings, prompts, _ = gap.shape
        alone = p if prompts > 1 else None
        across = alone
        if trainings > 1 and prompts > 1:
            # methods differ only if these checkpoints do as well: both tests must reject
            across = max(p, float(statistics.over_trainings(gap.mean(axis=2)).p))
            across = float(looks.over_all(until, trainings, across))
        found.append({"p_raw": across, "prompts_p_raw": alone})
    return found


def corrected(family: Sequence[Columns]) -> list[Columns]:
    """Apply Holm's correction to one family of differences, and say which are significant.

    p values across training seeds and p values over prompts are corrected separately.
    """
    several = [one["n_training_seeds"] > 1 for one in family]
    prompts_p = _holm([one["prompts_p_raw"] for one in family])
    across_p = _holm([one["p_raw"] if one["n_training_seeds"] > 1 else None for one in family])
    found = []
    for one, over_prompts_p, many, across in zip(family, prompts_p, several, across_p, strict=True):
        p = across if many else over_prompts_p
        more: Columns = {"p": p, "prompts_p": over_prompts_p, "family": len(family)}
        more["significant"] = _significant(one["value"], p, one["low"], one["high"])
        more["significant_these_checkpoints"] = _significant(
            one["value"], over_prompts_p, one["prompts_low"], one["prompts_high"]
        )
        found.append(one | more)
    return found


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Apply Holm's correction to the tests that were made; None stays None."""
    corrected = iter(statistics.holm(p for p in p_values if p is not None))
    return [None if p is None else next(corrected) for p in p_values]


def family(gaps: Sequence[Array]) -> list[Columns]:
    """Means of differences (R, P, D) on the same P prompts, tested as one family, as columns of the table."""
    found = estimates(gaps, [-100.0] * len(gaps))
    return corrected([one | p for one, p in zip(found, tests(gaps), strict=True)])


def _significant(value: float, p: float | None, low: float | None, high: float | None) -> str:
    """`higher` or `lower` where the corrected p is at most 5 % and the interval leaves zero out; else empty."""
    if p is None or low is None or high is None or p > 1 - LEVEL or low <= 0 <= high:
        return ""
    return "higher" if value > 0 else "lower"
