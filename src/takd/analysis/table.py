"""The one table: every score, difference and cost of an experiment, one number a row.

`of(results)` makes a long pandas DataFrame whose columns are the fields of `Number`. Pages, figures, CSV files, model
cards and comparisons select from it:

    found = table.of(results)
    table.rows(found, kind="score", set="dolly", measure="rougeL")        # all lineages, over training seeds
    table.rows(found, kind="score", lineage=name, seed=EACH)              # the values behind a mean
    table.one(found, kind="score", set="dolly", lineage=name, measure="rougeL").text()     # 62.9 (61.2 to 64.4)
    table.rows(found, kind="difference", question="direct", set="dolly", measure="rougeL")
    table.select(found, kind="cost", stage="training", measure="minutes", seed=EACH).groupby("lineage").value.sum()

What is not named is what a reader wants first: all training seeds together, all decoding seeds, all prompts. `EACH`
selects the rows of each training seed, decoding seed or stratum, `ANY` these and the row over all of them.
`takd.analysis.measures.BY_NAME` has the title, definition, unit and digits of each measure; `lines` has the lineages in
the order of tables, `takd.analysis.fairness` what else differs between two models.
"""

import functools
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from takd.analysis import comparisons, costs
from takd.analysis.measures import BY_NAME, MEASURES, TESTED, TRAININGS
from takd.analysis.results import Results
from takd.analysis.statistics import Interval, number, of_trainings
from takd.experiment.labels import chain_label, chain_text, methods_text
from takd.experiment.lineage import SELF, control_of, is_given, prefixes, split, teacher_of

EACH, ANY = "each", "any"
"""Of `select`: every value of a column, without or with the row over all of them."""

SCORE, DIFFERENCE, COST = "score", "difference", "cost"


class Number(NamedTuple):
    """One number: a row of the table. What does not apply is empty or None."""

    experiment: str
    kind: str
    """`score`, `difference` or `cost`."""
    lineage: str
    """The model; of a difference the first of the two, `lineage` minus `other`."""
    measure: str
    value: float
    set: str = ""
    stratum: str = ""
    """Value of the rows' stratum, where the number is over the prompts that have it."""
    question: str = ""
    """Of a difference: a key of `questions.QUESTIONS`."""
    other: str = ""
    stage: str = ""
    """Of a cost; `cumulative` with all that the model needs: teachers, their caches and the initial SFT."""
    device: str = ""
    seed: int | None = None
    """Training seed, 0 for a model that is taken as it is; None over all."""
    decoding_seed: int | None = None
    low: float | None = None
    """95 % confidence interval across training seeds; over prompts where there is one seed."""
    high: float | None = None
    prompts_low: float | None = None
    """95 % confidence interval over prompts, for these checkpoints."""
    prompts_high: float | None = None
    se_prompts: float | None = None
    se_training_seeds: float | None = None
    se_decoding_seeds: float | None = None
    n_training_seeds: int | None = None
    """0 for a model that is taken as it is."""
    n_prompts: int | None = None
    p: float | None = None
    """Corrected by Holm's method within the family: one question and measure on one set."""
    p_raw: float | None = None
    prompts_p: float | None = None
    """As `p`, for these checkpoints: over prompts alone."""
    prompts_p_raw: float | None = None
    significant: str = ""
    """`higher` or `lower` where p and interval say so, else empty."""
    significant_these_checkpoints: str = ""
    family: int | None = None
    """Tests that `p` is corrected for."""
    chain: str = ""
    methods: str = ""
    method: str = ""
    model: str = ""
    teacher: str | None = None
    """Lineage of the direct teacher."""
    parameters: int | None = None

    @property
    def interval(self) -> Interval | None:
        return None if self.low is None or self.high is None else Interval(self.low, self.high)

    @property
    def prompts_interval(self) -> Interval | None:
        """Interval over prompts, for these checkpoints."""
        if self.prompts_low is None or self.prompts_high is None:
            return None
        return Interval(self.prompts_low, self.prompts_high)

    @property
    def several(self) -> bool:
        """Whether the interval and p are across training seeds."""
        return (self.n_training_seeds or 0) > 1 and (self.n_prompts or 0) > 1

    def text(self, signed: bool | None = None) -> str:
        """Format as `62.9 (61.2 to 64.4)`; differences have a sign."""
        signed = self.kind == DIFFERENCE if signed is None else signed
        digits = BY_NAME[self.measure].digits
        value = number(self.value, signed, digits)
        return f"{value} ({self.interval.text(signed, digits)})" if self.interval else value

    @property
    def verdict(self) -> str:
        """`significant` or `n.s.`, across training seeds where there are several; empty without a test."""
        return "" if self.p is None else "significant" if self.significant else "n.s."


