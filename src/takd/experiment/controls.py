"""Controls: chains that show how much of a gain needs the teacher (`control` of a chain).

A control trains the student of a chain from the same start, with the same settings but those named here, as a model
of its own: `student+shuffled`. When an experiment is read, each chain with a control becomes such a chain; the name
says the rest (`takd.experiment.lineage`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from takd.experiment.lineage import CONTROL, SELF, control_of, split, start, teacher_of
from takd.experiment.teacher_cache import places
from takd.methods.registry import METHODS


@dataclass(frozen=True)
class Control:
    """What makes a chain a control.

    Attributes:
        suffix: what the name of its model ends with.
        title: name in reports.
        settings: settings of its last hop, in place of those of the method.
        without: teacher outputs (keys of `takd.experiment.teacher_cache.places`) that it cannot read
            from the cache.
        why: why it cannot.
    """

    suffix: str
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    why: str = ""


SFT = "sft"
CONTROLS = {
    "self_teacher": Control(
        SELF,
        "self-taught",
        without=("train", "outputs", "corpus_outputs"),
        why="the teacher is the weights that the student starts from, of which nothing is stored",
    ),
    "shuffled_prompts": Control(
        "shuffled",
        "shuffled prompts",
        {"teacher_prompts": "shuffled"},
        ("train", "outputs"),
        "what is stored belongs to the prompts themselves",
    ),
    "constant_advantage": Control(
        "constant",
        "constant advantage",
        {
            "advantage": "constant",
            "teacher_mix": 0.0,
            "single_step_weight": 0.0,
            "lm_teacher_share": 0.0,
        },
    ),
    SFT: Control("sft", "same FLOPs"),
}
"""By the value of `control`."""
BY_SUFFIX = {control.suffix: control for control in CONTROLS.values()}


def fits(name: str, method: str, known: Mapping[str, Any]) -> bool:
    """Return whether a method has what a control changes.

    Args:
        known: the method's settings.
    """
    return name == SFT or (METHODS[method].teacher and set(CONTROLS[name].settings) <= set(known))


def unfit(control: Control, settings: Mapping[str, Any]) -> str:
    """Say which stored teacher outputs a training with these settings reads that the control cannot; empty for none."""
    read = [place for name, place in places(settings).items() if name in control.without]
    return (
        f"but reads {' and '.join(read)} from the teacher cache, and {control.why}; set responses: labels and"
        " teacher_outputs and lm_teacher_outputs: live, as far as the method has them."
        if read
        else ""
    )


def expanded(chain: dict[str, Any]) -> dict[str, Any]:
    """Return the chain that is trained in place of one with a control; another chain as it is."""
    if chain["control"] is None:
        return chain
    *above, student = chain["models"]
    derived = f"{student}{CONTROL}{CONTROLS[chain['control']].suffix}"
    last = [entry if isinstance(entry, str) else entry[-1] for entry in chain["methods"]]
    plain = {**chain, "control": None}
    if chain["control"] == SFT:
        derived = f"{start(student)}{CONTROL}{CONTROLS[SFT].suffix}"
        return {**plain, "models": [derived], "methods": []}
    if chain["control"] == "self_teacher":
        return {**plain, "models": [start(student), derived], "methods": list(dict.fromkeys(last))}
    return {**plain, "models": [*above, derived]}


def of(lineage: str) -> Control | None:
    """Return the control that the last model of a lineage is."""
    return BY_SUFFIX.get(control_of(lineage))


def controls(lineage: str, control: str) -> bool:
    """Return whether the model of the lineage `control` is a control of the distilled model of `lineage`.

    Both have the same student and method. SFT is a control of any method, since it has none; and
    where the teacher still reads the student's texts, it is the same teacher.
    """
    kind = of(control)
    if kind is None or of(lineage) is not None or teacher_of(lineage) is None:
        return False
    ours, theirs = split(lineage)[-1], split(control)[-1]
    student = start(ours.model) if kind is CONTROLS[SFT] else ours.model
    if theirs.model != f"{student}{CONTROL}{kind.suffix}":
        return False
    if kind is CONTROLS[SFT]:
        return True
    same = kind is not CONTROLS["shuffled_prompts"] or teacher_of(lineage) == teacher_of(control)
    return same and ours.method == theirs.method
