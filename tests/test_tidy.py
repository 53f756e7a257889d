"""The tidy files: read back, and enough to make the report's statistics again."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sealing import write_lines
from test_report import BY_KD, DIRECT, THROUGH, make, run

from takd.analysis import exports, table
from takd.analysis.comparisons import Pair, pairs
from takd.analysis.measures import MEASURES
from takd.analysis.results import read
from takd.experiment.lineage import of_chain

ROOT = Path(__file__).resolve().parents[1]


def texts(number, names, scale):
    """Two texts of a prompt, as `likelihoods` sums them up."""
    key = "reference" if "bins" in names else "seed"
    return [
        {key: index, "tokens": 2 + index + number, "bins": [[1, 0, 0.5]]}
        | {name: scale * (number + 1) * (index + 1) for name in names if name != "bins"}
        for index in range(2)
    ]


def sums(lineage):
    compared = ("nll", "teacher_nll", "forward_kl", "reverse_kl")
    roles = ("direct", "first") if lineage.count("__") > 1 else ("direct",) * ("__" in lineage)
    return [
        {"id": 7 * row, "references": texts(row, ("nll", "bins"), 0.5)}
        | {role: {kind: texts(row, compared, 0.25) for kind in ("references", "own", "teacher")} for role in roles}
        for row in range(6)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Scores that differ between prompts, draws and trainings, and sums over tokens."""
    root = tmp_path_factory.mktemp("tidy")
    spec = make(root, [DIRECT, BY_KD, THROUGH], (1, 2, 3), ("heldout", "other"))
    rng = np.random.default_rng(3)
    for lineage, seed in spec["nodes"]:
        for name in spec["sets"]:
            folder = root / "evaluations" / lineage / f"seed{seed}" / name
            file = folder / "generations.jsonl"
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            for output in (output for row in rows for output in row["outputs"]):
                output["rougeL"] = float(rng.uniform(0, 100))
            write_lines(file, rows)
            write_lines(folder / "likelihoods/prompts.jsonl", sums(lineage))
    report = run(root, spec)
    return spec, read(spec, root / "models", root / "evaluations"), report


def gain(results, name, pair):
    wanted = {"question": pair.question, "lineage": pair.ours, "other": pair.theirs}
    return table.one(table.of(results), set=name, measure="rougeL", **wanted)


def scores_rpd(scores, lineage, name, measure="rougeL"):
    """Scores of each training, prompt and draw, out of the Parquet file alone."""
    chosen = scores[
        (scores.statistic == "score")
        & (scores.lineage == lineage)
        & (scores["set"] == name)
        & (scores.measure == measure)
    ]
    wide = chosen.pivot(index="seed", columns=["prompt", "decoding_seed"], values="value")
    assert not wide.isna().any(axis=None)
    prompts, draws = (chosen[key].nunique() for key in ("prompt", "decoding_seed"))
    return wide.sort_index().sort_index(axis=1).to_numpy().reshape(-1, prompts, draws), wide.index


def test_the_reports_means_and_differences_out_of_the_parquet_file_alone(made):
    spec, results, report = made
    scores = pd.read_parquet(report / "scores.parquet")
    found = table.of(results)
    for lineage in results.lineages:
        for name in spec["sets"]:
            for measure in ("rougeL", "exact_match"):
                array, _ = scores_rpd(scores, lineage, name, measure)
                score = table.one(found, kind="score", set=name, lineage=lineage, measure=measure)
                assert array.mean() == score.value
    pair = Pair("direct", of_chain(*THROUGH[1:]), of_chain(*DIRECT[1:]))
    assert pair in pairs(results)
    for name in spec["sets"]:
        (ours, seeds), (theirs, others) = (scores_rpd(scores, x, name) for x in pair[1:])
        assert list(seeds) == list(others) == [1, 2, 3]
        assert (ours - theirs).mean() == gain(results, name, pair).value


