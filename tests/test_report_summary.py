"""The report's words: sentences against results whose truth is known, commands that are run, hostile names."""

import json
import random
import re
from pathlib import Path

import pytest
from sealing import write_json, write_lines
from test_report import BY_KD, DATA, DEEP, DIRECT, STUDY, THROUGH, make, rows_of, run

from takd.analysis import limits, measures
from takd.analysis.questions import QUESTIONS
from takd.analysis.results import Results, read
from takd.experiment.lineage import of_chain
from takd.pages import tables
from takd.pages.tables import Cell, Column, Group, Table, TableRow
from takd.report import results_page, score_tables, summary
from takd.report.figures import forest
from takd.report.model_pages import card_html
from takd.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
STRAIGHT, LONGER, KD = (of_chain(*chain[1:]) for chain in (DIRECT, THROUGH, BY_KD))


def results_of(root: Path, spec: dict) -> Results:
    return read(spec, root / "models", root / "evaluations")


def rescore(root: Path, spec: dict, truth, prompts: int = 60) -> Results:
    """Give each model scores on more prompts: `truth(lineage, seed, set)` plus the prompt’s own part and noise."""
    for lineage, seed in spec["nodes"]:
        for name in spec["sets"]:
            noise = random.Random(f"{lineage} {seed} {name}")
            folder = root / "evaluations" / lineage / f"seed{seed}" / name
            (row, *_) = map(json.loads, (folder / "generations.jsonl").read_text().splitlines())
            rows, part = [], 0.0
            for prompt in range(prompts):
                # each draw once up and once down: means are the truth, whatever chance says
                part = noise.uniform(-2, 2) if prompt % 2 == 0 else -part
                value = truth(lineage, seed, name) + 5 * (prompt // 2 % 3) + part
                outputs = [
                    output | {"rougeL": value, "exact_match": 0.0} for output in row["outputs"]
                ]
                rows.append(row | {"id": prompt, "outputs": outputs})
            write_lines(folder / "generations.jsonl", rows)
    return results_of(root, spec)


def test_differences_that_are_there_are_significant_and_others_counted(tmp_path):
    spec = make(tmp_path, [DIRECT, THROUGH], sets=("heldout", "other"))

    def truth(lineage, seed, name):
        return {LONGER: 38.0, "teacher-sft": 60.0}.get(lineage, 30.0)

    results = rescore(tmp_path, spec, truth)
    found = summary.tested(results, "heldout")
    assert found.startswith("Significant differences on heldout, for these checkpoints alone: ")
    assert "straight from the teacher, 1 of 1 (1 higher) in ROUGE-L and 0 of 1 in exact" in found
    assert "against the SFT baseline, 1 of 3 (1 higher) in ROUGE-L and 0 of 3 in exact" in found
    best = summary.best(results, "heldout")
    assert best.startswith("Top teacher: teacher has ROUGE-L 6") and best.endswith(
        "MiniLLM: teacher → assistant → student."
    )
    assert summary.reversed_elsewhere(results) == []
    (lines,) = [
        block.lines
        for block in forest.blocks(results, "heldout", "rougeL")
        if block.title == QUESTIONS["direct"].title
    ]
    (line,) = lines
    assert line.label == "MiniLLM: teacher → assistant → student" and not line.hollow
    assert line.number.value == pytest.approx(8, abs=0.8)
    assert line.text.startswith("significant, p\u00a0")


def test_where_nothing_differs_all_lines_are_hollow(tmp_path):
    spec = make(tmp_path, STUDY, sets=("dolly",))
    results = rescore(tmp_path, spec, lambda *_: 30.0)
    assert not re.search("higher|lower", summary.tested(results, "dolly"))
    blocks = forest.blocks(results, "dolly", "rougeL")
    assert [block.title for block in blocks] == [
        QUESTIONS[each].title for each in ("direct", "sft", "method")
    ]
    assert all(line.hollow and line.text.startswith("n.s., p") for b in blocks for line in b.lines)


def test_several_trainings_that_disagree_are_significant_for_these_checkpoints_alone(tmp_path):
    spec = make(tmp_path, [DIRECT], (1, 2, 3))
    gains = {1: 1.0, 2: 9.0, 3: 2.0}
    results = rescore(tmp_path, spec, lambda line, seed, _: 30 + gains[seed] * (line == STRAIGHT))
    assert "across training seeds: against the SFT baseline, 0 of 1 in" in summary.tested(
        results, "heldout"
    )
    table = results_page.tests(results, "heldout")
    (row,) = table.groups[0].rows
    assert [cell.text for cell in row.cells[2:4]] == ["n.s.", "significant"]
    assert [column.title for column in table.columns[2:4]] == [
        "Across training seeds",
        "These checkpoints",
    ]
    # the value of each seed stands with the mean
    seeds = [float(text.replace("−", "-")) for text in row.cells[1].notes[0].split(", ")]
    assert seeds == pytest.approx([1, 9, 2], abs=0.5)
    agree = rescore(tmp_path, spec, lambda line, seed, _: 30 + 8.0 * (line == STRAIGHT))
    assert "SFT baseline, 1 of 1 (1 higher) in ROUGE-L" in summary.tested(agree, "heldout")


def test_a_difference_that_is_reversed_on_another_set_is_named(tmp_path):
    spec = make(tmp_path, [DIRECT, THROUGH], sets=("heldout", "other"))

    def truth(lineage, seed, name):
        return 30 + (lineage == LONGER) * (8 if name == "heldout" else -8)

    (sentence,) = summary.reversed_elsewhere(rescore(tmp_path, spec, truth))
    assert sentence.startswith("Significant the other way elsewhere: MiniLLM: teacher → assistant")
    assert sentence.count(" on other") == 2  # over SFT, and over direct distillation


def test_one_chain_with_one_seed(tmp_path):
    spec = make(tmp_path, [DIRECT])
    results = results_of(tmp_path, spec)
    assert summary.trained(results) == (
        "1 chain from teacher (1.4M) to student (150K): 3 models, 3 trainings with training seed 1, evaluated on"
        " the prompts of heldout (6)."
    )
    page = (run(tmp_path, spec) / "index.html").read_text()
    assert "With one training seed" in page and "No two models here answer: through ass" in page
    single = rescore(tmp_path, spec, lambda *_: 30.0, prompts=1)
    assert forest.blocks(single, "heldout", "rougeL")[0].lines[0].text == ""
    single = results_page.tests(single, "heldout")
    assert [cell.text for cell in single.groups[0].rows[0].cells[2:3]] == ["–"]


def test_arms_that_differ_in_data_or_start_are_said_first(tmp_path):
    spec = make(tmp_path, [DIRECT, BY_KD])
    for lineage, settings in ((STRAIGHT, {"rows": None}), (KD, {"rows": 3, "dropout": 0.1})):
        file = tmp_path / "models" / lineage / "seed1/manifest.json"
        manifest = json.loads(file.read_text())
        changed = {"spec": {"settings": {"dropout": 0.0} | settings}}
        if lineage == KD:
            changed["inputs"] = {"base": ["0" * 64]}
        write_json(file, manifest | changed)
    results = results_of(tmp_path, spec)
    (group,) = [g for g in results_page.tests(results, "heldout").groups if "Method" in g.title]
    cell = group.rows[0].cells[0]
    first, against = cell.notes
    assert first.startswith("Arms differ in data or start: ")
    assert "training rows" in first and "start" in first
    assert against.startswith("− ") and "dropout" in cell.fold[1]
    page = (run(tmp_path, spec) / "index.html").read_text()
    assert "arms differ in training rows" in page


def test_published_numbers_stand_beside_ours(tmp_path):
    # of one source, in two entries
    parts = ({"teacher-sft": {"heldout": 95.0}}, {STRAIGHT: {"heldout": 20.0}})
    targets = [{"source": "Two", "scores": scores} for scores in parts]
    spec = make(tmp_path, [DIRECT], targets=targets)
    table = score_tables.main_table(results_of(tmp_path, spec), "heldout")
    place = [column.title for column in table.columns].index("Published")
    cells = {row.lineage: row.cells[place].text for g in table.groups for row in g.rows}
    # a star: outside our interval
    assert cells == {
        "teacher-sft": "95.0 [1]: 0.0",
        "student-sft": "",
        STRAIGHT: "20.0 [1]: +58.0*",
    } | {"teacher-sft": cells["teacher-sft"]}
    assert cells["teacher-sft"] in ("95.0 [1]: +0.0", "95.0 [1]: 0.0")
    report = run(tmp_path, spec)
    assert "[1] Two" in (report / "results.html").read_text()
    (row,) = rows_of((report / "results.csv").read_text(), lineage=STRAIGHT)
    assert (row["published_1"], row["published_1_source"]) == ("20", "Two")


def test_strata_have_tests_of_their_own(tmp_path):
    spec = make(tmp_path, [DIRECT])
    for file in (tmp_path / "evaluations").rglob("generations.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        write_lines(file, [row | {"stratum": "ab"[place % 2]} for place, row in enumerate(rows)])
    found = results_page.by_stratum(results_of(tmp_path, spec), "heldout")
    assert list(found) == ["a", "b"]
    assert "a family of 2" in found["a"].groups[0].title


def test_a_stratum_that_falls_in_every_training_seed_is_named(tmp_path):
    spec = make(tmp_path, [DIRECT], (1, 2))
    for file in (tmp_path / "evaluations").rglob("generations.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for place, row in enumerate(rows):
            row["stratum"] = "ab"[place % 2]
            falls = row["stratum"] == "b" and STRAIGHT in file.parts
            for output in row["outputs"]:
                output |= {"rougeL": 50.0 - 20 * falls, "exact_match": 0.0}
        write_lines(file, rows)
    results = results_of(tmp_path, spec)
    assert summary.worse_in_strata(results, "heldout") == [
        "Strata of heldout below the SFT baseline in every training seed. ROUGE-L: b (MiniLLM: teacher → student)."
    ]


def test_a_table_as_latex_and_markdown():
    columns = [Column("Model", "name"), Column("50 % & more", note="h")]
    cells = [Cell("MiniLLM: a_b → c", tag="3.B"), Cell("−1.5", notes=("−2.0 to +1.0", "n.s."))]
    table = Table(columns, [Group("Chains | all", [TableRow(cells)])])
    assert tables.latex(table) == (
        "\\begin{tabular}{lr}\n\\toprule\nModel & 50 \\% \\& more (h) \\\\\n\\midrule\n"
        "\\multicolumn{2}{l}{\\textit{Chains | all}} \\\\\n"
        "MiniLLM: a\\_b $\\to$ c [3.B] & $-$1.5 ($-$2.0 to +1.0; n.s.) \\\\\n\\bottomrule\n\\end{tabular}\n"
    )
    assert tables.markdown(table).splitlines() == [
        "| Model | 50 % & more (h) |",
        "| --- | ---: |",
        "| **Chains \\| all** |  |",
        "| MiniLLM: a\\_b → c \\[3.B\\] | −1.5 (−2.0 to +1.0; n.s.) |",
    ]


def test_a_card_is_shown_without_its_front_matter_and_its_html_is_text():
    shown = card_html(
        "---\nlicense: mit\n---\n# A model\n\n| a | b |\n|---|---|\n| 1 | <b>2</b> |\n"
    )
    assert "license" not in shown and "<h1>A model</h1>" in shown and "<td>1</td>" in shown
    assert "<b>" not in shown
    assert card_html("# Plain") == "<h1>Plain</h1>\n"


def test_a_missing_card_is_named(tmp_path):
    spec = make(tmp_path, [DIRECT])
    (tmp_path / "models" / STRAIGHT / "seed1/card.md").unlink()
    with pytest.raises(InputError, match=f"{STRAIGHT}/seed1/card.md: not found; start snakemake"):
        run(tmp_path, spec)


def test_prompts_that_were_trained_on_are_said():
    leak = {"split": "train", "other": "heldout", "rows": 4, "other_rows": 3, "examples": []}
    report = {
        "splits": DATA["splits"],
        "leaks": [leak, leak | {"other": "dev"}, leak | {"other_rows": 0}],
    }
    (words,) = limits.leaks(report)
    assert words == "Models were trained on some prompts that they answer: 3 prompts of heldout."
    dropped = DATA["splits"]["train"] | {"counts": {"rows": 9, "kept": 5, "dropped_leaks": 4}}
    assert limits.leaks(report | {"splits": {"train": dropped}}) == []


def test_other_measures_are_rows_with_their_direction(tmp_path):
    results = results_of(tmp_path, make(tmp_path, [DIRECT, DEEP], (1, 2)))
    found = {}
    for table in results_page.other_measures(results, "heldout"):
        assert len(table.columns) <= results_page.BESIDE + 1
        for row in table.groups[0].rows:
            cells = zip(table.columns[1:], row.cells[1:], strict=True)
            found |= {(row.cells[0].text, column.title): cell for column, cell in cells}
    name = "MiniLLM: teacher → student"
    assert found["Reverse KL to its teacher ↓", name].text == "0.500"
    assert found["Distinct-2 ↑", name].text == "20.0" and found["Self-BLEU ↓", name].value == "55.5"
    assert found["Reverse KL to its teacher ↓", "SFT: teacher"][:2] == ("–", "")
    assert not any(title.startswith(("ROUGE-L", "Exact match")) for title, _ in found)


def test_every_measure_has_a_definition_of_its_own():
    texts = [measure.definition for measure in measures.MEASURES]
    assert len(set(texts)) == len(texts)
