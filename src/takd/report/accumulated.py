"""What a model costs with all that it needs: its teachers, what they wrote ahead, and what it and they started from."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from takd.lineage import Node, prefixes, split, supervised, teacher_seed
from takd.report.read import Results, Row, Written


@dataclass(frozen=True)
class Accumulated:
    """Training of one lineage and of everything above it, per training seed.

    Attributes:
        hours: for each training seed, hours of training and of what was written ahead for it, times processes. A
            process is a GPU where there is one.
        tokens: for each training seed, tokens trained on and sampled, of all these trainings and by their teachers
            ahead. What a teacher only reads is not among them, whether it is asked ahead or live.
        trainings: how many trainings one seed needs.
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
    """The trainings without which a model would not be there, itself included, each once.

    Those of its chain (the head is trained with the first seed, for all seeds) and, where the training began from
    fine-tuned weights, the supervised training that they come from. Such a start may be shared.
    """
    found: dict[Node, None] = {}
    for prefix in prefixes(lineage):
        own = seed if prefix == lineage else teacher_seed(prefix, seed, results.spec["seeds"])
        node = Node(prefix, own)
        if "init" in results.models[node].manifest["inputs"]:
            found[Node(supervised(split(prefix)[-1].model), own)] = None
        found[node] = None
    return list(found)


def read_ahead(results: Results, nodes: Sequence[Node]) -> list[Written]:
    """What was written ahead and read by these trainings, each once; their manifests name it among the inputs."""
    inputs = {
        digest
        for node in nodes
        for digests in results.models[node].manifest["inputs"].values()
        for digest in digests
    }
    return [written for written in results.written if written.digest in inputs]


def accumulate(results: Results) -> list[Accumulated]:
    """The accumulated cost of every lineage."""
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
    """Hours of one stage times its processes, by the closing line of its log."""
    return float(end.get("seconds", 0.0)) / 3600 * int(end.get("processes", 1))


def unit(results: Results) -> str:
    """`GPU hours`, or `CPU hours` where all trainings ran without a GPU, and all that was written ahead for them."""
    ends = [model.end for model in results.models.values()]
    ends += [end for written in results.written for end in written.ends]
    cpu = {end.get("device", "cpu") == "cpu" for end in ends}
    return {(True,): "CPU hours", (False,): "GPU hours"}.get(tuple(cpu), "hours of CPU or GPU")
