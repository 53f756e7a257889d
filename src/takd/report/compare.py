"""Compare several experiments: a page, a table and a figure from their results.

Outputs, each optional: the names of `takd.experiment.comparison.PARTS`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from takd.analysis import compare_settings, costs, measures
from takd.analysis.across_experiments import Comparison, Outcome, Place, compare
from takd.analysis.compare_results import Compared, read_all
from takd.analysis.compare_settings import TRAINED, Line
from takd.analysis.costs import Cost
from takd.analysis.measures import Measure
from takd.analysis.results import MEASURES
from takd.analysis.statistics import number
from takd.experiment import labels
from takd.report import pages, table
from takd.report.figures.experiments import Curves, learning
from takd.runtime.errors import InputError
from takd.runtime.files import write_text
from takd.runtime.records import REPORT
from takd.runtime.stage import Stage

FEW = 3
"""Differing settings that a sentence names; more are counted."""
WRITING = "writing"
MINUTES = {
    "training_minutes": "Training minutes",
    f"{WRITING}_minutes": "Minutes of writing ahead",
    "evaluation_minutes": "Evaluation minutes",
}
"""Of `costs.Cost`; those of writing ahead only where a teacher does it."""


def run(stage: Stage) -> None:
    """Write the requested outputs.

    Inputs: `results`, the folder of each experiment's results in the order of the settings. Raises InputError for a
    missing file or an unknown output.
    """
    experiments = read_all(stage.spec, stage.many("results"))
    comparison = compare(experiments)
    curves = [Curves(each.name, each.results) for each in experiments]
    figure = learning(curves, comparison.shared)
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
    """Render the page that shows the differences in settings and in results side by side."""
    experiments = comparison.experiments

    def places(name: str, lineage: str) -> list[Place]:
        return [Place(name, lineage, number) for number in range(len(experiments))]

    def having(name: str, lineage: str) -> list[Place]:
        return [p for p in places(name, lineage) if experiments[p.experiment].has(lineage, name)]

    origins = compare_settings.origins(experiments)
    settings = compare_settings.settings(experiments)
    ahead = _ahead(experiments)
    spent = [{cost.lineage: cost for cost in costs.by_lineage(e.results)} for e in experiments]
    return pages.comparison_page(
        comparison.first.results,
        comparison=comparison,
        names=[each.name for each in experiments],
        findings=findings(comparison, settings, origins),
        settings=settings,
        origins=[line for line in origins if line.differs],
        equal=compare_settings.equal(origins),
        obstacles=_dev_obstacles(comparison),
        several=any(score.trainings > 1 for score in comparison.scores.values()),
        measured=_measured(experiments),
        side=lambda measure, *cell: [_mean(experiments, measure, p) for p in having(*cell)],
        places=places,
        having=having,
        text=lambda lineage: table.named(_holder(experiments, lineage).results, lineage),
        spent=spent,
        trained=list(dict.fromkeys(lineage for costs in spent for lineage in costs)),
        totals=[_total(list(found.values())) for found in spent],
        minutes={
            key: title for key, title in MINUTES.items() if ahead or not key.startswith(WRITING)
        },
        figure=pages.inline(svg),
    )


def findings(
    comparison: Comparison, settings: Sequence[Line], origins: Sequence[Line]
) -> list[tuple[str, list[str]]]:
    """Summarise how each other experiment differs from the first, and its results on the first evaluation set."""
    found = []
    for place, other in enumerate(comparison.experiments[1:], 1):
        told = [f"{other.name} and {comparison.first.name} share no model on an evaluation set."]
        if comparison.sets and comparison.against(comparison.sets[0], place):
            told = _told(comparison, place, comparison.sets[0])
        found.append((_differs(comparison, place, settings, origins), told))
    return found


def _differs(
    comparison: Comparison, place: int, settings: Sequence[Line], origins: Sequence[Line]
) -> str:
    """Describe how an experiment differs from the first, in settings and in code, data, weights and versions."""
    apart = [line for line in settings if line.apart(place)]
    pair = f"{comparison.experiments[place].name} differs from {comparison.first.name}"
    if not apart:
        said = f"{pair} in no setting"
    else:
        count = f"{len(apart)} setting" + ("s" if len(apart) > 1 else "")
        named = "; ".join(_change(line, place) for line in apart)
        said = f"{pair} in {count}" + (f": {named}" if len(apart) <= FEW else ", listed below")
    others: dict[str, list[str]] = {}
    for line in origins:
        if line.apart(place):
            others.setdefault(line.kind, []).append(line.what)
    more = "; ".join(f"{kind} ({', '.join(names)})" for kind, names in others.items())
    return f"{said}. Besides the settings, these are not the same: {more}." if more else f"{said}."


def _change(line: Line, place: int) -> str:
    before, after = line.values[0], line.values[place]
    if after is None:
        return f"it is without {line.what}"
    if before is None:
        return f"it has {line.what}" + (f" = {_short(after)}" if after != TRAINED else "")
    return f"{line.what} is {_short(after)} instead of {_short(before)}"


def _short(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:57]}…"


def _told(comparison: Comparison, place: int, name: str) -> list[str]:
    """Describe which models of an experiment differ significantly from those of the first on a set."""
    outcomes = comparison.against(name, place)
    results = comparison.experiments[place].results
    tested = {lineage: o for lineage, o in outcomes.items() if o.difference is not None}
    told = {lineage: o for lineage, o in tested.items() if o.told}
    parts = [
        (len(told), "told apart"),
        (len(tested) - len(told), "tested without a difference that can be told"),
        (sum(o.same for o in outcomes.values()), "the same in both, weights and answers"),
        (sum(bool(o.reason) for o in outcomes.values()), "not tested (see the table)"),
    ]
    counts = ", ".join(f"{count} {words}" for count, words in parts if count)
    pair = f"{comparison.experiments[place].name} and {comparison.first.name}"
    sentences = [f"On {name}, of the {_models(len(outcomes))} that {pair} share: {counts}."]
    for lineage, outcome in told.items():
        sentences.append(_sentence(comparison, place, name, table.named(results, lineage), outcome))
    return sentences


def _models(count: int) -> str:
    return f"{count} model" + ("s" if count != 1 else "")


def _sentence(comparison: Comparison, place: int, name: str, title: str, outcome: Outcome) -> str:
    assert outcome.difference is not None
    gap = number(outcome.difference.mean, signed=True)
    other = comparison.experiments[place].name
    return f"{title}: {gap} in {other}, {outcome.difference.words}."


def _dev_obstacles(comparison: Comparison) -> list[str]:
    """Reasons why the dev curves of the experiments may not be comparable in level."""
    first, *rest = comparison.experiments
    found = []
    for each in rest:
        if each.data["dev"]["sha256"] != first.data["dev"]["sha256"]:
            found.append(f"{each.name} has other data for dev than {first.name}")
        if each.results.spec["dev_decoding"] != first.results.spec["dev_decoding"]:
            found.append(f"{each.name} decodes dev in another way than {first.name}")
    return found


def _holder(experiments: Sequence[Compared], lineage: str) -> Compared:
    """Find the first experiment that has a lineage."""
    return next(each for each in experiments if lineage in each.results.lineages)


def _measured(experiments: Sequence[Compared]) -> list[Measure]:
    """List the measures that any of the experiments has, except those with a table of their own."""
    found = {m.name for each in experiments for m in measures.measured(each.results)}
    return [m for m in measures.MEASURES if m.name in found and m.name != "rougeL"]


def _mean(experiments: Sequence[Compared], measure: Measure, place: Place) -> float | None:
    each = experiments[place.experiment]
    if not each.has(place.lineage, place.set):
        return None
    return measures.mean(each.results, measure, place.lineage, place.set)


def _ahead(experiments: Sequence[Compared]) -> bool:
    """Return whether any experiment has precomputed teacher generations or outputs."""
    return any(each.results.written for each in experiments)


def _total(found: Sequence[Cost]) -> dict[str, float]:
    return {
        "training_minutes": sum(cost.training_minutes for cost in found),
        "writing_minutes": sum(cost.writing_minutes for cost in found),
        "evaluation_minutes": sum(cost.evaluation_minutes for cost in found),
        "training_tokens": sum(cost.tokens for cost in found),
        "writing_tokens": sum(cost.writing_tokens for cost in found),
        "evaluation_tokens": sum(cost.evaluation_tokens for cost in found),
    }


def to_csv(comparison: Comparison) -> str:
    """Write the comparison in long form: one line per set, lineage, measure and experiment.

    Costs have no set and are sums over training seeds. Differences are from the first experiment; `not_tested` gives
    the reason where there is none.
    """
    lines = []
    measured = [m for m in measures.MEASURES if m.name == "rougeL"]
    measured += _measured(comparison.experiments)
    for name in comparison.sets:
        for lineage in comparison.on(name):
            for measure in measured:
                for place, each in enumerate(comparison.experiments):
                    if each.has(lineage, name):
                        lines.append(_line(comparison, Place(name, lineage, place), measure))
    ahead = _ahead(comparison.experiments)
    for lineage in comparison.shared:
        for each in comparison.experiments:
            for cost in costs.by_lineage(each.results):
                if cost.lineage == lineage:
                    lines += [
                        _columns("", lineage, measure, each) | {"value": float(value)} | _blank()
                        for measure, value in _total([cost]).items()
                        if ahead or not measure.startswith(WRITING)
                    ]
    return table.write_csv(lines)


def _line(comparison: Comparison, place: Place, measure: Measure) -> dict[str, Any]:
    each = comparison.experiments[place.experiment]
    line = _columns(place.set, place.lineage, measure.name, each)
    if measure.name not in MEASURES:
        value = measures.mean(each.results, measure, place.lineage, place.set)
        return line | {"value": value} | _blank()
    line |= table.columns("value", comparison.scores[place, measure.name])
    outcome = comparison.outcomes.get(place) if measure.name == "rougeL" else None
    return line | _tested(outcome)


def _columns(name: str, lineage: str, measure: str, each: Compared) -> dict[str, Any]:
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
