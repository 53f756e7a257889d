"""FLOPs that a training spends, counted from the lengths of its texts, and the budget that ends it.

The counts are those of the model (`takd.models.flops`): what is computed twice to save memory, padding
and dev evaluations are left out. They depend on the global batches alone, so they are equal for any
number of processes and micro-batches.

A budget holds for a student with all that it needs: its teachers, the weights that it starts from and
the stored outputs that it reads, each once. Their manifests say what was spent on each of them.
"""

from collections.abc import Sequence
from typing import Any

from takd.decoding.prompts import Prompt, Response
from takd.methods.base import Method, Part
from takd.methods.schedule import steps_per_round
from takd.models import flops
from takd.models.flops import REFERENCE, spent_before
from takd.models.shapes import of_config
from takd.runtime.errors import InputError
from takd.runtime.files import read_json
from takd.runtime.metrics_log import Journal
from takd.runtime.records import SPENT
from takd.runtime.stage import Stage

COSTS = ("model", "generations", "teacher_outputs")
"""Kinds of manifests that say what was spent."""


def share_of(stage: Stage) -> int | None:
    """Return the FLOPs that a budget leaves to this training; None without a budget.

    Raises:
        InputError: it leaves none, or what was spent is not recorded.
    """
    if (budget := stage.spec.get("budget")) is None:
        return None
    title = f"{stage.spec['lineage']} seed {stage.spec['seed']}"
    for path in (path for paths in stage.inputs.values() for path in paths):
        found = read_json(path)
        if found.get("kind") in COSTS and SPENT not in found and found.get("method") != "given":
            raise InputError(
                f"{title}: {path} does not say what was spent on it, as an earlier version of takd wrote it; delete it"
                " and start snakemake again."
            )
    if "flops" in budget:
        whole, source = int(budget["flops"]), "budget.flops"
    else:
        found = read_json(stage.input(REFERENCE)).get(SPENT, {})
        whole, source = sum(found.values()), f"the cost of {budget['chain'][0]}"
    before = spent_before(stage.inputs)
    needed = sum(before.values())
    if needed >= whole:
        dearest = sorted(before.items(), key=lambda item: -item[1])[:3]
        listed = ", ".join(f"{name} {value:.3g}" for name, value in dearest)
        raise InputError(
            f"{title}: what it needs has cost {needed:.3g} FLOPs ({listed}), and its budget is {whole:.3g} ({source});"
            " give a larger budget, or fewer steps to its teachers and starts."
        )
    return whole - needed


class Spending:
    """Count of a training's FLOPs, and its number of steps.

    Under a budget the number of steps is expected anew at each step, from what the steps so far have
    cost, so that schedules end with the budget. The counts are kept in the journal.

    Args:
        student: the model in training, with the shape of its starting weights.
        share: FLOPs that the training may spend; None if its settings give the number of steps.
    """

    def __init__(self, method: Method, student: Any, journal: Journal, share: int | None) -> None:
        self.method, self.journal, self.share = method, journal, share
        s, teacher = method.settings, method.context.teacher
        self.student = of_config(student.config.to_dict())
        self.teacher = None if teacher is None else of_config(teacher.config.to_dict())
        self.lora = s["lora"]
        # responses are drawn at the first step of a round only
        self.period = steps_per_round(s) if "rollouts_per_round" in s else 1
        journal.flops, journal.step_flops = 0, [0, 0]

    def drawn(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], taught: bool | None
    ) -> None:
        """Count responses that were drawn.

        Args:
            taught: whether the teacher decodes too; if not, it reads the responses once, and with
                None it takes no part.
        """
        total = 0.0
        for prompt, response in zip(prompts, responses, strict=True):
            lengths = len(prompt.tokens), len(response.tokens)
            for shape in (self.student, self.teacher if taught else None):
                if shape is not None:
                    total += flops.body_forward(shape, lengths[0]) + flops.decoding(shape, *lengths)
            if taught is False and self.teacher is not None:
                total += flops.reading(self.teacher, *lengths)
        self._add(0, total)

    def learned(self, step: int, parts: Sequence[Part]) -> Sequence[Part]:
        """Count the passes of a step's global batch, and expect the number of steps anew; return the batch."""
        live = "none" if self.teacher is None else "live"
        total = 0.0
        for part in parts:
            outputs = part.outputs or live
            for row in part.rows:
                # nothing precedes the first token of a text without a prompt
                prompt = max(len(row.prompt), 1)
                lengths = prompt, len(row) - prompt
                total += flops.trained(self.student, len(row), lengths[1], self.lora)
                if self.teacher is not None:
                    total += flops.distribution(self.teacher, *lengths, outputs)
        self._add(1, total)
        if self.share is not None:
            self.method.planned = self.total(step + 1)
        return parts

    def _add(self, kind: int, total: float) -> None:
        assert self.journal.flops is not None
        self.journal.flops += round(total)
        self.journal.step_flops[kind] = round(total)

    def begin(self, step: int) -> None:
        """Prepare the counts of a step."""
        if step % self.period == 0:
            self.journal.step_flops[0] = 0

    def total(self, step: int) -> int:
        """Return the number of steps under a budget, as expected after `step` steps."""
        assert self.share is not None
        if not self.journal.flops:
            return 1  # nothing is known before the first step
        # of the responses of a round, what its steps so far have used
        ahead = self.journal.step_flops[0] * (-step % self.period) / self.period
        return max(step, round(step * self.share / (self.journal.flops - ahead)))

    def over(self, step: int) -> bool:
        """Return whether the run ends after `step` steps.

        Under a budget that is where it comes nearest to its share; it begins no round that would exceed it
        by more than it would leave.
        """
        if self.share is None:
            return step >= self.method.total_steps()
        assert self.journal.flops is not None
        drawing, reading = self.journal.step_flops
        following = reading + (drawing if step % self.period == 0 else 0)
        over = step > 0 and self.journal.flops + following / 2 >= self.share
        self.method.planned = step if over else max(step + 1, self.total(step))
        return over
