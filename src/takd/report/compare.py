"""Compare several experiments: a page, a table and a figure from their results.

Outputs, each optional: the names of `takd.experiment.comparison.PARTS`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from takd.analysis import compare_settings, exports, measures, table
from takd.analysis.across_experiments import (
    SAME,
    Compared,
    Comparison,
    Outcome,
    compare,
    read_all,
)
from takd.analysis.compare_settings import Setting
from takd.analysis.costs import EVALUATION, TRAINING
from takd.analysis.measures import BY_NAME
from takd.analysis.table import COST, EACH, Number
from takd.experiment.labels import chain_text, full_text, methods_text
from takd.pages.environment import visible
from takd.pages.tables import Cell, Column, Group, Table, TableRow, simple
from takd.report import pages
from takd.report.figures import forest
from takd.report.figures.curves import experiments as curves
from takd.report.figures.style import Drawing, looks
from takd.report.tables import measured, numbered, score
from takd.runtime.errors import InputError
from takd.runtime.files import write_text
from takd.runtime.records import REPORT
from takd.runtime.stage import Stage

FEW = 3
"""Differing settings that the first table names; more are counted."""
STAGES = {
    "training": ("Training", [TRAINING]),
    "writing": ("Teacher cache", ["teacher, answers", "teacher, outputs"]),
    "evaluation": ("Evaluation", list(EVALUATION)),
}
"""Titles and stages by their names in the CSV file."""


def run(stage: Stage) -> None:
    """Write the requested outputs.

    Inputs: `results`, the folder of each experiment's results in the order of the settings. Raises InputError for a
    missing file or an unknown output.
    """
    experiments = read_all(stage.spec, stage.many("results"))
    comparison = compare(experiments)
    figure = curves({each.name: each.results for each in experiments}, comparison.shared)
    makers: dict[str, Callable[[], str]] = {
        "page": lambda: page(comparison, figure),
        "table": lambda: to_csv(comparison),
        "curves": lambda: figure.svg,
        "curves_csv": lambda: figure.csv,
    }
    for name, path in stage.outputs.items():
        if name not in makers:
            there = ", ".join(makers)
            raise InputError(f"--output {name}: no such part of a comparison; there are {there}")
        write_text(path, makers[name]())
    stage.write_record(next(iter(stage.outputs.values())).parent / REPORT)
    names = ", ".join(each.name for each in experiments[1:])
    stage.say(f"comparison: {experiments[0].name} with {names}: {len(comparison.shared)} models")


def page(comparison: Comparison, figure: Drawing) -> str:
    """Render the page: differences in results, in settings and in costs, side by side."""
    experiments, sets = comparison.experiments, comparison.sets
    settings = compare_settings.settings(experiments)
    origins = compare_settings.origins(experiments)
    return pages.render(
        "",
        comparison.first.results,
        "comparison.html",
        comparison=comparison,
        names=[each.name for each in experiments],
        experiments=_experiments(experiments, settings, origins),
        settings=_settings(experiments, settings, "settings"),
        origins=_settings(experiments, [each for each in origins if each.differs], "origins"),
        equal=compare_settings.by_kind(each for each in origins if not each.differs),
        obstacles=list(_dev_obstacles(comparison)),
        forests={name: differences(comparison, name) for name in sets},
        scores={name: scores(comparison, name) for name in sets},
        measures={name: other_measures(comparison, name) for name in sets},
        costs=_costs(experiments),
        curves=figure,
    )


def _experiments(
    experiments: Sequence[Compared], settings: Sequence[Setting], origins: Sequence[Setting]
) -> Table:
    """Table of the experiments: what they are, and how they differ from the first."""
    rows: list[list[Any]] = []
    for place, each in enumerate(experiments):
        apart = [setting.what for setting in settings if setting.apart(place)]
        named = ", ".join(apart) if len(apart) <= FEW else f"{len(apart)}, listed below"
        kinds = compare_settings.by_kind(one for one in origins if one.apart(place))
        others = "; ".join(f"{kind} ({', '.join(names)})" for kind, names in kinds.items())
        seeds = (each.results.spec[key] for key in ("seeds", "decoding_seeds"))
        rows.append(
            [
                Cell(each.name, notes=[visible(each.title)]),
                len(each.results.trained_here),
                *(", ".join(map(str, of)) for of in seeds),
                *((text or "none") if place else "" for text in (named, others)),
            ]
        )
    heads = ["Experiment", "#Trained models", "#Training seeds", "#Decoding seeds"]
    return simple([*heads, "Settings that differ", "Besides the settings"], rows, "findings")


def _dev_obstacles(comparison: Comparison) -> Iterator[str]:
    """Yield reasons why the dev curves of the experiments may not be comparable in level."""
    first = comparison.first
    for each in comparison.experiments[1:]:
        digests = [data["dev"]["sha256"] for data in (each.data, first.data) if "dev" in data]
        if len(set(digests)) > 1:
            yield f"{each.name} has other dev data than {first.name}"
        if each.results.spec["dev_decoding"] != first.results.spec["dev_decoding"]:
            yield f"{each.name} decodes dev in another way than {first.name}"


def _settings(experiments: Sequence[Compared], found: Iterable[Setting], id: str) -> Table:
    """Table of settings or origins, a column an experiment."""
    rows = []
    for each in found:
        what = each.what if each.kind == compare_settings.SETTING else f"{each.kind}: {each.what}"
        rows.append([what, *("–" if value is None else value for value in each.values)])
    return simple(["", *(Column(each.name, "") for each in experiments)], rows, id, "differs")


def differences(comparison: Comparison, name: str) -> Drawing | None:
    """Draw the differences from the first experiment on a set; None if nothing was tested."""
    blocks = []
    for place, each in enumerate(comparison.experiments[1:], 1):
        look = looks(each.results)
        found = comparison.against(name, place).items()
        lines = [
            forest.ForestLine(full_text(lineage), outcome, look[lineage])
            for lineage, outcome in found
            if isinstance(outcome, Number)
        ]
        if lines:
            blocks.append(forest.Block(f"{each.name} − {comparison.first.name}", lines))
    return forest.both(blocks, "difference in ROUGE-L", signed=True) if blocks else None


def scores(comparison: Comparison, name: str) -> Table:
    """ROUGE-L of the shared models on a set, and their differences from the first experiment."""
    first, *rest = comparison.experiments
    names = [each.name for each in comparison.experiments]
    names += [f"{each.name} − {first.name}" for each in rest]
    rows = []
    for lineage in comparison.on(name):
        cells = [Cell(full_text(lineage))]
        for each in comparison.experiments:
            found = score(each.results, name, lineage, "rougeL")
            cells.append(numbered(each.results, found) if found else Cell("–", ""))
        for place, each in enumerate(rest, 1):
            outcome = comparison.outcomes.get((name, lineage, place))
            if not isinstance(outcome, str):
                cells.append(numbered(each.results, outcome))
            elif outcome == SAME:
                cells.append(Cell("same model", ""))
            else:
                cells.append(Cell("not tested", "", tip=outcome))
        rows.append(TableRow(cells, lineage=lineage))
    return simple(["Model", *map(Column, names)], rows, f"scores-{name}")


def _measured(experiments: Sequence[Compared]) -> list[str]:
    """List the measures that any of the experiments has, ROUGE-L first."""
    found = {m.name for each in experiments for m in measures.measured(each.results)}
    return [name for name in BY_NAME if name in found]


def other_measures(comparison: Comparison, name: str) -> Table:
    """All measures of the shared models on a set, means over training seeds, a row a measure."""
    groups = []
    for lineage in comparison.on(name):
        rows = []
        for measure in map(BY_NAME.get, _measured(comparison.experiments)):
            assert measure is not None
            found = [score(e.results, name, lineage, measure.name) for e in comparison.experiments]
            if any(found):
                note = [f"{measure.better} is better"] if measure.better else []
                cells = (measured(each and each.value, measure.digits) for each in found)
                rows.append(TableRow([Cell(measure.title, notes=note), *cells]))
        groups.append(Group(full_text(lineage), rows))
    return _grouped("Measure", comparison.experiments, groups)


def _grouped(
    first: str, experiments: Sequence[Compared], groups: list[Group], id: str = ""
) -> Table:
    """Table in groups, a column an experiment."""
    return Table([Column(first, "name"), *(Column(each.name) for each in experiments)], groups, id)


def spent(experiments: Sequence[Compared]) -> dict[str, list[dict[str, float]]]:
    """Sum the costs over training seeds: by name, for each experiment by lineage.

    Names are `<stage>_minutes` and `<stage>_tokens`; those of teacher caches only where there are any.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for measure in ("minutes", "tokens"):
        for name, (_, stages) in STAGES.items():
            if name == "writing" and not any(each.results.teacher_cache for each in experiments):
                continue
            wanted = {"kind": COST, "measure": measure, "stage": stages, "seed": EACH}
            of_experiments = found[f"{name}_{measure}"] = []
            for each in experiments:
                chosen = table.select(table.of(each.results), **wanted)
                sums = chosen.groupby("lineage")["value"].sum()
                of_experiments.append({x: float(sums.get(x, 0.0)) for x in each.results.lineages})
    return found


