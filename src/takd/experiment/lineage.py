"""Lineages: the names of models, such as `teacher-sft__assistant-minillm__student-minillm`.

A lineage lists the hops of a chain as `<model>-<method>`, joined by `__`; the first hop is
supervised, or a model that is there and taken as it is: `teacher-given__student-minillm`. It is also
a folder name, so two chains with a common prefix share the models of that prefix, which are trained
once.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

SUPERVISED = "sft"
GIVEN = "given"
"""In place of a method: the model is taken as it is, without training."""
GIVEN_SEED = 0
"""In place of a training seed, which such a model does not have."""
CONTROL = "+"
"""In a model's name, before what says which control of the model it is (`takd.experiment.controls`)."""
SELF = "self"
"""The control whose teacher is its own start."""
ARM = "@"
"""In a model's name, before each setting of a sweep: `student@learning_rate=1e-05` (`takd.experiment.sweeps`).

No comma: Snakemake divides the wildcards of a job on a cluster there, and would train the model without the setting.
"""
_VALUE = r"-?[A-Za-z0-9.]+([_-]-?[A-Za-z0-9.]+)*"
MODEL_PATTERN = rf"[A-Za-z0-9.]+({ARM}[a-z0-9_.]+={_VALUE})*(\+[a-z]+)?"


class Hop(NamedTuple):
    """A trained model of a chain and the method that trained it."""

    model: str
    method: str


class Node(NamedTuple):
    """A model: its lineage and its training seed, `GIVEN_SEED` where it is not trained."""

    lineage: str
    seed: int

    @property
    def folder(self) -> str:
        """Its folder, below those of models, evaluations and logs."""
        return f"{self.lineage}/seed{self.seed}"


def join(hops: Iterable[Hop]) -> str:
    """Format hops as a lineage."""
    return "__".join(f"{hop.model}-{hop.method}" for hop in hops)


def split(lineage: str) -> list[Hop]:
    """Parse a lineage into its hops."""
    return [Hop(*part.rsplit("-", 1)) for part in lineage.split("__")]


def of_chain(models: Sequence[str], methods: Sequence[str], given: Collection[str] = ()) -> str:
    """Return the lineage of a chain: a supervised or given teacher, then one distillation per hop.

    `methods` has one entry per hop after the teacher; models in `given` are not trained.
    """
    teacher, *students = models
    hops = [Hop(student, method) for student, method in zip(students, methods, strict=True)]
    return join([Hop(teacher, GIVEN if teacher in given else SUPERVISED), *hops])


def own(model: str) -> str:
    """Return the model of the experiment file that a control or a model of a sweep is one of."""
    return arm(model).partition(ARM)[0]


def arm(model: str) -> str:
    """Return the model that a control is one of, with its values of a sweep: both have the same settings."""
    return model.partition(CONTROL)[0]


def start(model: str) -> str:
    """Return the model whose supervised run a model starts from; of a sweep, only values of SFT's settings count."""
    first, *settings = arm(model).split(ARM)
    return ARM.join([first, *(each for each in settings if each.startswith(f"{SUPERVISED}."))])


def control_of(lineage: str) -> str:
    """Return which control the last model of a lineage is; empty for one that is none."""
    return split(lineage)[-1].model.partition(CONTROL)[2]


def student_of(lineage: str) -> str:
    """Return the last model of a lineage, as the experiment file names it."""
    return own(split(lineage)[-1].model)


def alone(model: str) -> str:
    """Return the lineage of a supervised training of a model."""
    return join([Hop(model, SUPERVISED)])


def supervised(model: str) -> str:
    """Return the lineage of a model's start and baseline, fine-tuned on labels: of a control, the model's own."""
    return alone(start(model))


def teacher_of(lineage: str) -> str | None:
    """Return the lineage of a model's direct teacher; None for the head of a chain."""
    return lineage.rpartition("__")[0] or None


def is_given(lineage: str) -> bool:
    """Return whether a model is taken as it is, without training."""
    return split(lineage)[-1].method == GIVEN


def node_of(lineage: str, seed: int) -> Node:
    """Return the model of a lineage for a training seed; one that is given is the same for all."""
    return Node(lineage, GIVEN_SEED if is_given(lineage) else seed)


def prefixes(lineage: str) -> list[str]:
    """Return the lineage of each model of the chain, from its head to this model."""
    hops = split(lineage)
    return [join(hops[: count + 1]) for count in range(len(hops))]


def teacher_seed(teacher: str, seed: int, seeds: Sequence[int], student: str = "") -> int:
    """Return the training seed of the teacher of a student that is trained with `seed`.

    The supervised head of a chain is trained once, with the first seed: it is the most expensive
    model and the fixed reference for its students. All models below it are trained once per seed,
    so that the spread over seeds includes the variance of the assistants. A student that is its own
    teacher is that of its own seed.

    Args:
        student: lineage of the student.
    """
    first = teacher_of(teacher) is None and not (student and control_of(student) == SELF)
    return node_of(teacher, seeds[0] if first else seed).seed


def pattern(methods: Iterable[str]) -> str:
    """Return a regular expression that matches any lineage whose hops use `methods`."""
    hop = f"{MODEL_PATTERN}-({'|'.join(sorted(methods))})"
    return f"{MODEL_PATTERN}-({SUPERVISED}|{GIVEN})(__{hop})*"


def nodes(lineages: Iterable[str], seeds: Sequence[int], initial: Iterable[str]) -> list[Node]:
    """Return all models to train or take, and to score: each once, teachers before their students.

    Args:
        lineages: lineages of the last models of the chains.
        seeds: training seeds.
        initial: models that also need a supervised run for every seed, as the start of a
            distillation or as the baseline.
    """
    found: dict[Node, None] = {}
    for seed in seeds:
        for model in initial:
            found[Node(supervised(model), seed)] = None
        for lineage in lineages:
            head, *rest = prefixes(lineage)
            # a control teaches none
            own_seed = seed if control_of(head) else teacher_seed(head, seed, seeds, lineage)
            found[Node(head, own_seed)] = None
            found.update((Node(prefix, seed), None) for prefix in rest)
    order = {seed: place for place, seed in enumerate(seeds)}

    def place(node: Node) -> tuple[int, int]:
        return node.lineage.count("__"), -1 if is_given(node.lineage) else order[node.seed]

    return sorted(found, key=place)
