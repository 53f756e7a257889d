"""Costs page: time and tokens by stage and by model, and total cost with teachers and initial SFT."""

from collections.abc import Callable, Collection
from statistics import fmean
from typing import Any

import pandas as pd

from takd.analysis import costs, exports
from takd.analysis.costs import EVALUATION, JUDGE, TRAINING, unit
from takd.analysis.results import Results
from takd.experiment.labels import (
    chain_label,
    chain_text,
    full_text,
    method_title,
    methods_text,
    short_number,
)
from takd.experiment.lineage import is_given, split
from takd.pages.environment import thousands
from takd.pages.tables import Cell, Column, Group, Table, TableRow, simple
from takd.report import pages
from takd.report.score_tables import model_cell
from takd.report.tables import numbered, score

CACHES = "teacher"
"""Begin of the names of the stages that compute teacher caches."""
TIMES = ("#Runs", "#Minutes|wall time")


def page(results: Results) -> str:
    """Render the costs."""
    runs = costs.runs(results)
    return pages.render(
        "costs.html",
        results,
        stages=by_stage(results, runs),
        caches=caches(results, runs),
        models=by_model(results, runs),
        judged=_judged(results),
        arms=arms(results),
        apart=apart(results),
        how=how(runs),
    )


def arms(results: Results) -> Table | None:
    """List the chains of an experiment of equal cost: what each has spent, and its scores; None if it is none."""
    budget = costs.budgets(results)
    if not budget:
        return None
    total = costs.cumulative(results)
    labels = {chain["lineage"]: chain_label(chain) for chain in results.spec["chains"]}
    rows = []
    for lineage in results.spec["equal_cost"]["lineages"]:
        spent = total[lineage]["flops"]
        if not spent:  # results of an earlier version, which were accepted
            continue
        models = {model.node.seed: model.manifest for model in results.of(lineage)}
        scores = (score(results, name, lineage, "rougeL") for name in results.spec["sets"])
        cells = [
            model_cell(lineage, labels[lineage]),
            _total(spent.values(), short_number),
            _total([100 * value / budget[s] for s, value in spent.items()], "{:.2f}".format),
            _total([100 * m["flops"] / spent[s] for s, m in models.items()], "{:.1f}".format),
            _total([m["steps"] for m in models.values()], thousands),
            *(numbered(results, mean) for mean in scores),
        ]
        rows.append(TableRow(cells, lineage=lineage))
    heads: list[Column | str] = ["Chain", "#FLOPs|one seed", "#% of the budget"]
    heads += ["#Last training|% of its FLOPs", "#Steps|last training"]
    heads += [Column("ROUGE-L", note=name) for name in results.spec["sets"]]
    return simple(heads, rows, "arms")


def apart(results: Results) -> float:
    """Percent by which the dearest chain of equal cost exceeds the cheapest, the mean over training seeds of each."""
    spent = {name: cost["flops"] for name, cost in costs.cumulative(results).items()}
    names = results.spec.get("equal_cost", {}).get("lineages", [])
    means = [fmean(spent[name].values()) for name in names if spent[name]]
    return 100 * (max(means) / min(means) - 1) if means else 0.0


def how(runs: pd.DataFrame) -> str:
    """Say what the hours of CPUs and GPUs are."""
    found = set(zip(runs["on_cpu"], runs["measured"], strict=True))
    kinds = {
        (True, True): "CPU hours are measured CPU time of the first process × processes",
        (True, False): "CPU hours are wall time × processes, as older logs hold no CPU time",
        (False, False): "GPU hours are wall time × GPUs",
    }
    return "; ".join(text for kind, text in kinds.items() if kind in found)


def by_stage(results: Results, runs: pd.DataFrame) -> Table:
    """Sum the costs of training by method, of teacher caches and of the stages of an evaluation."""
    titles = runs["lineage"].map(lambda lineage: method_title(split(lineage)[-1].method))
    stages = runs["stage"].where(runs["stage"] != TRAINING, "training, " + titles)
    rows = [TableRow(_sums(stage, of)) for stage, of in runs.groupby(stages, sort=False)]
    if _judged(results):
        unknown = [Cell("not recorded")] * 3
        rows.append(TableRow([Cell(JUDGE), Cell(str(len(results.evaluations))), *unknown]))
    everything = Group("", [TableRow(_sums("all", runs, "beyond"))])
    table = simple(["Stage", *TIMES, f"#{unit(results)}", "#Tokens"], rows, "stages")
    return table._replace(groups=[*table.groups, everything])


