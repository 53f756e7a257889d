"""Accumulated cost of a model: its training, those of the models it depends on, and their precomputed outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from takd.analysis.results import CachedOutput, Results, Row
from takd.experiment.lineage import Node, prefixes, split, supervised, teacher_seed


@dataclass(frozen=True)
class Accumulated:
    """Cost of one lineage and of every training it depends on, per training seed.

    Attributes:
        hours: GPU hours (hours times processes; a process is a GPU where there is one) of these trainings and of the
            teacher generations and outputs computed ahead for them, by training seed.
        tokens: tokens trained on and sampled by these trainings and by their teachers ahead, by training seed. Tokens
            that a teacher only scores are not counted, whether ahead or during training.
        trainings: trainings needed for one seed.
    """

    lineage: str
    hours: dict[int, float]
    tokens: dict[int, int]
    trainings: int

    @property
    def mean_hours(self) -> float:
        return fmean(self.hours.values())

    @property
    def mean_tokens(self) -> float:
        return fmean(self.tokens.values())


def needed(results: Results, lineage: str, seed: int) -> list[Node]:
    """List the trainings that a model depends on, itself included, each once.

    These are the trainings of its chain (the head is trained with the first seed, for all seeds) and, where a training
    started from fine-tuned weights, the supervised training that made them. Several models may share such a start.
    """
    found: dict[Node, None] = {}
    for prefix in prefixes(lineage):
        own = seed if prefix == lineage else teacher_seed(prefix, seed, results.spec["seeds"])
        node = Node(prefix, own)
        if "init" in results.models[node].manifest["inputs"]:
            found[Node(supervised(split(prefix)[-1].model), own)] = None
        found[node] = None
    return list(found)


def read_ahead(results: Results, nodes: Sequence[Node]) -> list[CachedOutput]:
    """List the precomputed teacher outputs that these trainings read (by their manifests), each once."""
    inputs = {
        digest
        for node in nodes
        for digests in results.models[node].manifest["inputs"].values()
        for digest in digests
    }
    return [each for each in results.teacher_cache if each.digest in inputs]


def accumulate(results: Results) -> list[Accumulated]:
    """Compute the accumulated cost of every lineage."""
    costs = []
    for lineage in results.lineages:
        hours, tokens, trainings = {}, {}, 0
        for seed in results.seeds(lineage):
            nodes = needed(results, lineage, seed)
            trainings = len(nodes)
            written = read_ahead(results, nodes)
            ends = [results.models[node].end for node in nodes]
            ends += [end for each in written if each.drawn for end in each.ends]
            tokens[seed] = sum(int(end.get("tokens", 0)) for end in ends)
            ends += [end for each in written if not each.drawn for end in each.ends]
            hours[seed] = sum(map(hours_of, ends))
        costs.append(Accumulated(lineage, hours, tokens, trainings))
    return costs


def hours_of(end: Row) -> float:
    """Hours of one stage times its processes, from the closing line of its log."""
    return float(end.get("seconds", 0.0)) / 3600 * int(end.get("processes", 1))


def unit(results: Results) -> str:
    """Name the unit of cost: `GPU hours`, or `CPU hours` if no training and no precomputation used a GPU."""
    ends = [model.end for model in results.models.values()]
    ends += [end for each in results.teacher_cache for end in each.ends]
    cpu = {end.get("device", "cpu") == "cpu" for end in ends}
    return {(True,): "CPU hours", (False,): "GPU hours"}.get(tuple(cpu), "hours of CPU or GPU")
