"""Compare the scores of models that several experiments share, and test their differences.

Models are shared if their lineages are equal. Each is compared with that of the first experiment, paired by prompt,
decoding seed and training seed, with the functions that compare models within one experiment
(`takd.analysis.comparisons`). All tests on one evaluation set are one family, with Holm-corrected p values. Where pairs
do not match (other prompts, other decoding), there is no test, and the reason is given.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from takd.analysis import comparisons
from takd.analysis.compare_results import Compared
from takd.analysis.statistics import Array
from takd.analysis.table import DIFFERENCE, Number
from takd.experiment.lineage import Node

MEASURE = "rougeL"


class Place(NamedTuple):
    """Index of a cell: evaluation set, lineage, and number of the experiment."""

    set: str
    lineage: str
    experiment: int


@dataclass(frozen=True)
class Outcome:
    """Result of comparing a model with that of the first experiment: a difference, or why there is none."""

    difference: Number | None = None
    same: bool = False
    """Equal weights and equal scores of every response: one model, and nothing to test."""
    reason: str = ""
    """Why the two are not paired."""

    @property
    def words(self) -> str:
        """Outcome in a few words: `significant`, `n.s.`, or why there is no test."""
        if self.same:
            return "same model"
        return self.difference.verdict if self.difference else f"not tested: {self.reason}"


@dataclass(frozen=True)
class Comparison:
    """Outcomes of all shared models, by evaluation set and lineage."""

    experiments: list[Compared]
    sets: list[str]
    """Those that two or more experiments have."""
    shared: list[str]
    """Lineages that two or more experiments have."""
    outcomes: dict[Place, Outcome] = field(default_factory=dict)
    """Where both it and the first experiment have them."""

    @property
    def first(self) -> Compared:
        return self.experiments[0]

    def alone(self) -> dict[str, list[str]]:
        """Lineages that only one experiment has, by the name of the experiment."""
        found = {
            each.name: [x for x in each.results.lineages if x not in self.shared]
            for each in self.experiments
        }
        return {name: lineages for name, lineages in found.items() if lineages}

    def sets_alone(self) -> dict[str, list[str]]:
        """Evaluation sets that only one experiment has, by the name of the experiment."""
        found = {
            each.name: [name for name in each.results.spec["sets"] if name not in self.sets]
            for each in self.experiments
        }
        return {name: sets for name, sets in found.items() if sets}

    def on(self, set_name: str) -> list[str]:
        """List the shared lineages that at least two experiments have on a set."""
        return [x for x in self.shared if sum(e.has(x, set_name) for e in self.experiments) > 1]

    def against(self, set_name: str, experiment: int) -> dict[str, Outcome]:
        """Outcomes of comparing an experiment with the first on a set, by lineage."""
        return {
            place.lineage: outcome
            for place, outcome in self.outcomes.items()
            if (place.set, place.experiment) == (set_name, experiment)
        }

    def tests(self, set_name: str) -> int:
        """Number of tests in the family of a set."""
        return sum(p.set == set_name and o.difference is not None for p, o in self.outcomes.items())

    def reasons(self, set_name: str) -> dict[str, list[str]]:
        """Map each reason why models are not paired on a set, with its experiment, to the lineages."""
        found: dict[str, list[str]] = {}
        for place, outcome in self.outcomes.items():
            if place.set == set_name and outcome.reason:
                name = self.experiments[place.experiment].name
                found.setdefault(f"{name}: {outcome.reason}", []).append(place.lineage)
        return found


def compare(experiments: Sequence[Compared]) -> Comparison:
    """Compute the differences of all shared lineages from the first experiment."""
    every = [each.results for each in experiments]
    comparison = Comparison(
        list(experiments),
        _several([results.spec["sets"] for results in every]),
        _several([results.lineages for results in every]),
    )
    for name in comparison.sets:
        _test(comparison, name)
    return comparison


def _several(lists: Sequence[Sequence[str]]) -> list[str]:
    """List the items that occur in two or more lists, in order of first occurrence."""
    every = [item for found in lists for item in found]
    return [item for item in dict.fromkeys(every) if every.count(item) > 1]


def _test(comparison: Comparison, name: str) -> None:
    """Run the tests of one set and store the outcomes in the comparison."""
    gaps: dict[Place, Array] = {}
    for lineage in comparison.on(name):
        for number, each in enumerate(comparison.experiments[1:], 1):
            if not (each.has(lineage, name) and comparison.first.has(lineage, name)):
                continue
            place = Place(name, lineage, number)
            # keeps the order of the table
            comparison.outcomes[place] = Outcome()
            pairing = _pair(comparison.first, each, lineage, name)
            if isinstance(pairing, Outcome):
                comparison.outcomes[place] = pairing
            else:
                gaps[place] = pairing
    arrays = list(gaps.values())
    found = comparisons.estimates(arrays, [-100.0] * len(arrays))
    p_values = comparisons.tests(arrays)
    family = comparisons.corrected([one | p for one, p in zip(found, p_values, strict=True)])
    for place, estimate in zip(gaps, family, strict=True):
        comparison.outcomes[place] = Outcome(
            Number(
                experiment=comparison.experiments[place.experiment].name,
                kind=DIFFERENCE,
                set=name,
                lineage=place.lineage,
                measure=MEASURE,
                **estimate,
            )
        )


def _pair(first: Compared, other: Compared, lineage: str, name: str) -> Outcome | Array:
    """Differences (R, P, D) of the scores of a lineage, other minus first, or an outcome where there is no test."""
    seeds = _both(first.results.seeds(lineage), other.results.seeds(lineage))
    draws = _both(first.results.spec["decoding_seeds"], other.results.spec["decoding_seeds"])
    reason = next(_obstacles(first, other, lineage, name, seeds, draws), None)
    if reason:
        return Outcome(reason=reason)
    ours, theirs = (_scores(each, lineage, name, seeds, draws) for each in (other, first))
    gap = ours - theirs
    if not gap.any() and all(
        _weights(first, lineage, seed) == _weights(other, lineage, seed) for seed in seeds
    ):
        return Outcome(same=True)
    return gap


def _obstacles(
    first: Compared,
    other: Compared,
    lineage: str,
    name: str,
    seeds: Sequence[int],
    draws: Sequence[int],
) -> Iterator[str]:
    """Reasons why the answers of two models cannot be paired, the most important first."""
    digests = [each.data[name]["sha256"] for each in (first, other)]
    if digests[0] != digests[1]:
        yield (
            f"the prepared prompts and references of {name} are not the same (sha256 {digests[0][:12]} in"
            f" {first.name}, {digests[1][:12]} in {other.name})"
        )
    if first.results.evaluations[_node(first, lineage), name].ids != (
        other.results.evaluations[_node(other, lineage), name].ids
    ):
        yield f"other prompts of {name} were answered"
    evaluations = [each.results.evaluations[_node(each, lineage), name] for each in (first, other)]
    tokens = [evaluation.rouge_tokenizer for evaluation in evaluations]
    if tokens[0] != tokens[1]:
        yield f"ROUGE-L of {name} has other tokens ({tokens[0]} and {tokens[1]})"
    records = [evaluation.scores["decoding"] for evaluation in evaluations]
    if records[0] != records[1]:
        apart = [k for k in dict.fromkeys([*records[0], *records[1]]) if _apart(k, *records)]
        values = ", ".join(f"{k} {records[0].get(k)} and {records[1].get(k)}" for k in apart)
        yield f"answers are decoded in another way ({values})"
    if not seeds:
        yield "the two have no training seed in common"
    if not draws:
        yield "the two have no decoding seed in common"


def _apart(key: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one.get(key) != other.get(key))


def _both(ours: Sequence[int], theirs: Sequence[int]) -> list[int]:
    return [seed for seed in ours if seed in theirs]


def _node(experiment: Compared, lineage: str) -> Node:
    return Node(lineage, experiment.results.seeds(lineage)[0])


def _scores(
    experiment: Compared, lineage: str, name: str, seeds: list[int], draws: list[int]
) -> Array:
    places = [experiment.results.spec["decoding_seeds"].index(draw) for draw in draws]
    return experiment.results.scores(lineage, name, MEASURE, seeds)[:, :, places]


def _weights(experiment: Compared, lineage: str, seed: int) -> str | None:
    """sha256 of the evaluated weights."""
    manifest = experiment.results.models[Node(lineage, seed)].manifest
    return (manifest.get("weights") or {}).get("model")
