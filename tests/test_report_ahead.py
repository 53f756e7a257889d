"""What teachers write ahead for their students, in the costs: minutes and tokens counted by hand."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_compare
from browser import browser, faults, visit
from sealing import write_json, write_lines
from test_report import BY_KD, DATA, DIRECT, make, rows_of, run

from takd.analysis import costs, cumulative_costs
from takd.analysis.results import read
from takd.experiment.lineage import of_chain
from takd.experiment.teacher_cache import Writing
from takd.report import hardware, repeat
from takd.report.figures.quality import quality
from takd.runtime.digests import file_digest
from takd.runtime.errors import InputError
from takd.runtime.files import read_json

TEACHER, LIVE, STORED = "teacher-sft", of_chain(*DIRECT[1:]), of_chain(*BY_KD[1:])
THROUGH = ("3.K", ["teacher", "assistant", "student"], ["kd", "kd"])
DEEP, ASSISTANT = of_chain(*THROUGH[1:]), "teacher-sft__assistant-kd"
ANSWERS = Writing(TEACHER, 1, "generations", 2)
OUTPUTS = Writing(TEACHER, 1, "outputs/generations/top_k", None)
OWN = [Writing(ASSISTANT, seed, "outputs/train/hidden", None) for seed in (1, 2)]


def write_ahead(root: Path, spec: Any, writing: Writing, logs: Any, readers: Any) -> None:
    """What a teacher wrote in as many parts as there are `logs`, and who read it, as lineage and training seed."""
    manifest = root / "teachers" / writing.manifest
    manifest.parent.mkdir(parents=True)
    write_json(manifest, {"kind": "made up", "lineage": writing.teacher, "seed": writing.seed})
    for path, values in zip(writing.logs, logs, strict=True):
        end = {"kind": "end", "device": "cpu", "processes": 1, "commit": "abc", "code": "digest"}
        write_lines(root / "teachers" / path, [end | values])
    for lineage, seed in readers:
        file = root / "models" / lineage / f"seed{seed}/manifest.json"
        found = read_json(file)
        name = "train" if writing.parts else "outputs"
        found["inputs"][name] = [file_digest(manifest)]
        write_json(file, found)
    spec["written"].append(list(writing))


def write_all(root: Path, spec: Any) -> None:
    """A teacher's answers in two parts and its outputs on them, read by two students, one of which teaches, too."""
    readers = [(lineage, seed) for lineage in (STORED, ASSISTANT) for seed in (1, 2)]
    parts = [
        {"seconds": 600.0, "tokens": 1_000},
        {"seconds": 1200.0, "tokens": 500, "processes": 2},
    ]
    write_ahead(root, spec, ANSWERS, parts, readers)
    # parts of an earlier number of parts lie there still
    stale = root / "teachers" / ANSWERS.folder / "part3of3/metrics.jsonl"
    write_lines(stale, [{"kind": "end", "seconds": 1e6, "tokens": 10**9}])
    write_ahead(root, spec, OUTPUTS, [{"seconds": 360.0, "tokens": 9_000}], readers)
    for writing, seconds, tokens in zip(OWN, (72.0, 144.0), (700, 800), strict=True):
        reader = [(DEEP, writing.seed)]
        write_ahead(root, spec, writing, [{"seconds": seconds, "tokens": tokens}], reader)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("ahead")
    spec = make(root, [DIRECT, BY_KD, THROUGH], (1, 2))
    write_all(root, spec)
    folders = [root / name for name in ("models", "evaluations", "teachers")]
    return SimpleNamespace(
        root=root, spec=spec, report=run(root, spec), results=read(spec, *folders)
    )


