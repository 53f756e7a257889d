"""A dry run names the models that it would train, by their chains, and why."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Project

from takd.preflight.planned_jobs import changes, lines, reason


def why(**given: Any) -> str:
    names = ("params_changed", "code_changed", "input_changed", "updated_input", "forced")
    found = dict.fromkeys((*names, "incomplete_output", "missing_output"), False)
    return reason(SimpleNamespace(**{**found, **given}))


def params(old: list[str], new: list[str]) -> Any:
    return SimpleNamespace(only_old=set(old), only_new=set(new))


def test_changed_settings_are_named_with_both_values() -> None:
    before, now = (
        '{"seed":1,"settings":{"steps":9,"keep":"é"}}',
        '{"settings":{"steps":8,"rows":2}}',
    )
    (text,) = changes(params([before], [repr(now)]))
    assert text == 'settings: seed 1 → null, keep "é" → null, rows null → 2 and 1 more'
    assert list(changes(params(["'0123abcd'"], ["'9876fedc'"]))) == ["its code changed"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"missing_output": {"a"}, "input_changed": True}, "is not there yet"),
        ({"incomplete_output": {"a"}, "missing_output": {"a"}}, "was cut off; resumes"),
        ({"updated_input": {"b.json", "a.json"}}, "changed: a.json, b.json"),
        ({"code_changed": True}, "the text of its rule changed"),
        ({}, "what it reads is made again"),
    ],
)
def test_reasons_are_in_the_words_of_an_experiment(given: dict[str, Any], said: str) -> None:
    assert why(**given).startswith(said)


def test_a_dry_run_lists_models_by_chain_and_nothing_where_nothing_is_left(
    finished: Project, tmp_path: Path
) -> None:
    assert "Models to train" not in finished.run("--dry-run", "--quiet", "rules")
    project = finished.copy(tmp_path / "project")
    project.experiment(lambda e: e["training"]["minillm"].update(learning_rate=1e-4))
    shutil.rmtree(project.folder / "results/small/models/teacher-sft__student-kd")
    printed = project.run("--dry-run", "--quiet", "rules").splitlines()
    listed = printed[printed.index("Models to train, and why:") + 1 : printed.index("Other jobs:")]
    assert [" ".join(line.split()) for line in listed] == [
        "kd: teacher → student, seed 1 is not there yet",
        "minillm: teacher → assistant, seed 1 settings: learning_rate 5e-06 → 0.0001",
        "minillm: teacher → student, seed 1 settings: learning_rate 5e-06 → 0.0001",
        "minillm: teacher → assistant → student, seed 1 what it reads is made again",
    ]
    assert any(line.split()[:2] == ["1", "report"] for line in printed)


def test_jobs_that_a_look_may_add_are_told() -> None:
    """Models of a sweep are named with their values, seeds that may follow by the look that decides."""
    arm = "student@learning_rate=0.001"
    planned = [
        ("distill_kd", {"teacher": "teacher-sft", "student": arm, "method": "kd", "seed": "1"}),
        ("look", {"seeds": "3"}),
    ]
    jobs = [
        SimpleNamespace(rule=SimpleNamespace(name=rule), wildcards_dict=names, output=["x"])
        for rule, names in planned
    ]
    why_it_runs = SimpleNamespace(params_changed=False, code_changed=False, input_changed=False)
    why_it_runs.updated_input = why_it_runs.forced = why_it_runs.incomplete_output = False
    why_it_runs.missing_output = True
    dag = SimpleNamespace(needrun_jobs=lambda **_: jobs, reason=lambda job: why_it_runs)
    _, model, _, other, said = lines(dag)
    assert "kd: teacher → student (learning_rate=0.001), seed 1" in model
    assert other.split() == ["1", "look", "is", "not", "there", "yet"]
    assert said.startswith("After 3 training seeds the job `look` compares the models.")
    jobs.pop()
    assert len(list(lines(dag))) == 2
