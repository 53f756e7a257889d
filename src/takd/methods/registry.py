"""Facts about each method that are needed before it runs: by checks, plans, rules and reports.

A method is a module of this folder with its name, an entry here, and its settings in
workflow/schemas/experiment.schema.yaml (docs/methods.md). This module needs no torch. Trainings and
evaluations do not import it, so a new entry reruns none of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MethodFacts:
    """What the workflow has to know of a method.

    Attributes:
        title: name in reports.
        paper: number on arXiv; empty for none.
        teacher: whether its loss needs a teacher.
        loss: loss of a chunk of logits, a key of `takd.preflight.tensors.LOGITS`; None for the one
            that the setting `divergence` names.
        on_policy: whether it has the settings of `takd.methods.on_policy`.
        rollouts: whether it draws rounds of responses, from student and teacher, and keeps their
            log-probabilities and the teacher's hidden states.
        citation: BibTeX entry.
    """

    title: str
    paper: str = ""
    teacher: bool = True
    loss: str | None = None
    on_policy: bool = False
    rollouts: bool = False
    citation: str = ""

    def asks_teacher(self, settings: Mapping[str, Any]) -> bool:
        """Return whether the teacher model is loaded, in addition to any stored outputs."""
        return self.teacher and settings.get("teacher_outputs") != "top_k"

    def teacher_draws(self, settings: Mapping[str, Any]) -> bool:
        """Return whether the teacher takes part in the drawing of responses, token by token."""
        return bool(settings.get("teacher_mix") or settings.get("teacher_top_k"))


METHODS = {
    "sft": MethodFacts("SFT", teacher=False, loss="label"),
    "kd": MethodFacts("KD", "1503.02531"),
    "seqkd": MethodFacts("SeqKD", "1606.07947", teacher=False, loss="label"),
    "gkd": MethodFacts("GKD", "2306.13649", loss="jensen_shannon", on_policy=True),
    "distillm": MethodFacts("DistiLLM", "2402.03898", on_policy=True),
    "abkd": MethodFacts("ABKD", "2505.04560", loss="alpha_beta", on_policy=True),
    "taid": MethodFacts("TAID", "2501.16937", loss="interpolated", on_policy=True),
    "amid": MethodFacts("AMiD", "2510.15982", loss="alpha_mixture", on_policy=True),
    "skd": MethodFacts("SKD", "2410.11325", on_policy=True),
    "minillm": MethodFacts(
        "MiniLLM",
        "2306.08543",
        loss="policy",
        rollouts=True,
        citation="""\
@inproceedings{gu2024minillm,
  title         = {{MiniLLM}: Knowledge Distillation of Large Language Models},
  author        = {Gu, Yuxian and Dong, Li and Wei, Furu and Huang, Minlie},
  booktitle     = {International Conference on Learning Representations},
  year          = {2024},
  eprint        = {2306.08543},
  archiveprefix = {arXiv}
}
""",
    ),
}
REPLICATED = "minillm"
"""Method whose published experiments reports cite."""
