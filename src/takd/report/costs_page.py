"""Costs page: time and tokens by stage and by model, and total cost with teachers and initial SFT."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from takd.analysis import costs, exports
from takd.analysis.costs import EVALUATION, JUDGE, TRAINING, StageRun, unit
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
TIMES = (Column("Runs"), Column("Minutes", note="wall time"))


def page(results: Results) -> str:
    """Render the costs."""
    runs = list(costs.runs(results))
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
    total = {each.lineage: each.flops for each in costs.cumulative(results)}
    labels = {chain["lineage"]: chain_label(chain) for chain in results.spec["chains"]}
    rows = []
    for lineage in results.spec["equal_cost"]["lineages"]:
        if not (spent := total[lineage]):  # results of an earlier version, which were accepted
            continue
        share = {seed: 100 * value / budget[seed] for seed, value in spent.items()}
        own = {
            m.node.seed: 100 * m.manifest["flops"] / spent[m.node.seed] for m in results.of(lineage)
        }
        steps = {m.node.seed: m.manifest["steps"] for m in results.of(lineage)}
        cells = [
            model_cell(lineage, labels[lineage]),
            _total(spent, short_number),
            _total(share, "{:.2f}".format),
            _total(own, "{:.1f}".format),
            _total(steps, thousands),
            *(
                numbered(results, score(results, n, lineage, "rougeL"))
                for n in results.spec["sets"]
            ),
        ]
        rows.append(TableRow(cells, lineage=lineage))
    heads = [
        Column("Chain", "name"),
        Column("FLOPs", note="one seed"),
        Column("% of the budget"),
        Column("Last training", note="% of its FLOPs"),
        Column("Steps", note="last training"),
        *(Column("ROUGE-L", note=name) for name in results.spec["sets"]),
    ]
    return Table(heads, [Group("", rows)], "arms")


def apart(results: Results) -> float:
    """Percent by which the dearest chain of equal cost exceeds the cheapest, the mean over training seeds of each."""
    spent = {each.lineage: each.flops for each in costs.cumulative(results)}
    names = results.spec.get("equal_cost", {}).get("lineages", [])
    means = [fmean(spent[name].values()) for name in names if spent[name]]
    return 100 * (max(means) / min(means) - 1) if means else 0.0


def how(runs: Sequence[StageRun]) -> str:
    """Say what the hours of CPUs and GPUs are."""
    kinds = []
    if any(run.measured for run in runs):
        kinds.append("CPU hours are measured CPU time of the first process × processes")
    if any(run.on_cpu and not run.measured for run in runs):
        kinds.append("CPU hours are wall time × processes, as older logs hold no CPU time")
    if any(not run.on_cpu for run in runs):
        kinds.append("GPU hours are wall time × GPUs")
    return "; ".join(kinds)


def by_stage(results: Results, runs: Sequence[StageRun]) -> Table:
    """Sum the costs of training by method, of teacher caches and of the stages of an evaluation."""
    found: dict[str, list[StageRun]] = {}
    for run in runs:
        method = split(run.lineage)[-1].method
        stage = f"training, {method_title(method)}" if run.stage == TRAINING else run.stage
        found.setdefault(stage, []).append(run)
    rows = [TableRow(_sums(stage, of_stage)) for stage, of_stage in found.items()]
    if _judged(results):
        unknown = [Cell("not recorded")] * 3
        rows.append(TableRow([Cell(JUDGE), Cell(str(len(results.evaluations))), *unknown]))
    heads = [Column("Stage", "name"), *TIMES, Column(unit(results)), Column("Tokens")]
    return Table(
        heads, [Group("", rows), Group("", [TableRow(_sums("all", runs, "beyond"))])], "stages"
    )


def _sums(name: str, runs: Sequence[StageRun], kind: str = "") -> list[Cell]:
    return [
        Cell(name, kind=kind),
        _number(len(runs)),
        _number(sum(run.minutes for run in runs), 1),
        _number(sum(run.hours for run in runs), 2),
        _number(sum(run.tokens for run in runs)),
    ]


def caches(results: Results, runs: Sequence[StageRun]) -> Table | None:
    """List the teacher caches, which are computed once for all students of a teacher; None if there are none."""
    found = _grouped(run for run in runs if run.stage.startswith(CACHES))
    rows = [
        [Cell(full_text(lineage)), *_sums(stage, of_stage), _devices(of_stage)]
        for (lineage, stage), of_stage in found.items()
    ]
    heads: list[Column | str] = ["Teacher", "Stage", *TIMES, f"#{unit(results)}"]
    heads += ["#Tokens", "Device"]
    return simple(heads, rows, "caches") if rows else None


def _grouped(runs: Iterable[StageRun]) -> dict[tuple[str, str], list[StageRun]]:
    """Group runs by lineage and stage."""
    found: dict[tuple[str, str], list[StageRun]] = {}
    for run in runs:
        found.setdefault((run.lineage, run.stage), []).append(run)
    return found


def by_model(results: Results, runs: Sequence[StageRun]) -> Table:
    """List the models with what their own runs cost, over training seeds, and their total cost, for one seed."""
    total = {each.lineage: each for each in costs.cumulative(results)}
    rows = []
    for lineage in results.lineages:
        trained = [run for run in runs if (run.lineage, run.stage) == (lineage, TRAINING)]
        scored = [run for run in runs if run.lineage == lineage and run.stage in EVALUATION]
        minutes, tokens = (sum(getattr(r, what) for r in trained) for what in ("minutes", "tokens"))
        hours, drawn, flops = total[lineage].hours, total[lineage].tokens, total[lineage].flops
        cells = [
            model_cell(lineage),
            _number(len(trained)),
            _number(minutes, 1),
            _number(sum(run.minutes for run in scored), 1),
            _number(tokens),
            _number(tokens / minutes / 60) if minutes else Cell("–", ""),
            _total(hours, pages.hours),
            _total(drawn, thousands),
            _total(flops, short_number) if flops else Cell("–", ""),
            Cell(_devices(trained)),
        ]
        rows.append(TableRow(cells, lineage=lineage))
    heads = [
        Column("Model", "name"),
        Column("Seeds"),
        Column("Training", note="minutes"),
        Column("Evaluation", note="minutes"),
        Column("Training tokens"),
        Column("Tokens a second"),
        Column(f"Total {unit(results)}", note="one seed"),
        Column("Total tokens", note="one seed"),
        Column("Total FLOPs", note="one seed"),
        Column("Device", ""),
    ]
    return Table(heads, [Group("", rows)], "models")


def to_csv(results: Results) -> str:
    """Write one line per lineage and stage, over training seeds."""
    in_order = sorted(costs.runs(results), key=lambda run: results.lineages.index(run.lineage))
    return exports.to_csv(
        [
            {
                "lineage": lineage,
                "chain": chain_text(lineage),
                "methods": methods_text(lineage),
                "stage": stage,
                "training_seeds": 0 if is_given(lineage) else len({run.seed for run in runs}),
                "minutes": sum(float(run.end.get("seconds", 0.0)) for run in runs) / 60,
                "hours": sum(run.hours for run in runs),
                "tokens": sum(run.tokens for run in runs),
                "flops": sum(counted)
                if (counted := [r.flops for r in runs if r.flops is not None])
                else None,
                "steps": sum(run.steps or 0 for run in runs) if stage == TRAINING else None,
                "skipped": sum(run.skipped or 0 for run in runs) if stage == TRAINING else None,
                "device": None if stage in EVALUATION else _devices(runs),
            }
            for (lineage, stage), runs in _grouped(in_order).items()
        ]
    )


def _total(by_seed: Mapping[int, float], text: Callable[[float], str]) -> Cell:
    """Cell of a mean over training seeds, with lowest and highest below it."""
    mean = sum(by_seed.values()) / len(by_seed)
    ends = [text(min(by_seed.values())), text(max(by_seed.values()))]
    return Cell(text(mean), mean, [" to ".join(ends)] if ends[0] != ends[1] else [])


def _devices(runs: Sequence[StageRun]) -> str:
    return ", ".join(sorted({run.device for run in runs}))


def _judged(results: Results) -> int:
    """Responses that the judge rated."""
    ratings = [each.judge for each in results.evaluations.values() if each.judge]
    return sum(rated["n"] + rated["unreadable"] for rated in ratings)


def _number(value: float, digits: int = 0) -> Cell:
    return Cell(
        thousands(value) if digits == 0 else f"{value:,.{digits}f}".replace(",", "\u202f"), value
    )
