"""One stage of each kind, really run: forked from a process with all imports, so that all take seconds."""

import csv
from pathlib import Path
from typing import Any

from conftest import Project

KINDS = {
    *("tokenizer", "data", "data_report", "base", "teacher", "sft"),
    *("distill_kd", "distill_minillm", "distill_seqkd"),
    *("generate", "generations", "teacher_outputs"),
    *("evaluate", "likelihoods", "card", "report"),
}


def with_teacher_cache(experiment: dict[str, Any]) -> None:
    sft = experiment["training"]["sft"]
    experiment["training"] |= {"seqkd": dict(sft), "kd": {**sft, "teacher_outputs": "top_k"}}
    experiment["chains"][0]["methods"] += ["seqkd", "kd"]
    experiment["teacher_cache"] = {"shards": 1, "top_k": 4, "seed": 5}


def test_each_kind_of_stage(forked: Project, tmp_path: Path) -> None:
    project = forked.copy(tmp_path / "copy")
    project.experiment(with_teacher_cache)
    project.run("--quiet", "rules")
    assert project.plan() == {}
    assert set(project.plan("--forceall")) == KINDS
    with open(project.folder / "results/small/report/results.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 5  # models on the one evaluation set
