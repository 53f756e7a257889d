"""Models that are there and are taken as they are: as a teacher, and alone, from the data to the report."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Project, made_once, small_experiment

RESULTS = Path("results/given")


def of_earlier_run(lineage: str, inner: str = "") -> dict[str, Any]:
    folder = f"results/small/models/{lineage}/seed1{inner}"
    return {"weights": {"folder": folder}, "trained": True}


def given_experiment() -> dict[str, Any]:
    """A teacher of an earlier run above a new student, and an earlier student alone."""
    experiment = small_experiment()
    template = {"with_input": "{instruction}\n{input}\n", "without_input": "{instruction}\n"}
    experiment["data"]["template"] = template
    experiment["models"] = {
        "big": of_earlier_run("teacher-sft"),
        "small": experiment["models"]["student"],
        "before": of_earlier_run("student-sft", "/model"),
    }
    experiment["chains"] = [{"models": ["big", "small"], "methods": ["kd"]}, {"models": ["before"]}]
    experiment["seeds"] = [1, 2]
    return experiment


def run_given(folder: Path, finished: Project) -> None:
    """Run it with real stages beside the results of the earlier run."""
    project = finished.copy(folder)
    path = folder / "config/experiments/given.yaml"
    path.write_text(json.dumps(given_experiment()))
    project.run("--quiet", "rules", "--config", "experiment=given")


@pytest.fixture(scope="module")
def given(forked: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = made_once(tmp_path_factory, "given", lambda folder: run_given(folder, forked))
    return Project(folder, "warm")


def table(project: Project, name: str) -> list[dict[str, str]]:
    with open(project.folder / RESULTS / "report" / name, newline="") as file:
        return list(csv.DictReader(file))


def test_x(given: Project) -> None:
    print(table(given, "results.csv"))
    print(table(given, "differences.csv"))
    print(table(given, "costs.csv"))
    assert 0
