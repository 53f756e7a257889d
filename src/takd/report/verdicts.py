"""Main findings in a few sentences: best students, counts of significant differences, other sets, published numbers.

Differences are described as in `takd.analysis.comparisons`; those that are not significant are counted.
"""

from collections import Counter
from collections.abc import Sequence

from takd.analysis.comparisons import QUESTIONS, Difference, Pair, analyse
from takd.analysis.results import Results
from takd.analysis.statistics import number
from takd.analysis.text import capital, counted, listed, titled
from takd.report.table import Group, Row, named, sources

SHOWN = 3
"""Students of different sizes that a sentence names."""

HELD = {True: "inside our interval", False: "outside our interval", None: "without an interval"}

Found = Sequence[tuple[Pair, Difference]]


def of_role(groups: list[Group], role: str) -> list[Row]:
    return [row for group in groups for row in group.rows if row.role == role]


def best(results: Results, groups: list[Group], name: str) -> str:
    """State the teacher's score and that of the best student of each size."""
    parts = [
        f"the {titled('teacher', [row.model])} has ROUGE-L {row.cells[name].rougeL.text()}"
        for row in of_role(groups, "teacher")
    ]
    leaders = list(_leaders(groups, name).items())
    for model, rows in leaders[-SHOWN:]:
        count = sum(row.model == model for row in of_role(groups, "student"))
        who = listed(named(results, row.lineage) for row in rows)
        score = rows[0].cells[name].rougeL.text()
        if len(rows) > 1:
            parts.append(f"the best of {count} chains to {model} are {who}, alike with {score}")
        elif count > 1:
            parts.append(f"the best of {count} chains to {model} is {who} with {score}")
        else:
            parts.append(f"{who} has {score}")
    more = f" (larger students: page Results, {name})" if len(leaders) > SHOWN else ""
    return f"{capital('; '.join(parts))}{more}."


def _leaders(groups: list[Group], name: str) -> dict[str, list[Row]]:
    """For each student model, large ones first, the rows with the highest score as rounded for display."""
    rows = sorted(of_role(groups, "student"), key=lambda row: -row.parameters)
    by_model: dict[str, list[Row]] = {}
    for row in rows:
        by_model.setdefault(row.model, []).append(row)
    tops = {
        model: max(row.cells[name].rougeL.mean for row in found)
        for model, found in by_model.items()
    }
    return {
        model: [row for row in found if number(row.cells[name].rougeL.mean) == number(tops[model])]
        for model, found in by_model.items()
    }


def answers(results: Results) -> list[str]:
    """State for each question on the first set how many differences are significant, and the largest of them."""
    analysis = analyse(results)
    first = results.spec["sets"][0]
    sentences = []
    for question, title in QUESTIONS.items():
        found = analysis.of(first, question)
        if len(found) == 1:
            sentences.append(f"{capital(title)}: {_told(results, *found[0])}.")
        elif found:
            start = f"{capital(title)}, {len(found)} comparisons:"
            sentences.append(
                f"{start} {tally(found, question)}{_largest(results, found, question)}."
            )
    return sentences


def scope(difference: Difference) -> str:
    """Scope of a significant difference: `method` (over trainings), `here` (only these trained models), or ``."""
    if difference.verdict and difference.over_trainings is not None:
        return "method"
    return "here" if difference.of_models else ""


def tally(found: Found, question: str) -> str:
    """Count the outcomes: `higher in 7, lower in 1, not told in 4`.

    Between two methods the direction is not counted, since their order in a pair is arbitrary.
    """
    several = any(difference.over_trainings is not None for _, difference in found)
    counts = Counter(
        (scope(d), (d.direction if question != "method" else "told") if scope(d) else "")
        for _, d in found
    )
    parts = []
    for kind, words in (("method", ""), ("here", " for the trainings made here alone" * several)):
        for said in ("higher", "lower", "told"):
            if count := counts[kind, said]:
                parts.append(f"{said} in {_share(count, len(found))}{words}")
    nothing = counts["", ""]
    if nothing == len(found):
        return "no difference told in any"
    if nothing:
        parts.append(f"no difference told in {nothing}")
    return ", ".join(parts) + " (each for the one training made here)" * (not several)


def _share(count: int, total: int) -> str:
    if count < total:
        return str(count)
    return "both" if total == 2 else f"all {total}"


