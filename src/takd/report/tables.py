"""The table component of all pages, and its text as LaTeX and Markdown."""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from takd.analysis import table
from takd.analysis.comparisons import p_text
from takd.analysis.measures import BY_NAME
from takd.analysis.results import Results
from takd.analysis.statistics import number
from takd.analysis.table import ANY, DIFFERENCE, SCORE, Number
from takd.experiment.lineage import is_given


class Column(NamedTuple):
    """Head of a column. `kind` is a class of style.css: `num` for numbers, `name` for names."""

    title: str
    kind: str = "num"
    note: str = ""
    tip: str = ""


class Cell(NamedTuple):
    """A cell: its text, smaller lines below it (`notes`), and the value that it is sorted by (else its text)."""

    text: Any = ""
    value: Any = None
    notes: Sequence[str] = ()
    kind: str = ""
    tip: str = ""
    href: str = ""
    tag: str = ""
    fold: tuple[str, str] | None = None
    """A line, and a text that it unfolds."""


class Row(NamedTuple):
    """A row; others link to it by its `id`."""

    cells: Sequence[Cell]
    id: str = ""
    lineage: str = ""


class Group(NamedTuple):
    """Rows under one heading, which may be empty."""

    title: str
    rows: Sequence[Row]


class Table(NamedTuple):
    """A table in groups of rows, rendered by the macro `table` of templates/table.html."""

    columns: Sequence[Column]
    groups: Sequence[Group]
    id: str = ""
    caption: str = ""
    kind: str = ""


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
    return (
        *row[: Number._fields.index("value")],
        row.set,
        row.stratum,
        row.question,
        row.other,
        row.seed,
    )


def score(results: Results, name: str, lineage: str, measure: str) -> Number | None:
    """Look up the mean score of a model on an evaluation set."""
    wanted = Number(results.spec["experiment"], SCORE, lineage, measure, 0.0, name)
    return _numbers(results).get(_key(wanted))


def by_seed(results: Results, mean: Number) -> dict[int, float]:
    """Map each training seed to its value behind a mean score or difference; empty of a model that has no seed."""
    if mean.kind == SCORE and is_given(mean.lineage):
        return {}
    found = {s: _numbers(results).get(_key(mean._replace(seed=s))) for s in results.spec["seeds"]}
    return {seed: row.value for seed, row in found.items() if row}


def copies(found: Table) -> dict[str, str]:
    """Texts of a table to copy, by format."""
    return {"LaTeX": latex(found), "Markdown": markdown(found)}


def markdown(found: Table) -> str:
    """Write a table as Markdown; notes follow in brackets, groups are rows of their own."""
    heads = [_md(_head(column)) for column in found.columns]
    rules = ["---:" if column.kind == "num" else "---" for column in found.columns]
    lines = [heads, rules]
    for group in found.groups:
        if group.title:
            lines.append([f"**{_md(group.title)}**", *[""] * (len(heads) - 1)])
        lines += [[_md(_flat(cell)) for cell in row.cells] for row in group.rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(found: Table) -> str:
    """Write a table as LaTeX with the rules of booktabs."""
    columns = "".join("r" if column.kind == "num" else "l" for column in found.columns)
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines += [_row(map(_head, found.columns)), "\\midrule"]
    for group in found.groups:
        if group.title:
            wide = f"\\multicolumn{{{len(found.columns)}}}{{l}}"
            lines.append(f"{wide}{{\\textit{{{tex(group.title)}}}}} \\\\")
        lines += [_row(_flat(cell) for cell in row.cells) for row in group.rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _head(column: Column) -> str:
    return f"{column.title} ({column.note})" if column.note else column.title


def _flat(cell: Cell) -> str:
    """One line: text, tag and notes."""
    tag = f" [{cell.tag}]" if cell.tag else ""
    notes = f" ({'; '.join(cell.notes)})" if cell.notes else ""
    return f"{cell.text}{tag}{notes}"


def _md(text: str) -> str:
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", " ".join(text.split()))


def _row(texts: Iterable[str]) -> str:
    return " & ".join(map(tex, texts)) + r" \\"


_TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "→": r"$\to$",
    "×": r"$\times$", "\u00a0": "~", "\u202f": r"\,", "–": "--", "<": "$<$", ">": "$>$",
} | {each: f"\\{each}" for each in "&%$#_{}"}  # fmt: skip


def tex(text: str) -> str:
    return "".join(_TEX.get(each, each) for each in text.replace("\n", " "))
