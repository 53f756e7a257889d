"""Teacher caches in the costs: minutes and tokens counted by hand."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import test_compare
from browser import browser, faults, visit
from sealing import write_json, write_lines
from test_report import BY_KD, DATA, DIRECT, make, rows_of, run

from takd.analysis import costs
from takd.analysis.results import read
from takd.experiment.lineage import of_chain
from takd.experiment.teacher_cache import CacheEntry
from takd.report import costs_page, provenance, reproduce
from takd.report.figures.quality import quality
from takd.runtime.digests import file_digest
from takd.runtime.errors import InputError
from takd.runtime.files import read_json

TEACHER, LIVE, STORED = "teacher-sft", of_chain(*DIRECT[1:]), of_chain(*BY_KD[1:])
THROUGH = ("3.K", ["teacher", "assistant", "student"], ["kd", "kd"])
DEEP, ASSISTANT = of_chain(*THROUGH[1:]), "teacher-sft__assistant-kd"
ANSWERS = CacheEntry(TEACHER, 1, "generations", 2)
OUTPUTS = CacheEntry(TEACHER, 1, "outputs/generations/top_k", None)
OWN = [CacheEntry(ASSISTANT, seed, "outputs/train/hidden", None) for seed in (1, 2)]


def write_ahead(root: Path, spec: Any, entry: CacheEntry, logs: Any, readers: Any) -> None:
    """What a teacher wrote in as many parts as there are `logs`, and who read it, as lineage and training seed."""
    manifest = root / "teachers" / entry.manifest
    manifest.parent.mkdir(parents=True)
    write_json(manifest, {"kind": "made up", "lineage": entry.teacher, "seed": entry.seed})
    for path, values in zip(entry.logs, logs, strict=True):
        end = {"kind": "end", "device": "cpu", "processes": 1, "commit": "abc", "code": "digest"}
        write_lines(root / "teachers" / path, [end | values])
    for lineage, seed in readers:
        file = root / "models" / lineage / f"seed{seed}/manifest.json"
        found = read_json(file)
        name = "train" if entry.parts else "outputs"
        found["inputs"][name] = [file_digest(manifest)]
        write_json(file, found)
    spec["teacher_cache"].append(list(entry))


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
    for entry, seconds, tokens in zip(OWN, (72.0, 144.0), (700, 800), strict=True):
        reader = [(DEEP, entry.seed)]
        write_ahead(root, spec, entry, [{"seconds": seconds, "tokens": tokens}], reader)


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
    runs = costs.runs(full.results)
    stages = {
        row.cells[0].text: texts(row) for row in rows_in(costs_page.by_stage(full.results, runs))
    }
    assert list(stages)[-5:-3] == ["teacher, answers", "teacher, outputs"]
    # 600 + 2 x 1200 s; runs, minutes, hours, tokens
    assert stages["teacher, answers"][1:] == ["2", "30.0", "0.83", "1\u202f500"]
    assert stages["teacher, outputs"][1:] == ["3", "9.6", "0.16", "10\u202f500"]
    # 2 minutes a training, 0.6 an evaluation, 39.6 for caches
    assert stages["all"][2] == f"{2.6 * len(full.spec['nodes']) + 39.6:.1f}"
    table = costs_page.caches(full.results, runs)
    assert table is not None
    assert [texts(row)[2:5] for row in rows_in(table)] == [
        ["2", "30.0", "0.83"],
        ["1", "6.0", "0.10"],
        ["2", "3.6", "0.06"],
    ]
    assert "not recorded" not in (full.report / "costs.html").read_text()


def rows_in(table: Any) -> list[Any]:
    return [row for group in table.groups for row in group.rows]


def texts(row: Any) -> list[str]:
    return [str(cell.text) for cell in row.cells]


def test_what_was_written_ahead_is_among_what_a_model_needs_and_counts_once(
    full: SimpleNamespace,
) -> None:
    found = costs.cumulative(full.results)
    # a training is 1/30 h; (600 + 2 x 1200) s of answers and 360 s of outputs
    ahead = 3000 / 3600 + 0.1
    assert found[LIVE]["hours"] == pytest.approx({1: 0.1, 2: 0.1})
    assert found[STORED]["hours"] == pytest.approx({1: 0.1 + ahead, 2: 0.1 + ahead})
    assert found[ASSISTANT]["hours"] == found[STORED]["hours"]
    # five trainings; what the assistant read, and what it wrote with each training seed
    assert found[DEEP]["hours"] == pytest.approx(
        {1: 5 / 30 + ahead + 0.02, 2: 5 / 30 + ahead + 0.04}
    )
    # tokens that were drawn, and not those that a teacher only reads
    tokens = [found[name]["tokens"][2] for name in (LIVE, STORED, DEEP)]
    assert tokens == [90_000, 91_500, 151_500]
    assert found[TEACHER]["hours"] == pytest.approx({1: 1 / 30})
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
    hours = {h for cost in costs.cumulative(results).values() for h in cost["hours"].values()}
    assert sorted(hours) == pytest.approx([1 / 30, 0.1])


def test_hardware_and_code_of_teacher_caches(full: SimpleNamespace) -> None:
    used = [texts(row) for row in rows_in(provenance.hardware(full.results))]
    assert [row[:3] + row[5:] for row in used if row[0].startswith("teacher")] == [
        ["teacher, answers", "cpu", "1", "1", "10.0"],
        ["teacher, answers", "cpu", "2", "1", "20.0"],
        ["teacher, outputs", "cpu", "1", "3", "9.6"],
    ]
    code = [texts(row) for row in rows_in(provenance.code(full.results))]
    assert [row for row in code if row[0].startswith("teacher")] == [
        ["teacher, answers", "abc", "digest", "2"],
        ["teacher, outputs", "abc", "digest", "3"],
    ]
    assert (full.report / "provenance.html").read_text().count(">teacher, outputs</td>") == 2


def test_the_number_of_parts_identifies_no_run(full: SimpleNamespace) -> None:
    other = replace(full.results, spec=full.spec | {"teacher_cache": []})
    assert reproduce.identity(other, DATA) == reproduce.identity(full.results, DATA)


def test_device_of_what_was_written_ahead_names_the_hours(tmp_path: Path) -> None:
    spec = make(tmp_path, [BY_KD])
    write_ahead(tmp_path, spec, OUTPUTS, [{"seconds": 1.0, "device": "NVIDIA H100"}], [(STORED, 1)])
    results = read(spec, *(tmp_path / name for name in ("models", "evaluations", "teachers")))
    assert costs.unit(results) == "hours of CPU or GPU"


def test_a_run_without_it_says_nothing_of_it(tmp_path: Path) -> None:
    report = run(tmp_path, make(tmp_path, [DIRECT]))
    assert "teacher, " not in (report / "costs.csv").read_text()
    for name in ("costs.html", "provenance.html"):
        page = (report / name).read_text()
        assert "eacher cache" not in page and "teacher, outputs" not in page, name


def test_cpu_hours_are_measured_where_the_log_has_them(tmp_path: Path) -> None:
    spec = make(tmp_path, [DIRECT])
    results = read(spec, *(tmp_path / name for name in ("models", "evaluations")))
    runs = costs.runs(results)
    old = costs_page.how(runs)
    assert old == "CPU hours are wall time × processes, as older logs hold no CPU time"
    end = runs["end"][0]
    measured = costs.of_log(end | {"cpu_seconds": 1800.0})
    assert measured["hours"] == 0.5
    assert "measured CPU time" in costs_page.how(pd.DataFrame([measured]))
    gpu = pd.DataFrame([costs.of_log(end | {"device": "NVIDIA H100"})])
    assert costs_page.how(gpu) == "GPU hours are wall time × GPUs"


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
        assert "Teacher caches" in seen.text


def test_experiments_are_compared_by_it_too(tmp_path: Path) -> None:
    chains = [DIRECT, BY_KD, THROUGH]
    live, stored = (test_compare.made(tmp_path, name, chains) for name in ("live", "stored"))
    out = test_compare.run(tmp_path, live, stored)
    assert "writing" not in (out / "comparison.csv").read_text()
    assert "Teacher cache" not in (out / "comparison.html").read_text()
    write_all(tmp_path / "stored", stored["report"])
    out = test_compare.run(tmp_path, live, stored)
    for measure, expected in (("writing_minutes", 36.0), ("writing_tokens", 10_500.0)):
        lines = test_compare.rows(out / "comparison.csv", lineage=TEACHER, measure=measure)
        found = {row["experiment"]: float(row["value"]) for row in lines}
        assert found == {"live": 0.0, "stored": expected}
    page = (out / "comparison.html").read_text()
    assert "Teacher cache minutes" in page and re.search(
        r">all models</td>\s*<td[^>]*>0.0</td>\s*<td[^>]*>39.6<", page
    )


def test_json_of_a_writing_is_what_it_is_read_from() -> None:
    for entry in (ANSWERS, OUTPUTS):
        assert CacheEntry(*json.loads(json.dumps(entry))) == entry