def _largest(results: Results, found: Found, question: str) -> str:
    """The largest significant differences; if there are none, how large a difference may still be."""
    told = [one for one in found if scope(one[1])]
    if not told:
        means = _between([d.mean for _, d in found])
        intervals = [d.interval for _, d in found if d.interval]
        if not intervals:
            return f"; the estimates are {means}, and one prompt tells of no other"
        ends = _between([end for interval in intervals for end in interval])
        beyond = sum(not interval.holds(0) for interval in intervals)
        alone = f" ({beyond} leave{'s' if beyond == 1 else ''} zero out, but not after correction)"
        return f"; the estimates are {means}, their intervals {ends}{alone if beyond else ''}"
    surest = [one for one in told if scope(one[1]) == "method"] or told
    if question == "method":
        chosen = sorted(surest, key=lambda one: -abs(one[1].mean))[:1]
        return "".join(f". The largest: {_told(results, *one)}" for one in chosen)
    text = ""
    for direction, choose in (("higher", max), ("lower", min)):
        among = [one for one in surest if one[1].direction == direction]
        if among:
            pair, difference = choose(among, key=lambda one: one[1].mean)
            gap = number(difference.mean, signed=True)
            text += f". Most {direction}: {named(results, pair.ours)}, {gap}, {difference.words}"
    return text


def _between(values: Sequence[float]) -> str:
    low, high = (number(end, signed=True) for end in (min(values), max(values)))
    return low if low == high else f"between {low} and {high}"


def _told(results: Results, pair: Pair, difference: Difference) -> str:
    gap = number(difference.mean, signed=True)
    against = f"{named(results, pair.ours)} against {named(results, pair.theirs)}"
    return f"{against} {gap}, {difference.words}"


def elsewhere(results: Results, groups: list[Group]) -> list[str]:
    """State the results on the other sets, and whether they contradict the first."""
    first, *others = results.spec["sets"]
    analysis = analyse(results)
    parts, told, turned = [], 0, []
    for question, title in QUESTIONS.items():
        found = [one for name in others for one in analysis.of(name, question)]
        if found:
            parts.append(f"{title}, {counted(len(found), 'comparison')}, {tally(found, question)}")
        for pair, difference in analysis.of(first, question):
            told += bool(scope(difference))
            for name in others if scope(difference) else ():
                other = analysis.differences[name, pair]
                if scope(other) and other.direction != difference.direction:
                    turned.append((pair, name))
    sentences = [f"On {listed(others)}: {'; '.join(parts)}."] if parts else []
    if turned:
        pair, name = turned[0]
        sentences.append(
            f"Of what {first} tells, {counted(len(turned), 'verdict')} turned round elsewhere, the first on {name}:"
            f" {named(results, pair.ours)} against {named(results, pair.theirs)}."
        )
    elif told:
        sentences.append(f"No verdict there is the reverse of one on {first}.")
    sentences += _same_leaders(groups, first, others)
    return sentences


def _same_leaders(groups: list[Group], first: str, others: Sequence[str]) -> list[str]:
    """Count how often the best student of the first set is the best of its size on the other sets."""
    here = _leaders(groups, first)
    chosen = [m for m in here if sum(row.model == m for row in of_role(groups, "student")) > 1]
    if not chosen:
        return []
    same = 0
    for name in others:
        there = _leaders(groups, name)
        for model in chosen:
            tops = {row.lineage for row in there[model]}
            same += any(row.lineage in tops for row in here[model])
    total = len(chosen) * len(others)
    if total == 1:
        return [
            f"The best student on {first} is {'also' if same else 'not'} the best on {others[0]}."
        ]
    if len(chosen) == 1:
        return [f"The best student on {first} is also the best on {same} of the {total} others."]
    return [
        f"The best students on {first} are also the best of their size on another set in {same} of {total} cases."
    ]


def published(groups: list[Group]) -> list[str]:
    """Count for each source how many published numbers lie within our intervals."""
    sentences = []
    for source in sources(groups):
        found = [
            (row, name, number_)
            for row in (row for group in groups for row in group.rows)
            for name, cell in row.cells.items()
            for number_ in cell.published
            if number_.source == source
        ]
        held = sum(p.held is True for _, _, p in found)
        beyond = [one for one in found if one[2].held is False]
        if len(found) == 1:
            ((row, name, only),) = found
            values = f"{number(row.cells[name].rougeL.mean)} here, {number(only.value)} there"
            what = f"{row.chain} ({row.methods}) on {name}: {values}"
            sentences.append(f"{capital(source)}, {what}, {HELD[only.held]}.")
            continue
        text = f"Of the {len(found)} numbers in {source}, our intervals hold {held}"
        if beyond:
            row, name, far = max(beyond, key=lambda one: abs(one[2].difference))
            text += (
                f"; {len(beyond)} differ{'s' if len(beyond) == 1 else ''} by more, most {row.chain} ({row.methods})"
                f" on {name}: {number(row.cells[name].rougeL.mean)} here, {number(far.value)} there"
            )
        if unknown := len(found) - held - len(beyond):
            text += f"; {unknown} cannot be held against one prompt"
        sentences.append(f"{text}.")
    return sentences