def _sums(name: str, runs: pd.DataFrame, kind: str = "") -> list[Cell]:
    sums = (runs[what].sum().item() for what in ("minutes", "hours", "tokens"))
    numbers = zip((len(runs), *sums), (0, 1, 2, 0), strict=True)
    return [Cell(name, kind=kind), *(_number(value, digits) for value, digits in numbers)]


def caches(results: Results, runs: pd.DataFrame) -> Table | None:
    """List the teacher caches, which are computed once for all students of a teacher; None if there are none."""
    found = runs[runs["stage"].str.startswith(CACHES)].groupby(["lineage", "stage"], sort=False)
    rows = [
        [Cell(full_text(lineage)), *_sums(stage, of), _devices(of)]
        for (lineage, stage), of in found
    ]
    heads = ["Teacher", "Stage", *TIMES, f"#{unit(results)}", "#Tokens", "Device"]
    return simple(heads, rows, "caches") if rows else None


def by_model(results: Results, runs: pd.DataFrame) -> Table:
    """List the models with what their own runs cost, over training seeds, and their total cost, for one seed."""
    total = costs.cumulative(results)
    rows = []
    for lineage in results.lineages:
        own = runs[runs["lineage"] == lineage]
        trained = own[own["stage"] == TRAINING]
        minutes, tokens = (trained[what].sum().item() for what in ("minutes", "tokens"))
        hours, drawn, flops = (total[lineage][what] for what in ("hours", "tokens", "flops"))
        cells = [
            model_cell(lineage),
            _number(len(trained)),
            _number(minutes, 1),
            _number(own[own["stage"].isin(EVALUATION)]["minutes"].sum().item(), 1),
            _number(tokens),
            _number(tokens / minutes / 60) if minutes else Cell("–", ""),
            _total(hours.values(), pages.hours),
            _total(drawn.values(), thousands),
            _total(flops.values(), short_number) if flops else Cell("–", ""),
            Cell(_devices(trained)),
        ]
        rows.append(TableRow(cells, lineage=lineage))
    heads = ["Model", "#Seeds", "#Training|minutes", "#Evaluation|minutes", "#Training tokens"]
    heads += ["#Tokens a second", f"#Total {unit(results)}|one seed", "#Total tokens|one seed"]
    return simple([*heads, "#Total FLOPs|one seed", "Device"], rows, "models")


def to_csv(results: Results) -> str:
    """Write one line per lineage and stage, over training seeds."""
    runs = costs.runs(results)
    runs = runs.sort_values("lineage", key=lambda x: x.map(results.lineages.index), kind="stable")
    lines = []
    for (lineage, stage), of in runs.groupby(["lineage", "stage"], sort=False):
        line: dict[str, Any] = {"lineage": lineage, "chain": chain_text(lineage)}
        line |= {"methods": methods_text(lineage), "stage": stage}
        line["training_seeds"] = 0 if is_given(lineage) else of["seed"].nunique()
        for what in ("minutes", "hours", "tokens", "flops", "steps", "skipped"):
            total = of[what].sum(min_count=1)
            # rounded as a Python float: numpy's differ in the last digit
            line[what] = None if pd.isna(total) else total.item()
        lines.append(line | {"device": None if stage in EVALUATION else _devices(of)})
    return exports.to_csv(lines)


def _total(by_seed: Collection[float], text: Callable[[float], str]) -> Cell:
    """Cell of a mean over training seeds, with lowest and highest below it."""
    mean = sum(by_seed) / len(by_seed)
    ends = [text(min(by_seed)), text(max(by_seed))]
    return Cell(text(mean), mean, [" to ".join(ends)] if ends[0] != ends[1] else [])


def _devices(runs: pd.DataFrame) -> str:
    return ", ".join(sorted(set(runs["device"])))


def _judged(results: Results) -> int:
    """Responses that the judge rated."""
    ratings = [each.judge for each in results.evaluations.values() if each.judge]
    return sum(rated["n"] + rated["unreadable"] for rated in ratings)


def _number(value: float, digits: int = 0) -> Cell:
    return Cell(thousands(value, digits), value)
