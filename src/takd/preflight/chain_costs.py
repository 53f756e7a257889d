"""What each chain costs with all that it needs, as trainings count it, and the steps that follow from a budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from takd.experiment import budget, lineage, specs
from takd.experiment.experiment import Experiment
from takd.experiment.labels import full_text, short_number
from takd.experiment.teacher_cache import GENERATIONS
from takd.methods.registry import METHODS
from takd.methods.schedule import steps_per_round, total_steps
from takd.models.flops import body_forward, decoding
from takd.models.shapes import Shape
from takd.preflight import flops
from takd.preflight.flops import Conditions, Lengths, Rows
from takd.runtime.errors import InputError

MANY = 1000
"""Steps, or rounds, over which the cost of one is averaged."""

COARSE = 0.03
"""Share of a budget: arms should be no further apart."""


@dataclass(frozen=True)
class ChainCost:
    """Expected FLOPs of a chain; None while they depend on an unknown number of rows.

    Attributes:
        before: of all that its last training needs.
        own: of that training.
        steps: of that training.
        of_budget: whether they follow from the budget.
    """

    label: str
    lineage: str
    before: float | None
    own: float | None
    steps: int | None
    of_budget: bool

    @property
    def whole(self) -> float | None:
        return None if self.before is None or self.own is None else self.before + self.own


class ChainCosts:
    """Expected FLOPs of the models of an experiment, from the shapes of models and the rows of splits."""

    def __init__(
        self, experiment: Experiment, shapes: Mapping[str, Shape], rows: Mapping[str, Rows]
    ) -> None:
        self.experiment, self.shapes, self.rows = experiment, shapes, rows
        self._spent: dict[str, dict[str, float] | None] = {}

    def listed(self) -> list[ChainCost]:
        """List all chains, in the order of the experiment."""
        return [
            ChainCost(
                *(chain["label"], name, _sum(self.before(name)), self.own(name), self.steps(name)),
                name in self.experiment.ends,
            )
            for chain in self.experiment.chains
            for name in [chain["lineage"]]
        ]

    @property
    def budget(self) -> float | None:
        """FLOPs that a chain may cost; None without a budget, or while the cost of the reference is unknown."""
        given = self.experiment.settings["budget"]
        if given is None:
            return None
        if "flops" in given:
            return float(given["flops"])
        whole = budget.reference(self.experiment.settings)
        assert whole is not None
        return _sum(self.spent(whole))

    def spent(self, name: str) -> dict[str, float] | None:
        """FLOPs of a model and of all that it needs, each once; None while unknown."""
        if name not in self._spent:
            before, own = self.before(name), self.own(name)
            if before is None or own is None:
                self._spent[name] = None
            else:
                self._spent[name] = {**before, name: own}
        return self._spent[name]

    def before(self, name: str) -> dict[str, float] | None:
        """FLOPs of all that a training needs: its teachers, its start, and the stored outputs that it reads."""
        if lineage.is_given(name):
            return {}
        parts: list[dict[str, float] | None] = []
        if teacher := lineage.teacher_of(name):
            parts.append(self.spent(teacher))
            for place in self.experiment.cached_inputs(name).values():
                parts.append(self._cached(teacher, place))
                if place.startswith(f"outputs/{GENERATIONS}"):
                    parts.append(self._cached(teacher, GENERATIONS))
        if self.experiment.start_of(name) == lineage.SUPERVISED:
            parts.append(self.spent(lineage.supervised(lineage.split(name)[-1].model)))
        found: dict[str, float] = {}
        for part in parts:
            if part is None:
                return None
            found |= part
        return found

    def own(self, name: str) -> float | None:
        """FLOPs of a training without all that it needs; under a budget, what the budget leaves."""
        if lineage.is_given(name):
            return 0.0
        steps = self.steps(name)
        return None if steps is None else steps * self.a_step(name)

    def steps(self, name: str) -> int | None:
        """Expected number of steps; None while unknown, and 0 where a budget leaves too little for one."""
        if lineage.is_given(name):
            return 0
        if name not in self.experiment.ends:
            settings = specs.train(self.experiment, name, self.experiment.seeds[0])["settings"]
            return total_steps(settings, self.rows["train"].first(settings["rows"]).count)
        before, whole = _sum(self.before(name)), self.budget
        if before is None or whole is None:
            return None
        return max(0, round((whole - before) / self.a_step(name)))

    def _a_round(self, name: str) -> float:
        """FLOPs of a step with the responses that it and the steps after it learn from, at most."""
        s = specs.train(self.experiment, name, self.experiment.seeds[0])["settings"]
        return self.a_step(name) * (steps_per_round(s) if "rollouts_per_round" in s else 1)

    def a_step(self, name: str) -> float:
        """FLOPs of a step, on average."""
        spec = specs.train(self.experiment, name, self.experiment.seeds[0])
        s, facts = spec["settings"], METHODS[spec["method"]]
        above = lineage.teacher_of(name)
        teacher = self._shape(above) if above and facts.asks_teacher(s) else None
        steps = MANY * steps_per_round(s) if facts.rollouts else MANY
        block = round(self.rows["corpus"].whole) if "corpus" in self.rows else 0
        rows = self.rows["train"].first(s["rows"])
        given = Conditions(block_length=block)
        work = flops.learning(spec, self._shape(name), teacher, rows, steps, given)
        return work.operations / steps

    def problems(self) -> list[str]:
        """Chains whose budget does not pay for what they need, a sentence each."""
        whole = self.budget
        return [
            f"budget: {each.label} ({full_text(each.lineage)}) needs {short_number(each.before)} FLOP before its last"
            f" training (teachers, starts and stored outputs), but the budget is {short_number(whole)} FLOP; give a"
            " larger budget, or fewer steps to what it needs."
            for each in self.listed()
            if each.of_budget and each.steps == 0 and whole is not None and each.before is not None
        ]

    def coarse(self) -> list[str]:
        """Chains that may end beside the budget by more than arms of equal cost should, a sentence each."""
        whole, found = self.budget, []
        for each in self.listed():
            if not (whole and each.of_budget and each.steps):
                continue
            share = self._a_round(each.lineage) / whole
            if share > COARSE:
                found.append(
                    f"budget: a step of {each.label} ({full_text(each.lineage)}), with the responses of its round,"
                    f" costs {share:.1%} of the budget, and it ends within half of that; smaller batches or"
                    " rollouts_per_round come closer."
                )
        return found

    def refuse(self) -> None:
        """Raise InputError for a budget that is too small, where the data are there, so that it is known."""
        known = "train" in self.rows and self.rows["train"].lengths is Lengths.PREPARED
        if known and (found := self.problems()):
            raise InputError(*found)

    def _cached(self, teacher: str, place: str) -> dict[str, float] | None:
        shape, of_what = self._shape(teacher), place.split("/")
        rows = self.rows["corpus" if "corpus" in of_what else "train"]
        if rows.count is None:
            return None
        if place == GENERATIONS:
            one = body_forward(shape, rows.prompt) + decoding(shape, rows.prompt, rows.response)
            return {f"{teacher}/{place}": rows.count * one}
        work = flops.outputs(shape, rows, of_what[-1])
        return None if work is None else {f"{teacher}/{place}": work.operations}

    def _shape(self, name: str) -> Shape:
        return self.shapes[lineage.student_of(name)]

    def as_json(self) -> list[dict[str, Any]]:
        """List the chains for a plan as JSON."""
        return [{**vars(each), "flops": each.whole} for each in self.listed()]


def _sum(parts: Mapping[str, float] | None) -> float | None:
    return None if parts is None else sum(parts.values())