def _costs(experiments: Sequence[Compared]) -> Table:
    """Costs of all models, without those of their teachers, a group for each kind of cost."""
    lineages = dict.fromkeys(lineage for each in experiments for lineage in each.results.lineages)
    groups = []
    for name, costs in spent(experiments).items():
        stage, what = name.split("_")
        rows = [(full_text(lineage), [of.get(lineage) for of in costs]) for lineage in lineages]
        rows.append(("all models", [sum(of.values()) for of in costs]))
        digits = 1 if what == "minutes" else 0
        cells = ([Cell(text), *(measured(value, digits) for value in of)] for text, of in rows)
        groups.append(Group(f"{STAGES[stage][0]} {what}", list(map(TableRow, cells))))
    return _grouped("Model", experiments, groups, "costs")


def to_csv(comparison: Comparison) -> str:
    """Write the comparison in long form: one line per set, lineage, measure and experiment.

    Costs have no set and are sums over training seeds. Differences are from the first experiment; `not_tested` gives
    the reason where there is none.
    """
    lines: list[dict[str, Any]] = []
    experiments = comparison.experiments
    for name in comparison.sets:
        for lineage in comparison.on(name):
            for measure in _measured(experiments):
                for number, each in enumerate(experiments):
                    if each.has(lineage, name):
                        found = score(each.results, name, lineage, measure)
                        outcome = comparison.outcomes.get((name, lineage, number))
                        about = _about(name, lineage, measure, each)
                        about |= exports.columns("value", found)
                        lines.append(about | _tested(outcome if measure == "rougeL" else None))
    costs = spent(experiments)
    for lineage in comparison.shared:
        for place, each in enumerate(experiments):
            for measure, of in costs.items():
                if lineage in of[place]:
                    lines.append(_about("", lineage, measure, each) | {"value": of[place][lineage]})
    return exports.to_csv(lines)


def _about(name: str, lineage: str, measure: str, each: Compared) -> dict[str, Any]:
    about = {"set": name, "lineage": lineage, "chain": chain_text(lineage)}
    about |= {"methods": methods_text(lineage), "measure": measure, "experiment": each.name}
    seeds = {"training_seeds": each.results.seeds(lineage)}
    seeds["decoding_seeds"] = each.results.spec["decoding_seeds"]
    return about | {key: " ".join(map(str, values)) for key, values in seeds.items()}


def _tested(outcome: Outcome | None) -> dict[str, Any]:
    found = outcome if isinstance(outcome, Number) else None
    return (
        exports.columns("difference", found)
        | {"difference_n_training_seeds": found and found.n_training_seeds}
        | exports.tests(found)
        | {"not_tested": outcome if isinstance(outcome, str) else ""}
    )
