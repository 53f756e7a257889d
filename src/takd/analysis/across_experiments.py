"""Compare experiments: the scores of models that several of them have, with tests, and all else that differs.

Models are shared if their lineages are equal. Each is compared with that of the first experiment, paired by prompt,
decoding seed and training seed, with the functions that compare models within one experiment
(`takd.analysis.comparisons`). All tests on one evaluation set are one family, with Holm-corrected p values. Where pairs
do not match (other prompts, other decoding), there is no test, and the reason is given.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from takd.analysis import comparisons
from takd.analysis.result_files import record
from takd.analysis.results import Results, read
from takd.analysis.statistics import Array
from takd.analysis.table import DIFFERENCE, Number, described
from takd.experiment import comparison
from takd.experiment.lineage import Node, student_of
from takd.runtime.records import Record

MEASURE = "rougeL"


@dataclass(frozen=True, eq=False)
class Compared:
    """One experiment of a comparison."""

    name: str
    results: Results
    settings: dict[str, Any]
    made: dict[str, str]
    """`lineage/seed<k>` -> digest of the settings that its training would have by the experiment's file."""
    data: dict[str, Record]
    """Manifest of each split, and of the tokenizer."""
    base: dict[str, Record]
    """Manifest of each model's starting weights."""

    @property
    def title(self) -> str:
        """Title of the experiment, empty where it equals the name."""
        title = str(self.results.spec["title"])
        return "" if title == self.name else title

    @functools.cached_property
    def made_otherwise(self) -> list[Node]:
        """Models that were trained with other settings than those now in the experiment's file."""
        ran = {node: model.manifest["spec"] for node, model in self.results.models.items()}
        now = {node: self.made[node.folder] for node in ran}
        return [node for node, spec in ran.items() if comparison.made(spec) != now[node]]

    def has(self, lineage: str, set_name: str) -> bool:
        """Return whether the experiment has scores of a lineage on an evaluation set."""
        return lineage in self.results.lineages and set_name in self.results.spec["sets"]


def read_all(spec: dict[str, Any], folders: Sequence[Path]) -> list[Compared]:
    """Read all experiments; `folders` holds the results folder of each. Raises InputError for a missing file."""
    return [_read(each, folder) for each, folder in zip(spec["experiments"], folders, strict=True)]


def _read(spec: dict[str, Any], folder: Path) -> Compared:
    folders = (folder / name for name in ("models", "evaluations", "teachers"))
    results = read(spec["report"], *folders)
    used = [name for name in ("train", "dev", "corpus") if spec["settings"]["data"].get(name)]
    splits = [*used, *results.spec["sets"], "tokenizer"]
    models = dict.fromkeys(student_of(node.lineage) for node in results.trained_here)
    return Compared(
        name=spec["name"],
        results=results,
        settings=spec["settings"],
        made=spec["made"],
        data={name: record(folder / "data" / name / "manifest.json", {}) for name in splits},
        base={model: record(folder / "base" / model / "manifest.json", {}) for model in models},
    )


Outcome = Number | str
"""Result of comparing a model with that of the first experiment: a difference, or why there is none."""
SAME = "the same model"
"""Reason where weights and scores of every response are equal, so that there is nothing to test."""


