"""Equal cost: the arms of an experiment under a budget spend the same, by the logs and by torch's own count."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_methods_on_policy import Interruptible
from workspace import Workspace

from takd.runtime.files import read_json
from takd.training import train as training

FILES = {"model": "model", "metrics": "metrics.jsonl", "manifest": "manifest.json"}
TEACHER, ASSISTANT = "teacher-sft", "teacher-sft__assistant-minillm"
ROUNDS = {"rollouts_per_round": 8, "inner_epochs": 2}
BUDGET = 3e8


def run(
    space: Workspace,
    name: str,
    lineage: str,
    inputs: dict[str, str],
    steps_left: float = float("inf"),
    budget: Any = None,
    micro_batch: int = 4,
    **settings: Any,
) -> Path:
    """Run a training stage in this process; its settings are those of the workspace."""
    *above, last = lineage.split("__")
    model, method = last.split("-")
    spec = {**space.spec(method, **settings), "lineage": lineage, "model": model}
    if above:
        spec["teacher"] = ["__".join(above), 3]
    if spec["settings"].get("start") == "sft":
        spec["init"] = [f"{model}-sft", 3]
    if budget is not None:
        spec["settings"] |= {"steps": None, "epochs": None}
        spec["budget"] = budget
    read = {"base": "student", "tokenizer": "tokenizer", "train": "train", "dev": "dev", **inputs}
    files = {**FILES, **({"init": "init"} if method == "sft" else {})}
    training.run(
        Interruptible(
            spec,
            "code",
            {key: [space.folder / of / "manifest.json"] for key, of in read.items()},
            {key: space.folder / name / file for key, file in files.items()},
            checkpoint_seconds=0.0,
            micro_batch=micro_batch,
            steps_left=steps_left,
        )
    )
    return space.folder / name


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Trained teacher, assistant and supervised student, each with what was spent on it."""
    space = Workspace(tmp_path_factory.mktemp("workspace"))
    run(space, "a-teacher", TEACHER, {"base": "teacher"}, steps=16, evaluate_every=8)
    run(space, "a-student", "student-sft", {}, steps=8, evaluate_every=8)
    run(space, "an-assistant-start", "assistant-sft", {}, steps=4, evaluate_every=4)
    of_assistant = {"teacher": "a-teacher", "init": "an-assistant-start"}
    run(space, "an-assistant", ASSISTANT, of_assistant, steps=6, lm_weight=0.0, **ROUNDS)
    return space


TAUGHT = {"teacher": "a-teacher", "init": "a-student"}
ARMS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "kd": (f"{TEACHER}__student-kd", {"teacher": "a-teacher"}, {}),
    "gkd": (f"{TEACHER}__student-gkd", TAUGHT, {}),
    "taid": (f"{TEACHER}__student-taid", TAUGHT, {}),
    "amid": (f"{TEACHER}__student-amid", TAUGHT, {}),
    "skd": (f"{TEACHER}__student-skd", TAUGHT, {}),
    "distillm": (f"{TEACHER}__student-distillm", TAUGHT, {}),
    "minillm": (f"{TEACHER}__student-minillm", TAUGHT, {"lm_weight": 0.0, **ROUNDS}),
    "sft": ("student.more-sft", {}, {}),
    "assistant": (
        f"{ASSISTANT}__student-minillm",
        {"teacher": "an-assistant", "init": "a-student"},
        {"lm_weight": 0.0, "teacher_mix": 0.0, **ROUNDS},
    ),
}


def test_arms_spend_the_same(space: Workspace) -> None:
    """Within 3 %: summed here over the logs of each arm's own training and of those that it needs."""
    needed = {
        "kd": ["a-teacher"],
        "sft": [],
        "assistant": ["a-teacher", "an-assistant-start", "an-assistant", "a-student"],
    }
    cost = {}
    for arm, (lineage, inputs, settings) in ARMS.items():
        folder = run(
            space,
            f"equal-{arm}",
            lineage,
            inputs,
            budget={"flops": BUDGET},
            evaluate_every=40,
            **settings,
        )
        folders = [
            folder,
            *(space.folder / name for name in needed.get(arm, ["a-teacher", "a-student"])),
        ]
        cost[arm] = sum(log(each)[-1]["flops"] for each in folders)
        manifest = read_json(folder / "manifest.json")
        assert sum(manifest["spent"].values()) == cost[arm]
        lines = log(folder)
        assert manifest["steps"] == lines[-1]["step"] > 20
        rates = [line["learning_rate"] for line in lines if line["kind"] == "train"]
        assert rates[-1] < 0.01 * max(rates)  # the schedule ends with the budget
        print(
            arm,
            cost[arm] / BUDGET,
            manifest["steps"],
            sum(manifest["spent"].values()) - manifest["flops"],
        )
    assert max(cost.values()) / min(cost.values()) < 1.03
    assert all(value == pytest.approx(BUDGET, rel=0.015) for value in cost.values())
