"""The provenance page: what ran, and commands that reproduce and citations that name it."""

import json
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

from conftest import Project
from sealing import write_json, write_lines
from test_report import DATA, DIRECT, make, run

from takd.analysis.results import Results, read
from takd.experiment import specs
from takd.experiment.experiment import load
from takd.experiment.lineage import Node
from takd.report import provenance, reproduce
from takd.runtime.code_digest import code_digest
from takd.runtime.digests import file_digest

ROOT = Path(__file__).resolve().parents[1]


def results_of(root, spec):
    return read(spec, root / "models", root / "evaluations")


def rows_of(table):
    """Texts of the cells of a table, with their notes."""
    return [
        [" ".join(map(str, [cell.text, *cell.notes])).strip() for cell in row.cells]
        for group in table.groups
        for row in group.rows
    ]


HOSTILE = {
    "experiment": "a b'; touch broken #",
    "title": "</title><script>alert(1)</script> 50 % & {x}_\\y \u202e",
}


def test_hostile_names_stay_text(tmp_path):
    chains = [("2.D\nrm -rf / <img src=x>", *DIRECT[1:])]
    spec = make(tmp_path, chains) | HOSTILE
    report = run(tmp_path, spec)
    for name in ("index", "results", "learning", "generations", "costs", "data", "provenance"):
        page = (report / f"{name}.html").read_text()
        assert "<script>alert" not in page and "<img" not in page, name
    results = results_of(tmp_path, spec)
    (commands,) = reproduce.numbers(results).values()
    lines = commands.splitlines()
    assert len(lines) == 2 * len(spec["nodes"])
    assert all(line.startswith("# ") for line in lines[::2])
    for line, (lineage, seed) in zip(lines[1::2], spec["nodes"], strict=True):
        target = (
            f"results/{HOSTILE['experiment']}/evaluations/{lineage}/seed{seed}/heldout/scores.json"
        )
        assert shlex.split(line)[1] == target
        assert shlex.split(line)[-1] == f"experiment={HOSTILE['experiment']}"
    cited = reproduce.bibtex(results, DATA)
    assert r"50 \% \& \{x\}\_\textbackslash{}y" in cited and "\u202e" not in cited
    assert cited.count("{") == cited.count("}")


def test_commands_ask_for_what_they_name(project: Project):
    path = project.folder / "config/experiments/small.yaml"
    spec = specs.report(load(path, project.folder))
    node = Node(*spec["nodes"][0])
    name = spec["sets"][0]
    fake = type("Fake", (), {"mean": lambda self, measure: 12.345})()
    results = Results(spec, {}, {(node, name): fake})
    told, command = reproduce.numbers(results)[name].splitlines()
    assert told.endswith(f"training seed {node.seed}: ROUGE-L 12.35") or told.endswith("12.34")
    program, *arguments = shlex.split(command)
    assert program == "snakemake"
    printed = project.run(*arguments, "--dry-run", "--quiet", "rules")
    assert re.search(r"^evaluate +1$", printed, re.M) and not re.search("^report ", printed, re.M)
    first, *_ = reproduce.whole(results).splitlines()
    program, *arguments = shlex.split(first, comments=True)
    assert re.search("^report +1$", project.run(*arguments, "--quiet", "rules"), re.M)


def test_printed_digests_can_be_checked(tmp_path):
    spec = make(tmp_path / "results/made-up", [DIRECT])
    root = tmp_path / "results/made-up"
    digest = code_digest("takd.training.train", "takd.methods.sft")
    for place, (lineage, seed) in enumerate(spec["nodes"]):
        folder = root / "models" / lineage / f"seed{seed}"
        (folder / "model").mkdir()
        weights = folder / "model/model.safetensors"
        weights.write_bytes(bytes([place]))
        manifest = json.loads((folder / "manifest.json").read_text())
        code = digest if lineage.count("-") == 1 else manifest["code"]
        changed = {"weights": {"model": file_digest(weights)}, "code": code}
        write_json(folder / "manifest.json", manifest | changed)
    results = results_of(root, spec)
    command = ["sha256sum", "--check", "--strict"]
    options = {"cwd": tmp_path, "input": reproduce.digests(results) + "\n", "text": True}
    assert subprocess.run(command, **options, capture_output=True).returncode == 0
    weights.write_bytes(b"other")
    assert subprocess.run(command, **options, capture_output=True).returncode == 1
    told, command, *_ = reproduce.code(results).splitlines()
    printed = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert told == f"# sft: {printed.stdout.strip()}" == f"# sft: {digest}"


