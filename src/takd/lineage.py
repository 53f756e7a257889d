"""A model's identity is the chain that made it: `teacher-sft__assistant-minillm__student-minillm`.

Hops are written `<model>-<method>` and joined by `__`; the first hop is supervised. A lineage is also a path,
so two chains that share a prefix share the models of that prefix, which are then trained once.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

SUPERVISED = "sft"
MODEL_PATTERN = r"[A-Za-z0-9.]+"


class Hop(NamedTuple):
    """One trained model of a chain and the method that trained it."""

    model: str
    method: str


class Node(NamedTuple):
    """One trained model: its lineage and its training seed."""

    lineage: str
    seed: int


def join(hops: Iterable[Hop]) -> str:
    """Write hops as a lineage."""
    return "__".join(f"{hop.model}-{hop.method}" for hop in hops)


def split(lineage: str) -> list[Hop]:
    """Read a lineage back into its hops."""
    return [Hop(*part.rsplit("-", 1)) for part in lineage.split("__")]


def of_chain(models: Sequence[str], methods: Sequence[str]) -> str:
    """Lineage of a chain: a supervised teacher, then one distillation a hop.

    `methods` has one entry per hop after the teacher.
    """
    teacher, *students = models
    hops = [Hop(student, method) for student, method in zip(students, methods, strict=True)]
    return join([Hop(teacher, SUPERVISED), *hops])


def supervised(model: str) -> str:
    """Lineage of a model that was only fine-tuned on labels."""
    return join([Hop(model, SUPERVISED)])


def teacher_of(lineage: str) -> str | None:
    """Lineage of the model that taught this one; None for a supervised model."""
    return lineage.rpartition("__")[0] or None


def prefixes(lineage: str) -> list[str]:
    """The lineage of every model of the chain, the head first, this one last."""
    hops = split(lineage)
    return [join(hops[: count + 1]) for count in range(len(hops))]


def teacher_seed(teacher: str, seed: int, seeds: Sequence[int]) -> int:
    """Training seed of the teacher of a student that is trained with `seed`.

    The supervised head of a chain is trained once, with the first seed: it is the costliest model and the
    fixed point that students are compared against. Everything below it is trained anew for each seed, so that
    the spread over seeds holds the assistants' share.
    """
    return seeds[0] if teacher_of(teacher) is None else seed


def pattern(methods: Iterable[str]) -> str:
    """Regular expression that matches any lineage whose hops use `methods`."""
    hop = f"{MODEL_PATTERN}-({'|'.join(sorted(methods))})"
    return f"{MODEL_PATTERN}-{SUPERVISED}(__{hop})*"


def nodes(lineages: Iterable[str], seeds: Sequence[int], initial: Iterable[str]) -> list[Node]:
    """Every model to train and score, each once, teachers before their students.

    `lineages` are the ends of the chains; `initial` names the models whose supervised run starts a distillation
    or stands beside it as the baseline, for every seed.
    """
    found: dict[Node, None] = {}
    for seed in seeds:
        for model in initial:
            found[Node(supervised(model), seed)] = None
        for lineage in lineages:
            head, *rest = prefixes(lineage)
            found[Node(head, teacher_seed(head, seed, seeds))] = None
            found.update((Node(prefix, seed), None) for prefix in rest)
    return sorted(found, key=lambda node: (node.lineage.count("__"), seeds.index(node.seed)))
