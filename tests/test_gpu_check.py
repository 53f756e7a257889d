"""The script for a machine with a card, as far as a CPU can run it, and the page that its result goes to."""

import json
import math
import os
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import gpu_check
import table
from gpu_check import STAGES
from gpu_checks.running import Findings, supervised

FAMILIES = ("gpt2", "opt", "llama", "mistral", "qwen2", "gemma3")


def test_all_stages_run_on_the_cpu_and_find_something(tmp_path, monkeypatch):
    """Once, in tiny, through its command line; every number is one that this run measured."""
    path = tmp_path / "found.json"
    options = ["--quick", "--threads=1", "--json", str(path), "--seconds=900"]
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu_check.py", *options])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    status = gpu_check.main()
    stages = json.loads(path.read_text())["stages"]
    assert list(stages) == [name for name, _, _ in STAGES]
    for name, stage in stages.items():
        assert stage["ended"] == "ok", (
            f"{name}: {stage['ended']}, {stage['failed']}, {stage['missed']}"
        )
        assert stage["found"], name
    assert status == 0
    found = {name: stage["found"] for name, stage in stages.items()}
    assert found["facts"]["products in fp32, TFLOP/s"] > 0
    assert found["families"] == {f"{family} bf16": "ok" for family in FAMILIES}
    assert all(0 <= error < 0.1 for error in found["gates"].values())
    parity = found["parity"]
    assert parity["noise: share of equal bits"] == parity["fp32: texts equal to the CPU's"] == 1.0
    assert 0 < parity["autocast bf16: relative error of the gradient"] < 0.05
    assert found["graphs"]["llama bf16: share of equal texts"] == 1.0
    assert found["compiled"]["mixed: share of equal texts"] == 1.0
    assert found["overflow"]["largest entry before it is scaled"] > 65504
    assert found["resume"]["bf16: equal"] == 1.0
    assert found["zero"]["zero3"] == "ok"
    rates = [value for name, value in found["decoding"].items() if "tokens/s" in name]
    assert len(rates) >= 5
    assert min(rates) > 0
    assert sum(found["minillm"]["takd, first round by part, s"].values()) > 0
    assert found["minillm"]["reference's schedule, 8 responses, s"] > 0
    assert 0 < found["training"]["4 rows: share of its products' rate"] < 1
    assert found["training"]["4 rows: bytes planned"] > found["training"]["2 rows: bytes planned"]
    assert math.isfinite(found["asking"]["reverse KL"])


# Stages that go wrong, in processes of their own --------------------------------------------------


def finds_and_fails(findings: Findings) -> None:
    findings.add("before", 1)
    with findings.part("first"):
        raise ValueError("of the first part")
    findings.hold("too large", 3.0, most=2.0)
    findings.hold("not a number", math.nan, most=2.0)
    findings.add("after", 2)


def crashes(findings: Findings) -> None:
    findings.add("before", 1)
    os._exit(139)


def overruns(findings: Findings) -> None:
    findings.add("before", 1)
    time.sleep(600)


@pytest.mark.parametrize(
    ("stage", "ended"),
    [("finds_and_fails", "failed"), ("crashes", "crashed"), ("overruns", "overran")],
)
def test_a_stage_that_goes_wrong_leaves_what_it_found(stage, ended, monkeypatch):
    monkeypatch.setattr("gpu_checks.running.GRACE", 0.0)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    began = time.monotonic()
    result = supervised(
        f"{__name__}:{stage}", budget=300.0 if ended != "overran" else 5.0, quick=True
    )
    assert time.monotonic() - began < 500
    assert result["ended"] == ended
    assert result["found"]["before"] == 1
    if ended == "failed":
        assert result["found"]["after"] == 2
        assert "of the first part" in result["failed"]["first"]
        assert len(result["missed"]) == 2


# The page -----------------------------------------------------------------------------------------


def test_the_page_shows_the_newest_result_of_a_card_or_that_there_is_none(tmp_path):
    page = table.PAGE.read_text()
    # what is committed is what the page tells
    assert table.fill_card(page, table.newest(table.CARDS)) == page
    assert "No result of a card is here yet" in table.fill_card(page, None)
    stage = {
        "ended": "failed",
        "seconds": 31.4,
        "budget": 40,
        "missed": ["noise: 2, but at most 1"],
    }
    stage |= {
        "found": {"rate, TFLOP/s": 512.3456, "parts": {"a": 1.5}},
        "failed": {"x": "T\nNo: y"},
    }
    machine = {"gpu": "NVIDIA V100", "cpu": "x", "cores": 8, "threads": 8}
    machine |= {"python": "3.12", "torch": "2.11", "transformers": "5.17"}
    for date in ("2026-01-02", "2026-03-04", "2026-02-03"):
        result = {"command": "c", "commit": "abc", "date": date, "machine": machine}
        (tmp_path / f"{date[-2:]}.json").write_text(
            json.dumps({**result, "stages": {"parity": stage}})
        )
    shown = table.fill_card(page, table.newest(tmp_path))
    for text in ("2026-03-04", "NVIDIA V100", "| | rate, TFLOP/s | 512 |", "| | parts: a | 1.5 |",
                 "**failed**", "parity: noise: 2, but at most 1.", "parity: No: y."):  # fmt: skip
        assert text in shown
    assert "No result" not in shown
