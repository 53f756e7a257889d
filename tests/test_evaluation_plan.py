"""What the stages of an evaluation are asked, and which of them are planned."""

import re
from pathlib import Path

import pytest
from conftest import Project, make_project, small_experiment

from takd.experiment import experiment, specs


def loaded(project: Project) -> experiment.Experiment:
    return experiment.load(project.folder / "config/experiments/small.yaml", project.folder)


@pytest.fixture
def two_seeds(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project", {**small_experiment(), "seeds": [1, 2]})


def teachers(project: Project, lineage: str, seed: int) -> dict[str, list]:
    return specs.likelihoods(loaded(project), lineage, seed, "heldout")["teachers"]


def test_whom_a_model_is_compared_with(two_seeds: Project) -> None:
    head = ["teacher-sft", 1]  # is trained with the first seed only
    assert teachers(two_seeds, "teacher-sft", 1) == {}
    assert teachers(two_seeds, "student-sft", 2) == {"first": head}, "the baseline"
    assert teachers(two_seeds, "teacher-sft__student-kd", 2) == {"direct": head, "first": head}
    through = "teacher-sft__assistant-minillm"
    found = teachers(two_seeds, f"{through}__student-minillm", 2)
    assert found == {"direct": [through, 2], "first": head}


def test_a_baseline_below_two_heads_is_compared_with_neither(two_seeds: Project) -> None:
    def edit(settings: dict) -> None:
        settings["chains"].append({"models": ["assistant", "student"], "methods": ["kd"]})

    two_seeds.experiment(edit)
    assert teachers(two_seeds, "student-sft", 1) == {}


def test_each_model_is_read_with_its_teachers(project: Project) -> None:
    jobs = project.plan("--nolock", "scores")
    assert (jobs["evaluate"], jobs["likelihoods"]) == (7, 7) and "judge" not in jobs
    place = "small/evaluations/teacher-sft__assistant-minillm__student-minillm/seed1/heldout"
    printed = project.run("--dry-run", f"results/{place}/likelihoods/likelihoods.json")
    (paths,) = re.findall(r"^rule likelihoods:\n    input: (.*)\n", printed, re.M)
    models = {"teacher-sft__assistant-minillm", "teacher-sft", place.split("/")[2]}
    assert set(paths.split(", ")) == {
        *(f"results/small/models/{model}/seed1/manifest.json" for model in models),
        *(f"results/small/evaluations/{model}/seed1/heldout/answers.jsonl" for model in models),
        *(f"results/small/data/{name}/manifest.json" for name in ("heldout", "tokenizer")),
    }


def test_a_judge_is_planned_only_where_it_is_asked_for(project: Project) -> None:
    judge = {"endpoint": "http://127.0.0.1:9/v1", "model": "judge-1"}
    project.experiment(lambda e: e["evaluation"].update(judge=judge))
    assert project.plan("--nolock", "scores")["judge"] == 7
    settings = specs.judge(loaded(project), "student-sft", 1, "heldout")["judge"]
    assert (settings["seeds"], settings["key_variable"]) == ([10], None), "the first seed, no key"
    project.experiment(lambda e: e["evaluation"]["judge"].update(seeds=[11]))
    said = project.run("--dry-run", check=False)
    assert "evaluation.judge.seeds[0] is 11, which is not in evaluation.seeds" in said


@pytest.mark.parametrize("address", ["host/v1", "https://me:key@host/v1", "https://host/v1?key=k"])
def test_an_address_that_holds_a_key_is_refused_before_any_job(
    project: Project, address: str
) -> None:
    judge = {"endpoint": address, "model": "judge-1"}
    project.experiment(lambda e: e["evaluation"].update(judge=judge))
    said = project.run("--dry-run", check=False)
    assert "must be an address such as" in said and "without user name or query" in said
