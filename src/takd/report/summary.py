"""Summary: three sentences, the forest plot, one table, limits and downloads. Snakemake's report opens with it."""

from collections.abc import Iterable
from typing import Any

from takd.analysis import looks, table
from takd.analysis.comparisons import Pair
from takd.analysis.limits import limits
from takd.analysis.measures import BY_NAME, TESTED
from takd.analysis.questions import QUESTIONS
from takd.analysis.results import Results
from takd.analysis.shares import Share, shares
from takd.analysis.table import DIFFERENCE, EACH, SCORE, Number
from takd.analysis.text import counted, listed
from takd.experiment.labels import full_text, size_text
from takd.experiment.lineage import control_of, own, split, student_of
from takd.report import pages
from takd.report.figures import forest
from takd.report.figures.registry import drawn
from takd.report.score_tables import brief_table
from takd.report.tables import by_seed


def page(results: Results, data_report: dict[str, Any], downloads: dict[str, str]) -> str:
    """Render the page; `downloads` are files of the site with what they hold."""
    first = results.spec["sets"][0]
    plots = drawn(results)
    return pages.render(
        "index.html",
        results,
        sentences=[
            *filter(None, (trained(results), tested(results, first), best(results, first))),
            *(*needs_teacher(results, first), *looked(results)),
            *(*reversed_elsewhere(results), *worse_in_strata(results, first)),
        ],
        forest=plots.get(forest.DIFFERENCES),
        scores=plots[forest.SCORES],
        several=len(results.spec["seeds"]) > 1,
        table=brief_table(results),
        limits=limits(results, data_report),
        downloads=downloads,
    )


def trained(results: Results) -> str:
    """Say what was trained and on what it was evaluated."""
    spec = results.spec
    lineages = [chain["lineage"] for chain in spec["chains"]]
    chains = [split(lineage) for lineage in lineages if not control_of(lineage)]
    sizes = {student_of(node.lineage): model.parameters for node, model in results.models.items()}

    def named(models: Iterable[str]) -> str:
        return listed(f"{model} ({size_text(sizes[model])})" for model in dict.fromkeys(models))

    parts = []
    if longer := [chain for chain in chains if len(chain) > 1]:
        heads, ends = (named(own(chain[place].model) for chain in longer) for place in (0, -1))
        parts.append(f"{counted(len(longer), 'chain')} from {heads} to {ends}")
    if alone := [own(chain[0].model) for chain in chains if len(chain) == 1]:
        parts.append(f"{named(alone)} alone")
    if controls := len(lineages) - len(chains):
        parts.append(counted(controls, "control"))
    seeds = f"training seed{'s' if len(spec['seeds']) > 1 else ''} {listed(spec['seeds'])}"
    trainings = f"{counted(len(results.trained_here), 'training')} with {seeds}"
    prompts = listed(f"{name} ({n})" for name, n in pages.prompts(results).items())
    return (
        f"{listed(parts)}: {counted(len(results.lineages), 'model')},"
        f" {trainings if results.trained_here else 'no training'},"
        f" evaluated on the prompts of {prompts}."
    )


def tested(results: Results, name: str) -> str:
    """Count the significant differences of each question."""
    found, parts = table.of(results), []
    for question, (_, what) in QUESTIONS.items():
        wanted = {"kind": DIFFERENCE, "set": name, "question": question}
        counts = [
            f"{tally(rows, question)} in {title}"
            for measure, title in (("rougeL", "ROUGE-L"), ("exact_match", "exact match"))
            if (rows := table.rows(found, measure=measure, **wanted))
        ]
        if counts:
            parts.append(f"{what}, {listed(counts)}")
    if not parts:
        return "No two of the models can be compared."
    several = len(results.spec["seeds"]) > 1
    over = "across training seeds" if several else "for these checkpoints alone"
    return f"Significant differences on {name}, {over}: {'; '.join(parts)}."


def looked(results: Results) -> list[str]:
    """Say after how many looks no more training seeds were added, and which differences are not decided."""
    until, seeds = results.spec.get("until"), len(results.spec["seeds"])
    if until is None:
        return []
    first = until["at_least"]
    if not looks.counts(until, seeds):
        return [
            f"The first look at the differences is after {first} training seeds; intervals are as without looks."
        ]
    rows = table.rows(table.of(results), kind=DIFFERENCE)
    found = looks.decided((row._asdict() for row in rows), until)
    named: dict[str, list[str]] = {}
    for row in found:
        pair = forest.pair_text(Pair(row["question"], row["lineage"], row["other"]))
        named.setdefault(row["verdict"], []).append(
            f"{pair} ({QUESTIONS[row['question']].what}, {row['set']})"
        )
    bound = f"±{until['difference']:g}"
    texts = [
        f"Training seeds are added, up to {until['at_most']}, until each difference of"
        f" {BY_NAME[until['measure']].title} ({len(found)} in all) is significant or has its interval within {bound}:"
        f" {counted(seeds - first + 1, 'look')}, the last after {seeds} seeds."
        " Intervals and p values across training seeds hold over all looks."
    ]
    if looks.WITHIN in named:
        texts.append(f"Within {bound}: {'; '.join(named[looks.WITHIN])}.")
    open_ones = "; ".join(named.get("", []))
    texts.append(f"Undecided: {open_ones}." if open_ones else "None is undecided.")
    return [" ".join(texts)]


