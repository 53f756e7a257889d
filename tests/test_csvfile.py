"""CSV files for spreadsheets: no text is a formula, numbers are numbers, and what is read back is what was written."""

import csv
import io

import pytest
from test_report import BY_KD, DIRECT, THROUGH, make, rows_of
from test_report_summary import results_of

from takd.analysis import exports
from takd.report.figures.style import Drawing

FORMULAS = [
    "=1+1",
    '=HYPERLINK("http://a.b","x")',
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1:A2)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1＋1",
    "-",
    "'quoted'",
    "''",
]
PLAIN = ["a=b", " =1", "a-b", "1", "", "teacher → student", 'with "quotes", commas\nand lines', "é"]


def read(text):
    """As a reader does who takes the mark off again."""
    return [
        [cell.removeprefix("'") for cell in row]
        for row in csv.reader(io.StringIO(text, newline=""))
    ]


@pytest.mark.parametrize("text", [*FORMULAS, *PLAIN], ids=repr)
def test_no_text_is_a_formula_and_none_is_lost(text):
    written = exports.to_csv([{text or "empty": text, "n": -1.5}])
    _, (cell, number) = csv.reader(io.StringIO(written, newline=""))
    assert (cell == text) == (text in PLAIN)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋"))
    assert read(written) == [[text or "empty", "n"], [text, "-1.5"]]
    assert number == "-1.5"


@pytest.mark.parametrize("value", [-1, -0.25, 1e-05, -1e300, 0, 7, True, None])
def test_numbers_stay_numbers(value):
    assert exports.to_csv([{"n": value}], digits=None).splitlines()[1] == (
        '""' if value is None else str(value)
    )


@pytest.mark.parametrize("label", ["=1+1", "+1", "-1", "@x", "'x"])
def test_every_file_of_the_report_has_labels_and_sources_as_text(tmp_path, label):
    targets = [{"source": f"{label} et al.", "scores": {}}]
    chain = (label, *DIRECT[1:])
    spec = make(tmp_path, [chain, BY_KD, THROUGH], (1, 2), targets=targets)
    lineage = spec["chains"][0]["lineage"]
    spec["targets"][0]["scores"] = {lineage: {"heldout": 5.0}}
    results = results_of(tmp_path, spec)
    files = [
        exports.results_csv(results),
        exports.differences_csv(results),
        exports.scores_csv(results),
        Drawing("", [{label: label, "value": -0.5}]).csv,
    ]
    cells = [
        cell for text in files for row in csv.reader(io.StringIO(text, newline="")) for cell in row
    ]
    assert f"'{label}" in cells and f"'{label} et al." in cells
    numbers = [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert numbers and all(float(cell) < 0 for cell in numbers), numbers
    (row,) = (row for row in rows_of(files[0]) if row["lineage"] == lineage)
    assert row["label"].removeprefix("'") == label
