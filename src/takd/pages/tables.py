"""The table component of all pages, and its text as LaTeX and Markdown."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from takd.pages.environment import visible


class Column(NamedTuple):
    """Head of a column. `kind` is a class of style.css: `num` for numbers, `name` for names."""

    title: str
    kind: str = "num"
    note: str = ""


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


class TableRow(NamedTuple):
    """A row; others link to it by its `id`."""

    cells: Sequence[Cell]
    id: str = ""
    lineage: str = ""


class Group(NamedTuple):
    """Rows under one heading, which may be empty."""

    title: str
    rows: Sequence[TableRow]


class Table(NamedTuple):
    """A table in groups of rows, rendered by the macro `table` of templates/table.html."""

    columns: Sequence[Column]
    groups: Sequence[Group]
    id: str = ""
    kind: str = ""


def simple(
    heads: Iterable[Column | str],
    rows: Iterable[Iterable[Any]],
    id: str = "",
    kind: str = "",
) -> Table:
    """Build a table in one group, whose first column has names.

    Args:
        heads: a text begins with `#` above numbers; after a bar stands the note: `#Minutes|wall time`.
        rows: texts and cells of each row, or a `TableRow`.
    """
    made = [head if isinstance(head, Column) else _column(head) for head in heads]
    made[0] = made[0]._replace(kind="name")
    return Table(made, [Group("", list(map(_table_row, rows)))], id, kind)


def _column(head: str) -> Column:
    title, _, note = head.lstrip("#").partition("|")
    return Column(title, "num" if head.startswith("#") else "", note)


def _table_row(row: Iterable[Any]) -> TableRow:
    if isinstance(row, TableRow):
        return row
    return TableRow([c if isinstance(c, Cell) else Cell(visible(str(c))) for c in row])


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