def tally(rows: list[Number], question: str) -> str:
    """Count: `2 of 4 (1 higher, 1 lower)`; which of two methods stands first means nothing, so no direction there."""
    ways = [row.significant for row in rows if row.significant]
    text = f"{len(ways)} of {len(rows)}"
    if question == "method" or not ways:
        return text
    counts = (f"{ways.count(way)} {way}" for way in ("higher", "lower") if way in ways)
    return f"{text} ({', '.join(counts)})"


def needs_teacher(results: Results, name: str) -> list[str]:
    """Say which share of the gain of each method needs the teacher, control by control."""
    by_control: dict[str, list[Share]] = {}
    for each in shares(results, name):
        by_control.setdefault(each.control, []).append(each)
    parts = []
    for control, found in by_control.items():
        defined = [x for x in found if x.value is not None and x.interval is not None]
        more = [x for x in defined if x.interval and x.interval.high < 0]
        said = [f"{x.method} {x.text()}" for x in defined if x not in more]
        said += [f"none for {counted(len(more), 'chain')}, as the control gains more"] * bool(more)
        if missing := len(found) - len(defined):
            said.append(f"not defined for {counted(missing, 'chain')}")
        parts.append(f"{control}: {listed(said)}")
    over = " (over 100 %: the control loses)" if "% (" in "".join(parts) else ""
    text = f"Share of the gain over SFT that needs the teacher, on {name}, by control{over}"
    return [f"{text}. {'; '.join(parts)}."] if parts else []


def reversed_elsewhere(results: Results) -> list[str]:
    """Name the significant differences of the first set that are significant the other way on another set."""
    first, *others = results.spec["sets"]
    found = table.of(results)
    turned = [
        f"{forest.pair_text(Pair(row.question, row.lineage, row.other))} on {there.set}"
        for row in table.rows(found, kind=DIFFERENCE, set=first, measure="rougeL")
        for there in table.rows(
            found, kind=DIFFERENCE, set=others, measure="rougeL", question=row.question,
            lineage=row.lineage, other=row.other,
        )
        if row.significant and there.significant and row.significant != there.significant
    ]  # fmt: skip
    return [f"Significant the other way elsewhere: {'; '.join(turned)}."] if turned else []


def worse_in_strata(results: Results, name: str) -> list[str]:
    """Name the strata in which a model is below its SFT baseline in every one of several training seeds."""
    found = []
    for measure in TESTED:
        wanted = {"kind": DIFFERENCE, "question": "sft", "set": name, "measure": measure}
        worse: dict[str, list[str]] = {}
        for row in table.rows(table.of(results), stratum=EACH, **wanted):
            seeds = by_seed(results, row).values()
            if len(seeds) > 1 and max(seeds) < 0:
                worse.setdefault(row.stratum, []).append(full_text(row.lineage))
        if worse:
            parts = (f"{stratum} ({', '.join(models)})" for stratum, models in worse.items())
            found.append(f"{BY_NAME[measure].title}: {'; '.join(parts)}")
    start = f"Strata of {name} below the SFT baseline in every training seed."
    return [f"{start} {'. '.join(found)}."] if found else []


def best(results: Results, name: str) -> str:
    """Name the top teacher, models as given, and of each student size the chain with the highest mean."""
    found = table.of(results)
    rows = {row.lineage: row for row in table.rows(found, kind=SCORE, measure="rougeL", set=name)}
    roles = {line.lineage: line.role for line in table.lines(results)}

    def of(chosen: str) -> list[Number]:
        return [rows[lineage] for lineage, role in roles.items() if role == chosen]

    parts = [
        f"{start}: {listed(f'{row.model} has ROUGE-L {row.text()}' for row in of(role))}"
        for start, role in (("Top teacher", "teacher"), ("As given", "given"))
        if of(role)
    ]
    students = sorted(of("student"), key=lambda row: -(row.parameters or 0))
    for model in dict.fromkeys(row.model for row in students):
        top = max((row for row in students if row.model == model), key=lambda row: row.value)
        parts.append(f"highest mean of {model}: {top.text()}, {full_text(top.lineage)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if parts else ""
