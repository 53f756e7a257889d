"""Overview of an experiment: about ten sentences, all generated from the results.

They cover what was trained, what was found and how certain it is (`verdicts`), the cost, and the limits
(`departures`). A statement without a test behind it is marked as a mean.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from takd.analysis import measures
from takd.analysis.costs import device_text
from takd.analysis.deviations import limits
from takd.analysis.results import Results, Row
from takd.analysis.text import counted, listed, span, titled
from takd.experiment import captions
from takd.experiment.lineage import split, supervised
from takd.report.figures.style import size_text
from takd.report.table import Group
from takd.report.verdicts import answers, best, elsewhere, of_role, published

DEVICES = 3
"""That a sentence names."""


class Point(NamedTuple):
    """Sentences under one heading."""

    title: str
    sentences: list[str]


def points(results: Results, groups: list[Group], data_report: dict[str, Any]) -> list[Point]:
    """Build the overview; points without data are left out."""
    first, *others = results.spec["sets"]
    found = [
        Point("What was trained", trained(results, groups, data_report)),
        Point(f"What was found, on {first}", [best(results, groups, first), *answers(results)]),
        Point("On the other sets", elsewhere(results, groups) if others else []),
        Point("Against published numbers", published(groups)),
        Point("What the models say of their teachers", against_teachers(results, groups)),
        Point("What it cost", [cost(results)]),
        Point("What it cannot say", limits(results, data_report)),
    ]
    return [point for point in found if point.sentences]


def trained(results: Results, groups: list[Group], data_report: dict[str, Any]) -> list[str]:
    """Describe experiment, teacher, chains, methods, seeds and data."""
    spec = results.spec
    chains = [split(chain["lineage"]) for chain in spec["chains"]]
    sizes = {split(m.node.lineage)[-1].model: m.parameters for m in results.models.values()}
    heads = list(dict.fromkeys(chain[0].model for chain in chains))
    ends = sorted({chain[-1].model for chain in chains}, key=lambda model: (-sizes[model], model))
    methods = list(dict.fromkeys(hop.method for chain in chains for hop in chain[1:]))
    assistants = [len(chain) - 2 for chain in chains if len(chain) > 2]
    ways = []
    if straight := len(chains) - len(assistants):
        ways.append(f"{straight} straight from teacher to student")
    if assistants:
        few, many = min(assistants), max(assistants)
        between = "or" if many == few + 1 else "to"
        how_many = f"{few}" if few == many else f"{few} {between} {many}"
        ways.append(f"{len(assistants)} through {how_many} assistant{'s' if many > 1 else ''}")
    teachers = "teacher" if len(heads) == 1 else "teachers"
    learned = f"learned from labels, and what {'it' if len(heads) == 1 else 'they'} learned"
    head_seeds = {seed for head in heads for seed in results.seeds(supervised(head))}
    seeds = f"seed{'s' if len(spec['seeds']) > 1 else ''} {listed(spec['seeds'])}"
    if len(spec["seeds"]) > 1:
        whose = "the teacher" if len(heads) == 1 else "the teachers"
        seeds += f" ({whose} with {listed(sorted(head_seeds))} alone)"
    train = data_report["splits"]["train"]
    rows = f"{train['counts']['kept']:,}".replace(",", "\u202f")
    prompts = [
        f"{name} ({results.evaluations[results.nodes[0], name].scores['n']})"
        for name in spec["sets"]
    ]
    return [
        f"Experiment {spec['experiment']}: the {titled(teachers, _sized(heads, sizes))} {learned} was"
        f" passed down {counted(len(chains), 'chain')} ({', '.join(ways)}) to"
        f" {listed(_sized(ends, sizes))}, by {listed(methods)}.",
        f"With each student on labels alone as its baseline, that is {counted(len(results.lineages), 'model')}"
        f" and, with training {seeds}, {counted(len(results.nodes), 'training')}, on {rows} rows of"
        f" {train['source']}.",
        f"Each answered the prompts of {listed(prompts)} with decoding seed"
        f"{'s' if len(spec['decoding_seeds']) > 1 else ''} {listed(spec['decoding_seeds'])}"
        f" ({captions.decoding(spec['decoding'])}).",
    ]


def against_teachers(results: Results, groups: list[Group]) -> list[str]:
    """Describe reverse KL, exposure bias and calibration of the students, next to models trained on labels alone."""
    name = results.spec["sets"][0]
    by_name = {measure.name: measure for measure in measures.MEASURES}
    students = [row.lineage for row in of_role(groups, "student")]
    labels = list(dict.fromkeys(supervised(split(lineage)[-1].model) for lineage in students))
    labels = [lineage for lineage in labels if lineage in results.lineages]
    parts = []
    for key, what, unit in (
        ("first_reverse_kl", "reverse KL to the first teacher", " nats a token"),
        ("first_exposure_bias", "exposure bias (ExAccErr)", " %"),
        ("calibration_error", "calibration error on the references", ""),
    ):
        measure = by_name[key]
        values = [measures.mean(results, measure, lineage, name) for lineage in students]
        if ours := span(values, measure.digits):
            baseline = [measures.mean(results, measure, lineage, name) for lineage in labels]
            theirs = span(baseline, measure.digits)
            beside = f" (labels alone: {theirs}{unit})" if theirs else ""
            parts.append(f"{what} {ours}{unit}{beside}")
    if not parts:
        return []
    who = "students" if len(students) > 1 else "student"
    return [f"The {who} on {name}: {', '.join(parts)}. Lower is better; these means carry no test."]


def cost(results: Results) -> str:
    """Describe the device time of training, of precomputed teacher outputs and of evaluation; tokens, devices."""
    training: dict[str, Counter[str]] = {}
    tokens = 0
    for model in results.models.values():
        spent = training.setdefault(split(model.node.lineage)[-1].method, Counter())
        spent.update(_device_seconds(model.end))
        tokens += int(model.end.get("tokens", 0))
    evaluation: Counter[str] = Counter()
    for each in results.evaluations.values():
        for end in (each.end, each.likelihoods_end):
            evaluation.update(_device_seconds(end))
    total: Counter[str] = sum(training.values(), Counter())
    whole = sum(total.values()) or 1
    shares = ", ".join(
        f"{method} {100 * sum(spent.values()) / whole:.0f} %" for method, spent in training.items()
    )
    devices = sorted({device_text(model.end) for model in results.models.values()})
    more = f" and {len(devices) - DEVICES} more" if len(devices) > DEVICES else ""
    read = sum(each.tokens for each in results.evaluations.values())
    ahead = ""
    if results.teacher_cache:
        writing: Counter[str] = Counter()
        for end in (end for each in results.teacher_cache for end in each.ends):
            writing.update(_device_seconds(end))
        told = size_text(sum(each.tokens for each in results.teacher_cache))
        ahead = (
            f" what teachers wrote ahead for their students {_hours(writing)} and {told} tokens,"
        )
    return (
        f"Training took {_hours(total)}{f' ({shares})' if len(training) > 1 else ''} and {size_text(tokens)} tokens,"
        f"{ahead} evaluation {_hours(evaluation)} and {size_text(read)} tokens, without queues and preparation;"
        f" trained on {'; '.join(devices[:DEVICES])}{more}."
    )


def _device_seconds(end: Row) -> dict[str, float]:
    """Seconds times processes, by device; each process has one GPU, or a share of the CPU."""
    kind = "CPU process" if end.get("device", "cpu") == "cpu" else "GPU"
    return {kind: float(end.get("seconds", 0.0)) * int(end.get("processes", 1))}


def _hours(seconds: Counter[str]) -> str:
    """Format device time: `3.4 GPU hours`, `12.0 GPU minutes`; both kinds of device where there are both."""
    parts = []
    for kind, spent in sorted(seconds.items(), reverse=True):
        value, unit = (spent / 3600, "hours") if spent >= 3600 else (spent / 60, "minutes")
        parts.append(f"{value:,.1f} {kind} {unit}".replace(",", "\u202f"))
    return " and ".join(parts)


def _sized(models: Iterable[str], sizes: dict[str, int]) -> list[str]:
    return [f"{model} ({size_text(sizes[model])} parameters)" for model in models]