def test_costs_of_a_teacher_hold_what_it_wrote_by_stage(full: SimpleNamespace) -> None:
    text = (full.report / "costs.csv").read_text()
    lines = [row for row in rows_of(text) if row["stage"].startswith("teacher")]
    found = {
        (r["lineage"], r["stage"]): (
            float(r["minutes"]),
            int(r["tokens"]),
            int(r["training_seeds"]),
        )
        for r in lines
    }
    # both parts together; the assistant's of both training seeds
    assert found == {
        (TEACHER, "teacher, answers"): (30.0, 1_500, 1),
        (TEACHER, "teacher, outputs"): (6.0, 9_000, 1),
        (ASSISTANT, "teacher, outputs"): (pytest.approx(3.6), 1_500, 2),
    }
    devices = [row["device"] for row in lines]
    assert devices == ["2 × cpu, cpu", "cpu", "cpu"]
    stages = {each.stage: each for each in costs.by_stage(costs.by_lineage(full.results), 1)}
    assert list(stages)[-4:-2] == ["teacher, answers", "teacher, outputs"]
    assert (stages["teacher, answers"].runs, stages["teacher, answers"].minutes) == (2, 30.0)
    outputs = stages["teacher, outputs"]
    assert (outputs.runs, outputs.minutes, outputs.tokens) == (3, pytest.approx(9.6), 10_500)
    # 2 minutes a training, 0.6 an evaluation, 39.6 ahead
    count = len(full.spec["nodes"])
    page = (full.report / "costs.html").read_text()
    assert f"<strong>{2.6 * count + 39.6:.1f}</strong>" in page and "not recorded" not in page
    told = re.findall(r"<td>teacher, (\w+)</td>(.*?)</tr>", page)
    by_teacher = [re.findall(r">([\d.\u202f]+)<", cells) for _, cells in told]
    assert by_teacher[2:] == [
        ["1", "2", "30.0", "1\u202f500"],
        ["1", "1", "6.0", "9\u202f000"],
        ["2", "2", "3.6", "1\u202f500"],
    ]


def test_what_was_written_ahead_is_among_what_a_model_needs_and_counts_once(
    full: SimpleNamespace,
) -> None:
    found = {cost.lineage: cost for cost in cumulative_costs.accumulate(full.results)}
    # a training is 1/30 h; (600 + 2 x 1200) s of answers and 360 s of outputs
    ahead = 3000 / 3600 + 0.1
    assert found[LIVE].hours == pytest.approx({1: 0.1, 2: 0.1})
    assert found[STORED].hours == pytest.approx({1: 0.1 + ahead, 2: 0.1 + ahead})
    assert found[ASSISTANT].hours == found[STORED].hours
    # five trainings; what the assistant read, and what it wrote with each training seed
    assert found[DEEP].hours == pytest.approx({1: 5 / 30 + ahead + 0.02, 2: 5 / 30 + ahead + 0.04})
    # tokens that were drawn, and not those that a teacher only reads
    tokens = [found[name].tokens[2] for name in (LIVE, STORED, DEEP)]
    assert tokens == [90_000, 91_500, 151_500]
    assert found[TEACHER].hours == pytest.approx({1: 1 / 30})
    text = (full.report / "quality.csv").read_text()
    hours = {row["lineage"]: float(row["hours"]) for row in rows_of(text)}
    assert hours[LIVE] == pytest.approx(0.1, abs=1e-3)
    assert hours[STORED] == hours[ASSISTANT] == pytest.approx(1.0333, abs=1e-3)
    assert hours[DEEP] == pytest.approx(1.13, abs=1e-3)
    assert text == quality(full.results).csv


def test_a_model_that_did_not_read_it_does_not_pay_for_it(tmp_path: Path) -> None:
    spec = make(tmp_path, [DIRECT, BY_KD])
    write_ahead(tmp_path, spec, ANSWERS, [{"seconds": 3600.0, "tokens": 1}] * 2, [])
    results = read(spec, *(tmp_path / name for name in ("models", "evaluations", "teachers")))
    assert {cost.mean_hours for cost in cumulative_costs.accumulate(results)} == {1 / 30, 0.1}


