"""What the models cost: minutes of training and evaluation, tokens, devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from takd.lineage import split
from takd.report.read import Results, Row
from takd.report.table import chain_text, methods_text


@dataclass(frozen=True)
class Cost:
    """All runs of one lineage together, over its training seeds.

    Attributes:
        skipped: steps whose gradient was not finite, and which changed nothing.
    """

    lineage: str
    method: str
    seeds: int
    training_minutes: float
    evaluation_minutes: float
    steps: int
    skipped: int
    tokens: int
    evaluation_tokens: int
    device: str

    @property
    def chain(self) -> str:
        return chain_text(self.lineage)

    @property
    def methods(self) -> str:
        return methods_text(self.lineage)

    @property
    def speed(self) -> float | None:
        """Training tokens a second."""
        return self.tokens / self.training_minutes / 60 if self.training_minutes else None


@dataclass(frozen=True)
class StageCost:
    """All runs of one stage together."""

    stage: str
    runs: int
    minutes: float
    tokens: int


def by_lineage(results: Results) -> list[Cost]:
    """The cost of each lineage, in the order of training."""
    costs = []
    for lineage in results.lineages:
        models = results.of(lineage)
        scored = [e for (node, _), e in results.evaluations.items() if node.lineage == lineage]
        costs.append(
            Cost(
                lineage=lineage,
                method=split(lineage)[-1].method,
                seeds=len(models),
                training_minutes=sum(model.minutes for model in models),
                evaluation_minutes=sum(each.minutes for each in scored),
                steps=sum(model.manifest["steps"] for model in models),
                skipped=sum(int(model.end.get("skipped", 0)) for model in models),
                tokens=sum(int(model.end.get("tokens", 0)) for model in models),
                evaluation_tokens=sum(each.tokens for each in scored),
                device=", ".join(sorted({device_text(model.end) for model in models})),
            )
        )
    return costs


def by_stage(costs: list[Cost], sets: int) -> list[StageCost]:
    """The cost of training by each method, and of evaluation."""
    stages = []
    for method in dict.fromkeys(cost.method for cost in costs):
        of_method = [cost for cost in costs if cost.method == method]
        stages.append(
            StageCost(
                f"training, {method}",
                sum(cost.seeds for cost in of_method),
                sum(cost.training_minutes for cost in of_method),
                sum(cost.tokens for cost in of_method),
            )
        )
    evaluation = StageCost(
        "evaluation",
        sets * sum(cost.seeds for cost in costs),
        sum(cost.evaluation_minutes for cost in costs),
        sum(cost.evaluation_tokens for cost in costs),
    )
    return [*stages, evaluation]


def device_text(end: dict[str, Any]) -> str:
    """`2 × cuda, fp16`."""
    count = end.get("processes", 1)
    device = str(end.get("device", "unknown"))
    many = f"{count} × {device}" if count > 1 else device
    return f"{many}, {end['precision']}" if "precision" in end else many


def lines(costs: Sequence[Cost]) -> list[Row]:
    """The numbers, one line a lineage and stage."""
    found: list[Row] = []
    for cost in costs:
        for stage, minutes, tokens in (
            ("training", cost.training_minutes, cost.tokens),
            ("evaluation", cost.evaluation_minutes, cost.evaluation_tokens),
        ):
            found.append(
                {
                    "lineage": cost.lineage,
                    "chain": cost.chain,
                    "methods": cost.methods,
                    "stage": stage,
                    "training_seeds": cost.seeds,
                    "minutes": minutes,
                    "tokens": tokens,
                    "steps": cost.steps if stage == "training" else None,
                    "skipped": cost.skipped if stage == "training" else None,
                    "device": cost.device if stage == "training" else None,
                }
            )
    return found
