"""Cells of numbers: with their interval, their test and the values of their training seeds."""

import functools
from typing import Any

from takd.analysis import table
from takd.analysis.measures import BY_NAME
from takd.analysis.results import Results
from takd.analysis.statistics import number
from takd.analysis.table import ANY, DIFFERENCE, SCORE, Number
from takd.analysis.text import p_text
from takd.experiment.lineage import is_given
from takd.pages.tables import Cell


def measured(value: float | None, digits: int = 1, signed: bool = False, **more: Any) -> Cell:
    """Cell of a value; a dash that sorts last where there is none."""
    if value is None:
        return Cell("–", "", **more)
    return Cell(number(value, signed, digits), f"{value:.6g}", **more)


def numbered(results: Results, found: Number | None) -> Cell:
    """Cell of a number of the table, with its interval, its test and the values of its training seeds."""
    if found is None:
        return Cell("", "")
    signed, digits = found.kind == DIFFERENCE, BY_NAME[found.measure].digits
    notes = [found.interval.text(signed, digits)] if found.interval else []
    if found.verdict:
        notes.append(f"{found.verdict}, {p_text(found.p)}")
    seeds = by_seed(results, found)
    values = (f"seed {seed}: {number(value, signed, digits)}" for seed, value in seeds.items())
    tip = ", ".join(values) if len(seeds) > 1 else ""
    kind = "beyond" if found.significant else ""
    return measured(found.value, digits, signed, notes=notes, kind=kind, tip=tip)


@functools.lru_cache(maxsize=16)
def _numbers(results: Results) -> dict[tuple[Any, ...], Number]:
    """Scores and differences over all decoding seeds by their `_key`: a page looks up thousands, one by one."""
    rows = table.rows(table.of(results), kind=[SCORE, DIFFERENCE], seed=ANY, stratum=ANY)
    return {_key(row): row for row in rows}


def _key(row: Number) -> tuple[Any, ...]:
    what = (row.kind, row.lineage, row.measure, row.set, row.stratum)
    return (*what, row.question, row.other, row.seed)


def score(results: Results, name: str, lineage: str, measure: str) -> Number | None:
    """Look up the mean score of a model on an evaluation set."""
    wanted = Number("", SCORE, lineage, measure, 0.0, name)
    return _numbers(results).get(_key(wanted))


def required(results: Results, name: str, lineage: str, measure: str) -> Number:
    """Look up a mean score that is always there."""
    found = score(results, name, lineage, measure)
    assert found is not None
    return found


def by_seed(results: Results, mean: Number) -> dict[int, float]:
    """Map each training seed to its value behind a mean score or difference; empty of a model that has no seed."""
    if mean.kind == SCORE and is_given(mean.lineage):
        return {}
    found = {s: _numbers(results).get(_key(mean._replace(seed=s))) for s in results.spec["seeds"]}
    return {seed: row.value for seed, row in found.items() if row}