def test_the_identity_of_a_run_changes_with_settings_data_and_weights(tmp_path):
    spec = make(tmp_path, [DIRECT])
    results = results_of(tmp_path, spec)
    one = reproduce.identity(results, DATA)
    other = reproduce.identity(replace(results, spec=spec | {"seeds": [9]}), DATA)
    assert other["settings"] != one["settings"] and other["weights"] == one["weights"]
    splits = {"train": DATA["splits"]["train"] | {"sha256": "0" * 64}}
    assert reproduce.identity(results, {"splits": splits})["data"] != one["data"]
    node, model = next(iter(results.models.items()))
    changed = replace(model, manifest=model.manifest | {"weights": {"model": "f" * 64}})
    again = reproduce.identity(replace(results, models=results.models | {node: changed}), DATA)
    assert again["weights"] != one["weights"] and again["settings"] == one["settings"]


def test_provenance_shows_starts_hardware_and_sources(tmp_path):
    spec = make(tmp_path, [DIRECT], (1, 2))
    page = (run(tmp_path, spec) / "provenance.html").read_text()
    assert f"hub made/teacher, revision {'12ab' * 10}" in page
    assert f"hub made/tokenizer, revision {'34cd' * 10}" in page
    assert "ab" * 32 in page  # the whole digest of the training rows
    assert "990 of 1\u202f000 rows" in page and "77 blocks" in page and "not installed" in page
    results = results_of(tmp_path, spec)
    used = {row[0]: row[1:] for row in rows_of(provenance.hardware(results))}
    # five trainings of two minutes each
    assert used["training"] == ["cpu", "1", "fp32", "–", "5", "10.0"]
    assert used["evaluation, answers"] == ["cpu", "–", "–", "–", "5", "2.5"]
    decoding = {row[0]: row[1:] for row in rows_of(provenance.decoding(results))}
    assert decoding["no_repeat_ngram"] == ["6", "0"] and decoding["max_new_tokens"] == ["32", "–"]


def test_provenance_shows_the_commits_and_the_code_of_all_stages(tmp_path):
    spec = make(tmp_path, [DIRECT], (1, 2))
    trained = next((tmp_path / "models").glob("*/seed1/metrics.jsonl"))
    *rows, end = [json.loads(line) for line in trained.read_text().splitlines()]
    write_lines(trained, [*rows, end | {"commit": f"{'12' * 20}-dirty", "code": "ab" * 8}])
    code = rows_of(provenance.code(results_of(tmp_path, spec)))
    assert sorted(row for row in code if row[0] == "training") == [
        ["training", f"{'12' * 20}-dirty", "ab" * 8, "1"],
        ["training", "–", "–", "4"],
    ]
    assert ["evaluation, answers", "–", "–", "5"] in code


def test_settings_are_those_that_ran_and_not_those_of_the_file(tmp_path):
    """The file asks for another weight and for the precision of the device; manifests know better."""
    spec = make(tmp_path, [DIRECT], (1, 2))
    spec["training"]["minillm"] |= {"lm_weight": 1.0, "precision": "auto"}
    ran = {"batch_size": 8, "steps": 900, "epochs": None, "rows": None, "precision": "auto"}
    for file in (tmp_path / "models").glob("*/*/manifest.json"):
        found = json.loads(file.read_text())
        settings = ran | {"learning_rate": 0.1 if found["model"] == "teacher" else 0.2}
        if found["method"] == "minillm":
            settings |= {"rollouts_per_round": 32, "inner_epochs": 4, "lm_weight": 0.0}
        settings |= (
            {"rows": 495} if found["model"] == "student" and found["method"] == "sft" else {}
        )
        write_json(file, found | {"spec": {"settings": settings}, "precision": "bf16"})
    results = results_of(tmp_path, spec)
    table = provenance.settings(results)
    assert [column.title for column in table.columns] == ["Setting", "SFT", column_of("minillm")]
    rows = {row[0]: row[1:] for row in rows_of(table)}
    assert rows["lm_weight"] == ["–", "0.0"] and rows["precision"] == ["bf16", "bf16"]
    assert rows["learning_rate"] == ["0.2: student 0.1: teacher", "0.2"]
    trained = {row[0]: row[1:] for row in rows_of(provenance.trainings(results, DATA))}
    # 900 steps of 8 rows; 57 rounds (of 16 steps) of 32 prompts
    assert [row[:3] for row in trained.values()] == [
        ["starting weights", "990 7\u202f200 drawn, 7.3 passes", "900 steps 900"],
        ["starting weights", "495 of 990 7\u202f200 drawn, 15 passes", "900 steps 900"],
        ["SFT, same seed", "990 1\u202f824 drawn, 1.8 passes", "900 steps 900"],
    ]
    assert [row[3:] for row in trained.values()][-1] == ["200 (seed 1) 200 (seed 2)", "6"]


def column_of(method):
    return provenance.method_title(method)
