"""Several experiments side by side, on made results: what is told and what is not, and when it is made again."""

import csv
import io
import json
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import test_report
from browser import browser, visit
from conftest import Project, make_project, small_experiment
from test_report import BY_KD, DIRECT, STUDY, THROUGH

from takd.errors import InputError
from takd.lineage import of_chain, split
from takd.report import compare, compare_plan, compare_scores, compare_settings
from takd.report.compare_read import read_all
from takd.stage import Stage, read_json, write_json

SETTINGS = {
    "title": "left out",
    "training": {"minillm": {"teacher_mix": 0.2, "steps": 900}},
    "seeds": [1, 2],
    "data": {"corpus": None, "template": "<b>{instruction}</b>"},
}
PROMPTS = 24
STUDENT = of_chain(*DIRECT[1:])


def experiment(
    root: Path,
    name: str,
    chains: Any = (DIRECT, THROUGH),
    shift: Callable[[str], float] = lambda lineage: 0.0,
    settings: dict[str, Any] | None = None,
    data: str = "a",
    **options: Any,
) -> dict[str, Any]:
    """Write the results of a made experiment, its scores moved by `shift`; returns its part of the stage's settings."""
    folder = root / name
    options = {"seeds": (1, 2), "sets": ("heldout",)} | options
    spec = test_report.make(folder, list(chains), **options)
    made = {}
    for lineage, seed in spec["nodes"]:
        file = folder / "models" / lineage / f"seed{seed}/manifest.json"
        moved = shift(lineage)
        # a model whose scores stay as they are is the same model
        weights = f"{lineage} {seed} {moved}".encode().hex()[:64]
        write_json(file, read_json(file) | {"weights": {"model": weights}})
        log = file.with_name("metrics.jsonl")
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        rows = [r | {"rougeL": r["rougeL"] + moved} if "rougeL" in r else r for r in rows]
        test_report.write_lines(log, rows)
        made[f"{lineage}/seed{seed}"] = compare_plan.made({})
        for set_name in spec["sets"]:
            answers(folder / "evaluations" / lineage / f"seed{seed}" / set_name, moved, zlib.crc32(f"{lineage} {seed}".encode()) % 9)
    for split_name in ("train", "dev", *spec["sets"], "tokenizer"):
        write_json(
            folder / "data" / split_name / "manifest.json",
            {"sha256": data * 64, "counts": {"kept": 990}, "code": "c" * 16},
        )
    for model in spec["models"]:
        write_json(
            folder / "base" / model / "manifest.json",
            {"files": {"model.safetensors": model}, "code": "d" * 16},
        )
    return {
        "name": name,
        "report": spec,
        "settings": SETTINGS | (settings or {}),
        "made": made,
        "content": None,
    }


def answers(folder: Path, moved: float, own: int) -> None:
    """More prompts than `make` has: enough for a test to tell a difference. Each answer is moved a little differently."""
    scores = read_json(folder / "scores.json")
    mean = scores["scores"]["rougeL"]["mean"]
    rows = [
        {"id": row, "instruction": "Do it", "input": "", "references": ["it"], "outputs": [
            {"seed": seed, "text": "it", "tokens": 2, "finished": True, "exact_match": 50.0,
             "rougeL": mean + (row % 7 - 3) + own * 0.1 + moved * (1 + 0.5 * ((row + draw) % 3 - 1))}
            for draw, seed in enumerate(scores["decoding_seeds"])]}
        for row in range(PROMPTS)
    ]  # fmt: skip
    test_report.write_lines(folder / "generations.jsonl", rows)


def compared(root: Path, *specs: dict[str, Any]) -> compare_scores.Comparison:
    spec = {"experiments": list(specs)}
    return compare_scores.compare(read_all(spec, [root / each["name"] for each in specs]))


def run(root: Path, *specs: dict[str, Any]) -> Path:
    """Run the stage as the rule does; the folder of its outputs."""
    outputs = {name: root / "out" / part.file for name, part in compare_plan.PARTS.items()}
    inputs = {"results": [root / each["name"] for each in specs]}
    compare.run(Stage({"experiments": list(specs)}, "", inputs, outputs))
    return root / "out"


def better(lineage: str) -> float:
    """The student through the assistant gains a lot, the direct one is as good, others are the same models."""
    return {of_chain(*THROUGH[1:]): 6.0, STUDENT: 0.0}.get(lineage, 0.0)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A first experiment, one with a change that matters, one with a chain that the others have not."""
    root = tmp_path_factory.mktemp("three")
    mixing = {"training": {"minillm": {"teacher_mix": 0.5, "steps": 900}}}
    specs = [
        experiment(root, "before"),
        experiment(root, "more-mixing", shift=better, settings=mixing),
        experiment(root, "other-chains", chains=[DIRECT, BY_KD], seeds=(1,), settings={"seeds": [1]}),
    ]
    return SimpleNamespace(root=root, specs=specs, out=run(root, *specs))
