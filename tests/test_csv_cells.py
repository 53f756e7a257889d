"""Every cell of the report's CSV files on made-up results, against files that were stored before the table existed.

The stored files are the contract with whoever reads the CSV files: columns and rows may be added, and columns renamed
as `RENAMED` says, but no cell changes.
"""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import test_compare
import test_report_ahead
from sealing import write_json, write_lines
from test_report import BY_KD, DIRECT, THROUGH, make

from takd.analysis import exports
from takd.analysis.results import read
from takd.report import compare, costs_page
from takd.report.figures.quality import quality

EXPECTED = Path(__file__).parent / "expected"
RENAMED = {
    "p": "p (Holm)",
    "verdict": "significant",
    "verdict_as_trained": "significant_these_checkpoints",
}
TARGETS = [{"source": "A paper", "scores": {"teacher-sft": {"heldout": 52.5}}}]


def renamed(column):
    """Name of a stored column today; those of a gain have its name before them."""
    for gain in ("gain_over_sft_", "gain_over_direct_", ""):
        if column.startswith(gain) and column.removeprefix(gain) in RENAMED:
            return gain + RENAMED[column.removeprefix(gain)]
    return column


def scatter(root, spec):
    """Give every answer scores of its own."""
    rng = np.random.default_rng(5)
    for lineage, seed in spec["nodes"]:
        for name in spec["sets"]:
            folder = root / "evaluations" / lineage / f"seed{seed}" / name
            file = folder / "generations.jsonl"
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            shift = 8 * lineage.count("__")
            for output in (output for row in rows for output in row["outputs"]):
                output["rougeL"] = float(np.clip(rng.normal(50 + shift, 8), 0, 100))
                output["exact_match"] = float(rng.uniform() < 0.4) * 100
            write_lines(file, rows)
            means = {
                measure: [
                    float(np.mean([row["outputs"][place][measure] for row in rows]))
                    for place in range(len(spec["decoding_seeds"]))
                ]
                for measure in ("rougeL", "exact_match")
            }
            scores = json.loads((folder / "scores.json").read_text())
            scores["scores"] = {
                measure: {
                    "mean": float(np.mean(found)),
                    "by_seed": dict(zip(map(str, spec["decoding_seeds"]), found, strict=True)),
                }
                for measure, found in means.items()
            }
            write_json(folder / "scores.json", scores)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """CSV files of a report with teacher caches, two sets and two seeds, and of a comparison, by name."""
    root = tmp_path_factory.mktemp("cells")
    chains = [DIRECT, BY_KD, test_report_ahead.THROUGH, THROUGH]
    spec = make(root, chains, (1, 2), ("heldout", "other"), TARGETS)
    test_report_ahead.write_all(root, spec)
    scatter(root, spec)
    results = read(spec, *(root / name for name in ("models", "evaluations", "teachers")))
    compared = test_compare.compared(root, *test_compare.three_experiments(root))
    return {
        "results.csv": exports.results_csv(results),
        "differences.csv": exports.differences_csv(results),
        "scores.csv": exports.scores_csv(results),
        "costs.csv": costs_page.to_csv(results),
        "quality.csv": quality(results).csv,
        "comparison.csv": compare.to_csv(compared),
    }


def rows(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


STORED = sorted(path.name for path in EXPECTED.glob("*.csv"))
KEYS = (
    *("set", "question", "ours", "theirs", "lineage", "chain", "stage", "experiment", "seed"),
    *("decoding_seed", "measure", "direct"),
)
"""Columns that tell rows apart, where a file has them."""


@pytest.mark.parametrize("name", STORED)
def test_every_stored_cell_is_in_the_file_of_today(texts, name):
    before, now = rows((EXPECTED / name).read_text()), rows(texts[name])
    keys = [key for key in KEYS if key in before[0]]
    # rows of other measures and strata were added, and have no counterpart
    extra = {"measure": "rougeL", "stratum": ""}
    wanted = {key: value for key, value in extra.items() if key in now[0] and key not in keys}
    found = {
        tuple(row[key] for key in keys): row
        for row in now
        if all(row[key] == value for key, value in wanted.items())
    }
    assert len({tuple(row[key] for key in keys) for row in before}) == len(before)
    for row in before:
        today = found[tuple(row[key] for key in keys)]
        assert {key: today[renamed(key)] for key in row} == row
