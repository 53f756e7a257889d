"""Compare several experiments: a page, a table and a figure from their results.

Outputs, each optional: the names of `takd.experiment.comparison.PARTS`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from takd.analysis import compare_settings, costs, measures
from takd.analysis import table as numbers
from takd.analysis.across_experiments import Comparison, Outcome, Place, compare
from takd.analysis.compare_results import Compared, read_all
from takd.analysis.compare_settings import TRAINED, Setting
from takd.analysis.costs import EVALUATION, TRAINING
from takd.analysis.measures import Measure
from takd.analysis.results import MEASURES
from takd.analysis.table import DIFFERENCE, SCORE, Number
from takd.analysis.text import visible
from takd.experiment import labels
from takd.report import pages, table
from takd.report.figures import forest
from takd.report.figures.curves import experiments as curves
from takd.report.figures.style import looks
from takd.report.tables import Cell, Column, Group, Row, Table, measured, numbered
from takd.runtime.errors import InputError
from takd.runtime.records import REPORT
from takd.runtime.stage import Stage, write_text

FEW = 3
"""Differing settings that a sentence names; more are counted."""
CACHES = "writing"
COSTS = {
    "training_minutes": "Training minutes",
    f"{CACHES}_minutes": "Teacher cache minutes",
    "evaluation_minutes": "Evaluation minutes",
    "training_tokens": "Training tokens",
    f"{CACHES}_tokens": "Teacher cache tokens",
    "evaluation_tokens": "Evaluation tokens",
}
"""Titles of costs; those of teacher caches only where there are any."""


def run(stage: Stage) -> None:
    """Write the requested outputs.

    Inputs: `results`, the folder of each experiment's results in the order of the settings. Raises InputError for a
    missing file or an unknown output.
    """
    experiments = read_all(stage.spec, stage.many("results"))
    comparison = compare(experiments)
    figure = curves({each.name: each.results for each in experiments}, comparison.shared)
    makers: dict[str, Callable[[], str]] = {
        "page": lambda: page(comparison, figure.svg),
        "table": lambda: to_csv(comparison),
        "curves": lambda: figure.svg,
        "curves_csv": lambda: figure.csv,
    }
    for name, path in stage.outputs.items():
        if name not in makers:
            raise InputError(
                f"--output {name}: no such part of a comparison; there are {', '.join(makers)}"
            )
        write_text(path, makers[name]())
    stage.write_record(next(iter(stage.outputs.values())).parent / REPORT)
    names = ", ".join(each.name for each in experiments[1:])
    stage.say(f"comparison: {experiments[0].name} with {names}: {len(comparison.shared)} models")


def page(comparison: Comparison, svg: str) -> str:
    """Render the page: differences in results, in settings and in costs, side by side."""
    experiments = comparison.experiments
    settings = compare_settings.settings(experiments)
    origins = compare_settings.origins(experiments)
    sets = comparison.sets
    return pages.render(
        "comparison.html",
        comparison.first.results,
        comparison=comparison,
        names=[each.name for each in experiments],
        experiments=_experiments(experiments),
        differs=[_differs(comparison, n, settings, origins) for n in range(1, len(experiments))],
        settings=_settings(experiments, settings, "settings"),
        origins=_settings(experiments, [each for each in origins if each.differs], "origins"),
        equal=compare_settings.equal(origins),
        obstacles=_dev_obstacles(comparison),
        forests={name: differences(comparison, name) for name in sets},
        scores={name: scores(comparison, name) for name in sets},
        measures={name: other_measures(comparison, name) for name in sets},
        costs=_costs(comparison),
        named=lambda lineage: named(comparison, lineage),
        figure=pages.inline(svg),
        inline=pages.inline,
    )


def named(comparison: Comparison, lineage: str) -> str:
    """Name a lineage as the first experiment does that has it."""
    holder = next(e for e in comparison.experiments if lineage in e.results.lineages)
    return table.named(holder.results, lineage)


def _differs(
    comparison: Comparison, place: int, settings: Sequence[Setting], origins: Sequence[Setting]
) -> str:
    """Describe how an experiment differs from the first, in settings and in code, data, weights and versions."""
    apart = [each for each in settings if each.apart(place)]
    pair = f"{comparison.experiments[place].name} differs from {comparison.first.name}"
    said = f"{pair} in no setting"
    if apart:
        count = f"{len(apart)} setting" + ("s" if len(apart) > 1 else "")
        changes = "; ".join(_change(each, place) for each in apart)
        said = f"{pair} in {count}" + (f": {changes}" if len(apart) <= FEW else ", listed below")
    others: dict[str, list[str]] = {}
    for each in origins:
        if each.apart(place):
            others.setdefault(each.kind, []).append(each.what)
    more = "; ".join(f"{kind} ({', '.join(names)})" for kind, names in others.items())
    return f"{said}. Besides the settings, these are not the same: {more}." if more else f"{said}."


def _change(setting: Setting, place: int) -> str:
    before, after = setting.values[0], setting.values[place]
    if after is None:
        return f"it is without {setting.what}"
    if before is None:
        return f"it has {setting.what}" + (f" = {_short(after)}" if after != TRAINED else "")
    return f"{setting.what} is {_short(after)} instead of {_short(before)}"


def _short(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:57]}…"


def _dev_obstacles(comparison: Comparison) -> list[str]:
    """Reasons why the dev curves of the experiments may not be comparable in level."""
    first, *rest = comparison.experiments
    found = []
    for each in rest:
        if each.data["dev"]["sha256"] != first.data["dev"]["sha256"]:
            found.append(f"{each.name} has other dev data than {first.name}")
        if each.results.spec["dev_decoding"] != first.results.spec["dev_decoding"]:
            found.append(f"{each.name} decodes dev in another way than {first.name}")
    return found


def _experiments(experiments: Sequence[Compared]) -> Table:
    """Table of the experiments: title, trained models and seeds."""
    columns = [Column("Experiment", "name"), Column("Title", ""), Column("Trained models")]
    columns += [Column("Training seeds"), Column("Decoding seeds")]
    rows = []
    for each in experiments:
        spec = each.results.spec
        seeds = (", ".join(map(str, spec[key])) for key in ("seeds", "decoding_seeds"))
        about = (each.name, visible(each.title), len(each.results.nodes), *seeds)
        rows.append(Row([Cell(text) for text in about]))
    return Table(columns, [Group("", rows)])


def _settings(experiments: Sequence[Compared], found: Iterable[Setting], id: str) -> Table:
    """Table of settings or origins, a column an experiment."""
    rows = []
    for each in found:
        what = each.what if each.kind == compare_settings.SETTING else f"{each.kind}: {each.what}"
        values = ("–" if value is None else visible(value) for value in each.values)
        rows.append(Row([Cell(visible(what)), *map(Cell, values)]))
    return Table(
        [Column("", "name"), *_heads(experiments, "")], [Group("", rows)], id, kind="differs"
    )


def _heads(experiments: Iterable[Compared], kind: str = "num") -> list[Column]:
    return [Column(each.name, kind) for each in experiments]


def differences(comparison: Comparison, name: str) -> forest.Forest | None:
    """Draw the differences from the first experiment on a set; None if nothing was tested."""
    blocks = []
    for place, each in enumerate(comparison.experiments[1:], 1):
        look = looks(each.results)
        found = (
            difference(lineage, outcome)
            for lineage, outcome in comparison.against(name, place).items()
        )
        lines = [
            forest.Line(
                labels.full_text(n.lineage),
                n,
                [],
                look[n.lineage],
                forest.tests_text(n.verdict, n.p),
            )
            for n in found
            if n is not None
        ]
        if lines:
            blocks.append(forest.Block(f"{each.name} − {comparison.first.name}", lines))
    return forest.both(blocks, "difference in ROUGE-L", signed=True) if blocks else None


def difference(lineage: str, outcome: Outcome) -> Number | None:
    """The difference of a model from that of the first experiment; None if it was not tested."""
    found = outcome.difference
    if found is None:
        return None
    return Number(
        experiment="",
        kind=DIFFERENCE,
        lineage=lineage,
        measure="rougeL",
        value=found.mean,
        low=found.interval.low if found.interval else None,
        high=found.interval.high if found.interval else None,
        p=found.p,
        significant=found.verdict,
    )


def scores(comparison: Comparison, name: str) -> Table:
    """ROUGE-L of the shared models on a set, and their differences from the first experiment."""
    first, *rest = comparison.experiments
    columns = [Column("Model", "name"), *_heads(comparison.experiments)]
    columns += [Column(f"{each.name} − {first.name}") for each in rest]
    rows = []
    for lineage in comparison.on(name):
        cells = [Cell(named(comparison, lineage))]
        for each in comparison.experiments:
            wanted = {"kind": SCORE, "set": name, "lineage": lineage, "measure": "rougeL"}
            found = numbers.one(numbers.of(each.results), **wanted)
            cells.append(numbered(found) if found else Cell("–", ""))
        for place in range(1, len(comparison.experiments)):
            cells.append(_outcome(comparison.outcomes.get(Place(name, lineage, place)), lineage))
        rows.append(Row(cells, lineage=lineage))
    return Table(columns, [Group("", rows)], f"scores-{name}")


def _outcome(outcome: Outcome | None, lineage: str) -> Cell:
    if outcome is None:
        return Cell("", "")
    if outcome.difference:
        return numbered(difference(lineage, outcome))
    return Cell("same model" if outcome.same else "not tested", "", tip=outcome.reason)


def other_measures(comparison: Comparison, name: str) -> Table:
    """All other measures of the shared models on a set, means over training seeds, a row a measure."""
    groups = []
    for lineage in comparison.on(name):
        rows = []
        for measure in _measured(comparison.experiments):
            values = [_mean(each, measure, lineage, name) for each in comparison.experiments]
            if any(value is not None for value in values):
                head = Cell(
                    measure.title, notes=[f"{measure.better} is better"] if measure.better else []
                )
                rows.append(Row([head, *(measured(value, measure.digits) for value in values)]))
        groups.append(Group(named(comparison, lineage), rows))
    return Table([Column("Measure", "name"), *_heads(comparison.experiments)], groups)


def _measured(experiments: Sequence[Compared]) -> list[Measure]:
    """List the measures that any of the experiments has, except those with a table of their own."""
    found = {m.name for each in experiments for m in measures.measured(each.results)}
    return [m for m in measures.MEASURES if m.name in found and m.name != "rougeL"]


def _mean(each: Compared, measure: Measure, lineage: str, name: str) -> float | None:
    if not each.has(lineage, name):
        return None
    return measures.mean(each.results, measure, lineage, name)


def spent(experiment: Compared) -> dict[str, dict[str, float]]:
    """Sum the costs of each lineage over training seeds, by the names of `COSTS`."""
    found: dict[str, dict[str, float]] = {
        lineage: dict.fromkeys(COSTS, 0.0) for lineage in experiment.results.lineages
    }
    for run in costs.runs(experiment.results):
        kind = {TRAINING: "training", **dict.fromkeys(EVALUATION, "evaluation")}.get(
            run.stage, CACHES
        )
        found[run.lineage][f"{kind}_minutes"] += run.minutes
        found[run.lineage][f"{kind}_tokens"] += run.tokens
    return found


def _shown(experiments: Sequence[Compared]) -> dict[str, str]:
    caches = any(each.results.written for each in experiments)
    return {key: title for key, title in COSTS.items() if caches or not key.startswith(CACHES)}


def _costs(comparison: Comparison) -> Table:
    """Costs of all models, without those of their teachers, a group for each kind of cost."""
    every = [spent(each) for each in comparison.experiments]
    lineages = list(dict.fromkeys(lineage for found in every for lineage in found))
    groups = []
    for key, title in _shown(comparison.experiments).items():
        digits = 1 if key.endswith("minutes") else 0

        def line(name: str, values: Iterable[float | None], digits: int = digits) -> Row:
            return Row([Cell(name), *(measured(value, digits) for value in values)])

        rows = [
            line(named(comparison, lineage), (found.get(lineage, {}).get(key) for found in every))
            for lineage in lineages
        ]
        total = (sum(cost[key] for cost in found.values()) for found in every)
        groups.append(Group(title, [*rows, line("all models", total)]))
    return Table([Column("Model", "name"), *_heads(comparison.experiments)], groups, "costs")


def to_csv(comparison: Comparison) -> str:
    """Write the comparison in long form: one line per set, lineage, measure and experiment.

    Costs have no set and are sums over training seeds. Differences are from the first experiment; `not_tested` gives
    the reason where there is none.
    """
    lines = []
    rouge = [m for m in measures.MEASURES if m.name == "rougeL"]
    for name in comparison.sets:
        for lineage in comparison.on(name):
            for measure in rouge + _measured(comparison.experiments):
                for place, each in enumerate(comparison.experiments):
                    if each.has(lineage, name):
                        lines.append(_line(comparison, Place(name, lineage, place), measure))
    every = [(each, spent(each)) for each in comparison.experiments]
    for lineage in comparison.shared:
        lines += [
            _about("", lineage, key, each) | {"value": found[lineage][key]} | _blank()
            for each, found in every
            if lineage in found
            for key in _shown(comparison.experiments)
        ]
    return table.write_csv(lines)


def _line(comparison: Comparison, place: Place, measure: Measure) -> dict[str, Any]:
    each = comparison.experiments[place.experiment]
    line = _about(place.set, place.lineage, measure.name, each)
    if measure.name not in MEASURES:
        value = measures.mean(each.results, measure, place.lineage, place.set)
        return line | {"value": value} | _blank()
    line |= table.columns("value", comparison.scores[place, measure.name])
    outcome = comparison.outcomes.get(place) if measure.name == "rougeL" else None
    return line | _tested(outcome)


def _about(name: str, lineage: str, measure: str, each: Compared) -> dict[str, Any]:
    return {
        "set": name,
        "lineage": lineage,
        "chain": labels.chain_text(lineage),
        "methods": labels.methods_text(lineage),
        "measure": measure,
        "experiment": each.name,
        "training_seeds": " ".join(map(str, each.results.seeds(lineage))),
        "decoding_seeds": " ".join(map(str, each.results.spec["decoding_seeds"])),
    }


def _blank() -> dict[str, Any]:
    """Empty values for the columns of a number without uncertainty."""
    return {k: None for k in table.columns("value", None) if k != "value"} | _tested(None)


def _tested(outcome: Outcome | None) -> dict[str, Any]:
    found = outcome.difference if outcome else None
    return table.columns("difference", found) | {
        "difference_n_training_seeds": found and found.trainings,
        "p": found and found.p,
        "prompts_p": found and found.p_prompts,
        "verdict": found and found.verdict,
        "verdict_as_trained": found and found.of_models,
        "not_tested": outcome and ("the same model" if outcome.same else outcome.reason),
    }
