"""What a model costs with all that it needs: its teachers, and what it and they started from."""

from dataclasses import dataclass
from statistics import fmean

from takd.lineage import Node, prefixes, split, supervised, teacher_seed
from takd.report.read import Model, Results


@dataclass(frozen=True)
class Accumulated:
    """Training of one lineage and of everything above it, per training seed.

    Attributes:
        hours: for each training seed, hours of training times processes. A process is a GPU where there is one.
        tokens: for each training seed, tokens trained on and sampled, of all these trainings.
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


def accumulate(results: Results) -> list[Accumulated]:
    """The accumulated cost of every lineage."""
    costs = []
    for lineage in results.lineages:
        models = {
            seed: [results.models[node] for node in needed(results, lineage, seed)]
            for seed in results.seeds(lineage)
        }
        hours = {seed: sum(map(hours_of, found)) for seed, found in models.items()}
        tokens = {
            seed: sum(int(model.end.get("tokens", 0)) for model in found)
            for seed, found in models.items()
        }
        costs.append(Accumulated(lineage, hours, tokens, len(next(iter(models.values())))))
    return costs


def hours_of(model: Model) -> float:
    """Hours of one training times its processes."""
    return model.minutes / 60 * int(model.end.get("processes", 1))


def unit(results: Results) -> str:
    """`GPU hours`, or `CPU hours` where all trainings ran without a GPU."""
    cpu = {model.end.get("device", "cpu") == "cpu" for model in results.models.values()}
    return {(True,): "CPU hours", (False,): "GPU hours"}.get(tuple(cpu), "hours of CPU or GPU")