@dataclass(frozen=True)
class Comparison:
    """Outcomes of all shared models, by evaluation set and lineage."""

    experiments: list[Compared]
    sets: list[str]
    """Those that two or more experiments have."""
    shared: list[str]
    """Lineages that two or more experiments have."""
    outcomes: dict[tuple[str, str, int], Outcome] = field(default_factory=dict)
    """By evaluation set, lineage and number of the experiment, where both it and the first have them."""

    @property
    def first(self) -> Compared:
        return self.experiments[0]

    def alone(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield each experiment with the lineages and the evaluation sets that no other has, if there are any."""
        for each in self.experiments:
            lineages = [x for x in each.results.lineages if x not in self.shared]
            sets = [name for name in each.results.spec["sets"] if name not in self.sets]
            if lineages or sets:
                yield each.name, lineages, sets

    def on(self, set_name: str) -> list[str]:
        """List the shared lineages that at least two experiments have on a set."""
        return [x for x in self.shared if sum(e.has(x, set_name) for e in self.experiments) > 1]

    def against(self, set_name: str, experiment: int) -> dict[str, Outcome]:
        """Outcomes of comparing an experiment with the first on a set, by lineage."""
        chosen = (set_name, experiment)
        return {x: found for (name, x, n), found in self.outcomes.items() if (name, n) == chosen}

    def tests(self, set_name: str) -> int:
        """Number of tests in the family of a set."""
        found = (outcome for (name, *_), outcome in self.outcomes.items() if name == set_name)
        return sum(isinstance(outcome, Number) for outcome in found)

    def reasons(self, set_name: str) -> dict[str, list[str]]:
        """Map each reason why models are not paired on a set, with its experiment, to the lineages."""
        found: dict[str, list[str]] = {}
        for place, each in enumerate(self.experiments):
            for lineage, outcome in self.against(set_name, place).items():
                if isinstance(outcome, str) and outcome != SAME:
                    found.setdefault(f"{each.name}: {outcome}", []).append(lineage)
        return found


def compare(experiments: Sequence[Compared]) -> Comparison:
    """Test the differences of all shared lineages from the first experiment."""
    every = [each.results for each in experiments]
    found = Comparison(
        list(experiments),
        _several([results.spec["sets"] for results in every]),
        _several([results.lineages for results in every]),
    )
    for name in found.sets:
        _test(found, name)
    return found


def _several(lists: Sequence[Sequence[str]]) -> list[str]:
    """List the items that occur in two or more lists, in order of first occurrence."""
    counts = Counter(item for found in lists for item in found)
    return [item for item, count in counts.items() if count > 1]


def _test(found: Comparison, name: str) -> None:
    """Run the tests of one set and store the outcomes in the comparison."""
    gaps: dict[tuple[str, str, int], Array] = {}
    for lineage in filter(lambda lineage: found.first.has(lineage, name), found.on(name)):
        for number, each in enumerate(found.experiments[1:], 1):
            if each.has(lineage, name):
                paired = _pair(found.first, each, lineage, name)
                if isinstance(paired, str):
                    found.outcomes[name, lineage, number] = paired
                else:
                    gaps[name, lineage, number] = paired
    for place, estimate in zip(gaps, comparisons.family(list(gaps.values())), strict=True):
        _, lineage, number = place
        about = described(found.experiments[number].results, lineage)
        about |= {"kind": DIFFERENCE, "measure": MEASURE, "set": name}
        found.outcomes[place] = Number(**about, **estimate)


def _pair(first: Compared, other: Compared, lineage: str, name: str) -> Array | str:
    """Differences of a lineage (R, P, D), other minus first; or why there is no test."""
    both = (first.results, other.results)
    seeds = [seed for seed in both[0].seeds(lineage) if seed in both[1].seeds(lineage)]
    draws = [d for d in both[0].spec["decoding_seeds"] if d in both[1].spec["decoding_seeds"]]
    reasons = [*_obstacles(first, other, lineage, name)]
    reasons += ["the two have no training seed in common"] * (not seeds)
    reasons += ["the two have no decoding seed in common"] * (not draws)
    if reasons:
        return reasons[0]
    theirs, ours = (
        each.scores(lineage, name, MEASURE, seeds)[
            :, :, [each.spec["decoding_seeds"].index(draw) for draw in draws]
        ]
        for each in both
    )
    weights = [[each.models[Node(lineage, seed)].weights for seed in seeds] for each in both]
    gap: Array = ours - theirs
    return SAME if not gap.any() and weights[0] == weights[1] else gap


def _obstacles(first: Compared, other: Compared, lineage: str, name: str) -> Iterator[str]:
    """Reasons why the responses of two models cannot be paired, the most important first."""
    one_sha, two_sha = (each.data[name]["sha256"] for each in (first, other))
    if one_sha != two_sha:
        yield (
            f"the prepared prompts and references of {name} are not the same (sha256 {one_sha[:12]} in"
            f" {first.name}, {two_sha[:12]} in {other.name})"
        )
    one, two = (
        each.results.evaluations[Node(lineage, each.results.seeds(lineage)[0]), name]
        for each in (first, other)
    )
    if one.ids != two.ids:
        yield f"other prompts of {name} were answered"
    tokens = [each.rouge_tokenizer for each in (one, two)]
    if tokens[0] != tokens[1]:
        yield f"ROUGE-L of {name} has other tokens ({' and '.join(tokens)})"
    before, after = one.scores["decoding"], two.scores["decoding"]
    apart = [key for key in before | after if before.get(key) != after.get(key)]
    if apart:
        values = ", ".join(f"{key} {before.get(key)} and {after.get(key)}" for key in apart)
        yield f"responses are decoded in another way ({values})"
