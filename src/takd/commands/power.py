"""Say how many training seeds and prompts tell a difference."""

import json
import math
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from takd.analysis import comparisons
from takd.analysis.comparisons import QUESTIONS
from takd.analysis.measures import BY_NAME
from takd.analysis.power import (
    MOST,
    Variances,
    interval_of_sd,
    prompts_needed,
    seeds_needed,
    told,
    variances,
)
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
        InputError: there are neither results nor `--sd`, or a value does not fit.
    """
    if options.results is None and options.sd is None:
        raise InputError(
            "power: name an experiment or a folder of results, or give the standard deviation of a difference over"
            " training seeds, as in --sd 0.6."
        )
    if options.results is None:
        about = {"set": None, "measure": options.measure, "seeds": options.seeds}
        rows = [_row("planned", _given(options), options.seeds, options.prompts, options)]
        found = about | {"prompts": options.prompts}
    else:
        results, _ = results_of(root, options.results, variables, partial=True)
        name = options.set or results.spec["sets"][0]
        _check(results, name, options)
        rows = list(_rows(results, name, options))
        if not rows:
            raise InputError(
                f"{options.results}: no two models that have results so far are compared; finish the run, or give --sd."
            )
        prompts = len(results.evaluations[results.nodes[0], name].ids)
        found = {"set": name, "measure": options.measure, "prompts": prompts}
        found["seeds"] = max(row["seeds"] for row in rows)
    asked = ("difference", "power", "level")
    found |= {key: getattr(options, key) for key in asked} | {"questions": rows}
    print(json.dumps(found, indent=1) if options.json else text(found))
    return 0


def _check(results: Results, name: str, options: Namespace) -> None:
    if name not in (sets := results.spec["sets"]):
        raise InputError(f"--set {name}: is not an evaluation set; there are {', '.join(sets)}.")
    if options.measure not in (measures := results.tested(name)):
        right = f"has no scores on {name}; there are {', '.join(measures)}"
        raise InputError(f"--measure {options.measure}: {right}.")
    for option in ("prompts", "sd_prompts", "seeds"):
        if getattr(options, option) is not None:
            text = "is for planning without results, which say it themselves; remove it."
            raise InputError(f"--{option.replace('_', '-')} {text}")


def _given(options: Namespace) -> Variances:
    """Variances by the options alone."""
    if (options.prompts is None) != (options.sd_prompts is None):
        raise InputError("--prompts and --sd-prompts go together: give both or neither.")
    return Variances(options.sd**2, (options.sd_prompts or 0.0) ** 2, 0.0)


def _rows(results: Results, name: str, options: Namespace) -> Iterator[dict[str, Any]]:
    for pair in comparisons.pairs(results):
        seeds = comparisons.shared(results, pair)
        scores = [
            results.scores(lineage, name, options.measure, seeds).mean(axis=2)
            for lineage in (pair.ours, pair.theirs)
        ]
        trainings, prompts = scores[0].shape
        if prompts < 3:
            raise InputError(f"{name} has {counted(prompts, 'prompt')}; three are the least.")
        of = variances(scores[0] - scores[1])
        if options.sd is not None:
            of = of._replace(trainings=max(0.0, options.sd**2 - of.residual / prompts))
        what = pair._asdict() | {"value": float((scores[0] - scores[1]).mean())}
        title = f"{full_text(pair.ours)} − {full_text(pair.theirs)}"
        yield what | _row(title, of, trainings, prompts, options)


def _row(
    title: str, of: Variances, seeds: int | None, prompts: int | None, options: Namespace
) -> dict[str, Any]:
    """One line: what is known, and what is needed; None where it cannot be known or where nothing is enough."""
    unknown = math.isnan(of.trainings)
    sd = None if unknown else of.over_seeds(prompts)
    asked = options.difference, options.power, options.level
    several = seeds is not None and seeds > 1 and not unknown
    measured = several and options.sd is None and sd is not None and seeds is not None
    of_sd = interval_of_sd(sd, seeds) if measured and sd is not None and seeds is not None else None
    needed = None if unknown else seeds_needed(of, asked[0], prompts, *asked[1:])
    line: dict[str, Any] = {
        "title": title, "seeds": seeds, "sd_seeds": sd, "sd_seeds_low": of_sd and of_sd.low,
        "sd_seeds_high": of_sd and of_sd.high,
        "sd_prompts": math.sqrt(of.prompts + of.residual / (seeds or 1)) if prompts else None,
        "seeds_needed": needed, "prompts_needed": None, "told": None,
    }  # fmt: skip
    if seeds is not None and prompts is not None:
        # with one seed, of these checkpoints alone
        line["prompts_needed"] = prompts_needed(of, asked[0], seeds, *asked[1:])
    if seeds is not None and (several or prompts is not None):
        line["told"] = told(of, seeds, prompts, *asked[1:])
    return line


def text(found: Mapping[str, Any]) -> str:
    """Format the table with what it means."""
    measure = BY_NAME[found["measure"]]
    rows = found["questions"]
    lines = []
    for question in dict.fromkeys(row.get("question") for row in rows):
        lines += [[QUESTIONS[question]]] if question else []
        lines += [_cells(row, found) for row in rows if row.get("question") == question]
    there = [
        counted(found[key], what)
        for key, what in (("seeds", "training seed"), ("prompts", "prompt"))
        if found[key]
    ]
    where = f" on {found['set']}" if found["set"] else ""
    return "\n".join(
        [
            f"{measure.title}{where}, {' and '.join(there) or 'nothing trained yet'}. To tell a difference of"
            f" {found['difference']:g} with power {found['power']:.0%}, one test at level {found['level']:g}:",
            "",
            *aligned([["difference", *HEAD], *lines]),
            "",
            *(f"- {note}" for note in notes(found)),
        ]
    )


def _cells(row: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    low, high = row["sd_seeds_low"], row["sd_seeds_high"]
    sd = "not known" if row["sd_seeds"] is None else f"{row['sd_seeds']:.2f}"
    most_seeds, most_prompts = (f"> {most:,}" for most in MOST)
    needed = most_seeds if row["sd_seeds"] is not None else "not known"
    prompts = f"{row['prompts_needed']:,}" if row["prompts_needed"] else most_prompts
    return [
        f"  {row['title']}",
        sd if low is None else f"{sd} ({low:.2f} to {high:.2f})",
        "" if row["sd_prompts"] is None else f"{row['sd_prompts']:.1f}",
        str(row["seeds_needed"] or needed),
        "" if found["prompts"] is None or row["seeds"] is None else prompts,
        "" if row["told"] is None else number(row["told"], digits=2),
    ]


def notes(found: Mapping[str, Any]) -> Iterator[str]:
    """Say what the numbers assume, and what cannot be known."""
    rows, prompts = found["questions"], found["prompts"]
    unknown = any(row["sd_seeds"] is None for row in rows)
    if unknown:
        yield (
            "One training seed says nothing of the spread over seeds. What is told now, and the prompts needed, are"
            " of these checkpoints alone; two more seeds, or --sd, say the rest."
        )
    if any(row["sd_seeds_low"] is not None for row in rows):
        yield (
            "The SD over seeds is itself estimated from few seeds. With the upper end of its interval many more"
            " would be needed: seeds.until of an experiment adds them until they are enough."
        )
    yield (
        f"Seeds needed: with {prompts} prompts, at least two."
        if prompts
        else "Seeds needed: if the prompts are so many that they add no variance, at least two."
    )
    if any(row["seeds_needed"] is None for row in rows) and not unknown:
        yield "No number of seeds is enough where the prompts' part of the variance is too large: add prompts."
    if prompts and any(row["prompts_needed"] is None for row in rows):
        yield "No number of prompts is enough where the seeds' part of the variance is too large: add seeds."
    counts = Counter(row.get("question") for row in rows)
    if (family := max(counts.values())) > 1:
        yield (
            f"The report corrects by Holm within a question: in the worst case, one of {family} tests needs --level"
            f" {found['level'] / family:.2g}."
        )