INTEGERS = ("seed", "decoding_seed", "n_training_seeds", "n_prompts", "family", "parameters")
OVER_ALL = {"seed": None, "decoding_seed": None, "stratum": ""}
LISTED = "_listed"
"""Attribute of a table: its rows as `rows` selects from them."""


@functools.lru_cache(maxsize=16)
def of(results: Results) -> pd.DataFrame:
    """Build the table of an experiment, once for all that select from it."""
    numbers = [*_scores(results), *_tested(results), *_costs(results)]
    # integers that may be missing are nullable
    return pd.DataFrame(numbers, columns=Number._fields).astype(dict.fromkeys(INTEGERS, "Int64"))


def select(found: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Select rows by columns: a value, a list of values, `EACH` or `ANY`.

    `seed`, `decoding_seed` and `stratum` that are not named select what is over all of them.
    """
    chosen = np.ones(len(found), dtype=bool)
    for column, value in (OVER_ALL | wanted).items():
        values = found[column]
        if value is None:
            here = values.isna()
        elif value == EACH:
            here = values.notna() & (values != "")
        elif value != ANY:
            here = values.isin(value if isinstance(value, list | tuple | set) else [value])
        else:
            continue
        chosen &= here.to_numpy(bool)
    return found[chosen]


def rows(found: pd.DataFrame, **wanted: Any) -> list[Number]:
    """Select as `select`, as a list of `Number`: a page takes few rows hundreds of times, for which pandas is slow."""
    if LISTED not in vars(found):  # once, as nothing changes a table
        values = found.to_numpy(dtype=object, na_value=None).tolist()
        vars(found)[LISTED] = [Number(*row) for row in values]
    chosen: list[Number] = vars(found)[LISTED]
    for column, value in (OVER_ALL | wanted).items():
        at = Number._fields.index(column)
        if value == EACH:
            chosen = [row for row in chosen if row[at] not in (None, "")]
        elif value != ANY:
            among = value if isinstance(value, list | tuple | set) else (value,)
            chosen = [row for row in chosen if row[at] in among]
    return chosen


def one(found: pd.DataFrame, **wanted: Any) -> Number | None:
    """The only row that `rows` selects; None if there is none."""
    chosen = rows(found, **wanted)
    if len(chosen) > 1:
        raise ValueError(f"{len(chosen)} rows of the table match {wanted}, not one")
    return chosen[0] if chosen else None


class Line(NamedTuple):
    """A lineage in the order of tables."""

    lineage: str
    role: str
    """`teacher`, `given`, `baseline`, `assistant`, `student` or `control`."""
    label: str
    """Label of the chain that ends in it."""


def lines(results: Results) -> list[Line]:
    """List all lineages: teachers, models as they were given, SFT baselines, then chain by chain.

    Each lineage is listed once: with the chain that it ends, else with the first chain that contains it.
    """
    chains = [(chain_label(chain), chain["lineage"]) for chain in results.spec["chains"]]
    tags = {lineage: label for label, lineage in reversed(chains)}
    heads = [
        prefixes(lineage)[0]
        for _, lineage in chains
        if teacher_of(lineage) and control_of(lineage) != SELF
    ]
    alone = [x for x in results.lineages if teacher_of(x) is None and not control_of(x)]
    roles = [(lineage, "teacher") for lineage in heads]
    roles += [(lineage, "given") for lineage in results.lineages if is_given(lineage)]
    roles += [(lineage, "baseline") for lineage in alone]
    for _, end in chains:
        for lineage in [end] if control_of(end) else prefixes(end)[1:]:
            if lineage == end or lineage not in tags:
                role = "student" if lineage == end else "assistant"
                roles.append((lineage, "control" if control_of(lineage) else role))
    first = {lineage: role for lineage, role in reversed(roles) if lineage in results.lineages}
    order = list(dict.fromkeys(lineage for lineage, _ in roles))
    return [
        Line(lineage, first[lineage], tags.get(lineage, ""))
        for lineage in sorted(first, key=order.index)
    ]


def described(results: Results, lineage: str) -> dict[str, Any]:
    """Columns that describe a model."""
    hop = split(lineage)[-1]
    return {
        "experiment": results.spec["experiment"],
        "lineage": lineage,
        "chain": chain_text(lineage),
        "methods": methods_text(lineage),
        "method": hop.method,
        "model": hop.model,
        "teacher": teacher_of(lineage),
        "parameters": results.of(lineage)[0].parameters,
    }


def _scores(results: Results) -> Iterator[Number]:
    """Yield every measure of each model on each set, by decoding seed and over them, and means over training seeds."""
    about = {lineage: described(results, lineage) for lineage in results.lineages}
    for (node, name), evaluation in results.evaluations.items():
        for measure in MEASURES:
            by_draw = sorted(measure.by_seed(evaluation).items())
            for draw, value in [(None, measure.of(evaluation)), *by_draw]:
                if value is not None and np.isfinite(value):
                    yield Number(
                        kind=SCORE, measure=measure.name, value=value, set=name, seed=node.seed,
                        decoding_seed=draw, n_prompts=len(evaluation.ids), **about[node.lineage],
                    )  # fmt: skip
    for name in results.spec["sets"]:
        for lineage in results.lineages:
            of_models = [results.evaluations[model.node, name] for model in results.of(lineage)]
            for measure in MEASURES:
                values = [v for each in of_models if (v := measure.of(each)) is not None]
                if measure.name not in TESTED and len(values) == len(of_models):
                    mean = statistics.fmean(values)
                    seeds = 0 if is_given(lineage) else len(values)
                    trainings = measure.interval == TRAININGS
                    interval = of_trainings(np.array(values)) if trainings else None
                    low, high = interval or (None, None)
                    yield Number(
                        kind=SCORE, measure=measure.name, value=mean, set=name, low=low, high=high,
                        n_training_seeds=seeds, n_prompts=len(of_models[0].ids), **about[lineage],
                    )  # fmt: skip


def _tested(results: Results) -> Iterator[Number]:
    """Yield the scores of single answers and their differences, with uncertainty and tests, overall and by stratum."""
    about = {lineage: described(results, lineage) for lineage in results.lineages}
    for columns in comparisons.tested(results):
        yield Number(**about[columns["lineage"]] | columns)


def _costs(results: Results) -> Iterator[Number]:
    """Yield the costs of every run, and the cumulative cost of each lineage by training seed and as their mean."""
    about = {lineage: described(results, lineage) | {"kind": COST} for lineage in results.lineages}
    for run in costs.runs(results).itertuples():
        place: comparisons.Columns = {"seed": run.seed, "set": run.set}
        place |= {"stage": run.stage, "device": run.device}
        for measure in ("minutes", "tokens", "hours", "flops", "steps", "skipped"):
            if not pd.isna(value := getattr(run, measure)):
                yield Number(**about[run.lineage], **place, measure=measure, value=value)
    # a model card has one model, without the trainings that it depends on
    cumulative = costs.cumulative(results) if "seeds" in results.spec else {}
    for lineage, cost in cumulative.items():
        for measure, by_seed in cost.items():
            if not by_seed:
                continue
            mean = (None, statistics.fmean(by_seed.values()))
            for seed, value in [*by_seed.items(), mean]:
                place = {"seed": seed, "stage": costs.CUMULATIVE, "measure": measure}
                yield Number(**about[lineage], **place, value=value)