def test_both_files_have_every_mean(made):
    _, results, report = made
    scores = pd.read_csv(report / "scores.csv")
    assert list(scores.columns) == list(exports.COLUMNS)
    for evaluation in results.evaluations.values():
        of_model = scores[
            (scores.lineage == evaluation.node.lineage)
            & (scores.seed == evaluation.node.seed)
            & (scores["set"] == evaluation.set)
        ]
        whole = of_model[of_model.decoding_seed.isna()]
        expected = {m.name: m.of(evaluation) for m in MEASURES if m.of(evaluation) is not None}
        assert dict(zip(whole.measure, whole.value, strict=True)) == expected
        drawn = of_model[of_model.measure == "rougeL"].dropna(subset="decoding_seed")
        assert dict(zip(drawn.decoding_seed, drawn.value, strict=True)) == {
            int(key): value
            for key, value in evaluation.scores["scores"]["rougeL"]["by_seed"].items()
        }
    assert not {"direct_reverse_kl"} & set(scores[scores.lineage == "teacher-sft"].measure)
    (row,) = scores[
        (scores.lineage == of_chain(*THROUGH[1:]))
        & (scores.seed == 2)
        & (scores["set"] == "other")
        & (scores.measure == "direct_reverse_kl")
    ].to_dict("records")
    assert (row["experiment"], row["model"], row["method"]) == ("made-up", "student", "minillm")
    assert row["chain"] == "teacher → assistant → student" and row["parameters"] == 150_000
    assert row["teacher"] == "teacher-sft__assistant-minillm"
    assert (row["value"], row["better"], row["statistic"]) == (0.75, "lower", "mean")
    means = pd.read_parquet(report / "scores.parquet", filters=[("statistic", "==", "mean")])
    assert len(means) == len(scores)
    assert (means.value.to_numpy() == scores.value.to_numpy()).all()
    assert list(means.measure) == list(scores.measure) and means.prompt.isna().all()


def test_sums_over_the_tokens_of_each_prompt_are_added_over_its_texts(made):
    _, _, report = made
    scores = pd.read_parquet(report / "scores.parquet", filters=[("statistic", "==", "sum")])
    lineage = of_chain(*DIRECT[1:])
    chosen = scores[(scores.lineage == lineage) & (scores.seed == 1) & (scores["set"] == "other")]
    by_measure = {name: rows.set_index("prompt").value for name, rows in chosen.groupby("measure")}
    # 0.5 (n + 1) for the first reference of prompt n and twice that for the second; 2 + n and 3 + n tokens
    assert by_measure["references/nll"].to_dict() == {7 * n: 1.5 * (n + 1) for n in range(6)}
    assert by_measure["references/tokens"].to_dict() == {7 * n: 5 + 2 * n for n in range(6)}
    assert by_measure["direct/own/reverse_kl"].loc[14] == 2.25
    assert not [name for name in by_measure if name.startswith("first/") or "bins" in name]
    deep = scores[scores.lineage == of_chain(*THROUGH[1:])]
    assert {"direct/teacher/forward_kl", "first/teacher/forward_kl"} <= set(deep.measure)
    head = scores[scores.lineage == "teacher-sft"]
    assert set(head.measure) == {"references/nll", "references/tokens"}


def test_the_example_of_the_docs(made, monkeypatch):
    """As it stands in docs/report.md, against the report's table."""
    _, results, report = made
    page = (ROOT / "docs/report.md").read_text()
    (example,) = re.findall(r"```python\n(import pandas.*?)```", page, re.S)
    monkeypatch.chdir(report)
    said = {}
    exec(example, said)
    pair = Pair("direct", of_chain(*THROUGH[1:]), of_chain(*DIRECT[1:]))
    difference = gain(results, "heldout", pair)
    assert said["gap"].mean() == pytest.approx(difference.value, rel=1e-12)
    assert said["gap"].sem() == pytest.approx(difference.se_prompts, rel=1e-12)