def test_hardware_and_code_of_what_was_written_ahead(full: SimpleNamespace) -> None:
    used = {(u.stage, u.processes): (u.device, u.runs) for u in hardware.used(full.results)}
    assert used["teacher, answers", 1] == used["teacher, answers", 2] == ("cpu", 1)
    assert used["teacher, outputs", 1] == ("cpu", 3)
    found = [code for code in hardware.codes(full.results) if code.stage.startswith("teacher")]
    assert found == [
        ("teacher, answers", "abc", "digest", 2),
        ("teacher, outputs", "abc", "digest", 3),
    ]
    page = (full.report / "provenance.html").read_text()
    assert page.count("<td>teacher, outputs</td>") == 2
    assert "what teachers wrote ahead for their students 59.6 CPU process minutes" in (
        full.report / "overview.html"
    ).read_text().replace("\n", " ")


def test_the_number_of_parts_identifies_no_run(full: SimpleNamespace) -> None:
    other = replace(full.results, spec=full.spec | {"written": []})
    assert repeat.identity(other, DATA) == repeat.identity(full.results, DATA)


def test_device_of_what_was_written_ahead_names_the_hours(tmp_path: Path) -> None:
    spec = make(tmp_path, [BY_KD])
    write_ahead(tmp_path, spec, OUTPUTS, [{"seconds": 1.0, "device": "NVIDIA H100"}], [(STORED, 1)])
    results = read(spec, *(tmp_path / name for name in ("models", "evaluations", "teachers")))
    assert cumulative_costs.unit(results) == "hours of CPU or GPU"


def test_a_run_without_it_says_nothing_of_it(tmp_path: Path) -> None:
    report = run(tmp_path, make(tmp_path, [DIRECT]))
    assert "teacher, " not in (report / "costs.csv").read_text()
    assert "for its students" not in (report / "costs.svg").read_text()
    for name in ("costs.html", "overview.html", "provenance.html"):
        page = (report / name).read_text()
        assert "wrote ahead" not in page and "teacher, outputs" not in page, name


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    spec = make(tmp_path, [BY_KD])
    write_ahead(tmp_path, spec, ANSWERS, [{"seconds": 1.0}] * 2, [(STORED, 1)])
    (tmp_path / "teachers" / ANSWERS.logs[1]).unlink()
    with pytest.raises(InputError, match=r"generations/part2of2/metrics\.jsonl: not found"):
        run(tmp_path, spec)


def test_the_costs_in_a_browser(full: SimpleNamespace) -> None:
    with browser() as started:
        for width in (1280, 390):
            found: list[str] = []
            seen = visit(
                started,
                full.report / "costs.html",
                lambda page, to=found: to.extend(faults(page)),
                width,
            )
            assert (seen.external, seen.complaints, found) == ([], [], []), width
        assert "What teachers wrote ahead" in seen.text and "for its students" in seen.text


def test_experiments_are_compared_by_it_too(tmp_path: Path) -> None:
    chains = [DIRECT, BY_KD, THROUGH]
    live, stored = (test_compare.made(tmp_path, name, chains) for name in ("live", "stored"))
    out = test_compare.run(tmp_path, live, stored)
    assert "writing" not in (out / "comparison.csv").read_text()
    assert "riting ahead" not in (out / "comparison.html").read_text()
    write_all(tmp_path / "stored", stored["report"])
    out = test_compare.run(tmp_path, live, stored)
    for measure, expected in (("writing_minutes", 36.0), ("writing_tokens", 10_500.0)):
        lines = test_compare.rows(out / "comparison.csv", lineage=TEACHER, measure=measure)
        found = {row["experiment"]: float(row["value"]) for row in lines}
        assert found == {"live": 0.0, "stored": expected}
    page = (out / "comparison.html").read_text()
    assert "Minutes of writing ahead, stored" in page and '<th class="num">39.6</th>' in page


def test_json_of_a_writing_is_what_it_is_read_from() -> None:
    for writing in (ANSWERS, OUTPUTS):
        assert Writing(*json.loads(json.dumps(writing))) == writing
