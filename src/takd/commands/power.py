"""Say how many training seeds and prompts tell a difference."""

import json
import math
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from takd.analysis import comparisons
from takd.analysis.comparisons import Pair
from takd.analysis.measures import BY_NAME
from takd.analysis.power import (
    MOST,
    interval_of_sd,
    prompts_needed,
    seeds_needed,
    told,
    variances,
)
from takd.analysis.questions import QUESTIONS
from takd.analysis.results import Results
from takd.analysis.statistics import number
from takd.analysis.text import counted
from takd.commands.found import results_of
from takd.experiment.labels import full_text
from takd.preflight.text_table import aligned
from takd.runtime.errors import InputError

HEAD = ("SD over seeds (95 %)", "SD over prompts", "seeds needed", "prompts needed", "told now")


def power(root: Path, options: Namespace, variables: Mapping[str, str]) -> int:
    """Print the table, or JSON.

    Raises:
        InputError: there are no results that can be compared, or no such set or measure.
    """
    results, _ = results_of(root, options.results, variables, partial=True)
    name = options.set or results.spec["sets"][0]
    if name not in (sets := results.spec["sets"]):
        raise InputError(f"--set {name}: is not an evaluation set; there are {', '.join(sets)}.")
    if options.measure not in (measures := results.tested(name)):
        right = f"has no scores on {name}; there are {', '.join(measures)}"
        raise InputError(f"--measure {options.measure}: {right}.")
    prompts = len(results.evaluations[results.nodes[0], name].ids)
    if prompts < 3:
        raise InputError(f"{name} has {counted(prompts, 'prompt')}; three are the least.")
    rows = [_row(results, name, pair, options) for pair in comparisons.pairs(results)]
    if not rows:
        right = "no two models that have results so far are compared; finish the run."
        raise InputError(f"{options.results}: {right}")
    found = {"set": name, "measure": options.measure, "prompts": prompts}
    found |= {"seeds": max(row["seeds"] for row in rows)}
    found |= {key: getattr(options, key) for key in ("difference", "power", "level")}
    found |= {"questions": rows}
    print(json.dumps(found, indent=1) if options.json else text(found))
    return 0


def _row(results: Results, name: str, pair: Pair, options: Namespace) -> dict[str, Any]:
    """One line: what is known, and what is needed; None where it cannot be known or where nothing is enough."""
    seeds = comparisons.shared(results, pair)
    ours, theirs = (
        results.scores(lineage, name, options.measure, seeds).mean(axis=2)
        for lineage in (pair.ours, pair.theirs)
    )
    of, (count, prompts) = variances(ours - theirs), ours.shape
    wanted = options.power, options.level
    line = pair._asdict() | {
        "value": float((ours - theirs).mean()),
        "title": f"{full_text(pair.ours)} − {full_text(pair.theirs)}",
        "seeds": count,
        **dict.fromkeys(("sd_seeds", "sd_seeds_low", "sd_seeds_high", "seeds_needed")),
        "sd_prompts": math.sqrt(of.prompts + of.residual / count),
        # with one seed, of these checkpoints alone
        "prompts_needed": prompts_needed(of, options.difference, count, *wanted),
        "told": told(of, count, prompts, *wanted),
    }
    if count > 1:
        line["sd_seeds"] = sd = of.over_seeds(prompts)
        line["sd_seeds_low"], line["sd_seeds_high"] = interval_of_sd(sd, count)
        line["seeds_needed"] = seeds_needed(of, options.difference, prompts, *wanted)
    return line


def text(found: Mapping[str, Any]) -> str:
    """Format the table with what it means."""
    measure = BY_NAME[found["measure"]]
    rows = found["questions"]
    lines = []
    for question in dict.fromkeys(row["question"] for row in rows):
        lines.append([QUESTIONS[question].title])
        lines += [_cells(row) for row in rows if row["question"] == question]
    there = f"{counted(found['seeds'], 'training seed')} and {counted(found['prompts'], 'prompt')}"
    return "\n".join(
        [
            f"{measure.title} on {found['set']}, {there}. To tell a difference of"
            f" {found['difference']:g} with power {found['power']:.0%}, one test at level {found['level']:g}:",
            "",
            *aligned([["difference", *HEAD], *lines]),
            "",
            *(f"- {note}" for note in notes(found)),
        ]
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    sd, low, high = (row[f"sd_seeds{end}"] for end in ("", "_low", "_high"))
    most_seeds, most_prompts = (f"> {most:,}" for most in MOST)
    known = sd is not None
    return [
        f"  {row['title']}",
        f"{sd:.2f} ({low:.2f} to {high:.2f})" if known else "not known",
        f"{row['sd_prompts']:.1f}",
        str(row["seeds_needed"] or most_seeds) if known else "not known",
        f"{row['prompts_needed']:,}" if row["prompts_needed"] else most_prompts,
        number(row["told"], digits=2),
    ]


def notes(found: Mapping[str, Any]) -> Iterator[str]:
    """Say what the numbers assume, and what cannot be known."""
    rows = found["questions"]
    unknown = any(row["sd_seeds"] is None for row in rows)
    if unknown:
        yield (
            "One training seed says nothing of the spread over seeds. What is told now, and the prompts needed, are"
            " of these checkpoints alone; two more seeds say the rest."
        )
    if any(row["sd_seeds"] is not None for row in rows):
        yield (
            "The SD over seeds is itself estimated from few seeds. With the upper end of its interval many more"
            " would be needed: seeds.until of an experiment adds them until they are enough."
        )
    yield f"Seeds needed: with {found['prompts']} prompts, at least two."
    if any(row["seeds_needed"] is None for row in rows) and not unknown:
        yield "No number of seeds is enough where the prompts' part of the variance is too large: add prompts."
    if any(row["prompts_needed"] is None for row in rows):
        yield "No number of prompts is enough where the seeds' part of the variance is too large: add seeds."
    counts = Counter(row["question"] for row in rows)
    if (family := max(counts.values())) > 1:
        yield (
            f"The report corrects by Holm within a question: in the worst case, one of {family} tests needs --level"
            f" {found['level'] / family:.2g}."
        )
