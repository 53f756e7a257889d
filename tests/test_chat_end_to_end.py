"""A chain of chat models really run, from conversations to the report, and trainings on prompts without answers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from chat_tokenizers import save_chat
from conftest import Project, copy_workflow, small_experiment
from datasets import Dataset, load_from_disk
from safetensors.torch import load_file
from transformers import AutoTokenizer
from workspace import Workspace, of_split

from takd.methods.gkd import Gkd
from takd.models.tokenizer_check import entries

RESULTS = Path("results/small")
LAST = "teacher-sft__assistant-minillm__student-minillm"


def talks(first: int, count: int) -> list[dict[str, Any]]:
    """Conversations of two turns, the second asking for a number."""
    found = []
    for n in range(first, first + count):
        said = [f"Hi {n}", f"Hello {n}.", f"What is {n} + 1?", f"{n} + 1 =\n#### {n + 1}"]
        roles = ["user", "assistant"] * 2
        found.append(
            {"messages": [{"role": r, "content": t} for r, t in zip(roles, said, strict=True)]}
        )
    return found


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Project:
    experiment, folder = small_experiment(), tmp_path_factory.mktemp("chat") / "project"
    copy_workflow(folder, experiment)
    (folder / "data").mkdir()
    tokenizer = save_chat("qwen3", folder / "data/tokenizer")
    for name, rows in (("train", talks(0, 24)), ("dev", talks(30, 4)), ("test", talks(40, 4))):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"data/{name}.jsonl").write_text(text)
    project = Project(folder, "warm_runs")

    def edit(settings: dict[str, Any]) -> None:
        settings["tokenizer"] = {"folder": "data/tokenizer", "vocabulary": entries(tokenizer)}
        for model in settings["models"].values():
            model["weights"]["scratch"]["positions"] = 320
        settings["data"] = {
            **{name: {"json": f"data/{name}.jsonl"} for name in ("train", "dev")},
            **{"template": "chat", "system": "Be brief.", "max_length": 300},
            **{"template_variables": {"enable_thinking": False}, "max_prompt_length": 280},
        }
        settings["chains"] = settings["chains"][1:]
        del settings["training"]["kd"]
        answer = {"pattern": r"#### (-?\d+)"}
        settings["evaluation"]["sets"] = {"talks": {"json": "data/test.jsonl", "answer": answer}}

    project.experiment(edit)
    project.run("--quiet", "rules")
    return project


def test_a_chain_of_chat_models(chat: Project) -> None:
    results = chat.folder / RESULTS
    counts = json.loads((results / "data/train/manifest.json").read_text())["counts"]
    assert counts["kept"] == 48 and counts["further_turns"] == 24
    place = results / f"evaluations/{LAST}/seed1/talks"
    scores = json.loads((place / "scores.json").read_text())["scores"]
    assert scores["answer_accuracy"]["mean"] == 0  # of letters drawn almost evenly
    rows = [json.loads(line) for line in (place / "generations.jsonl").read_text().splitlines()]
    assert [message["role"] for message in json.loads(rows[0]["messages"])] == [
        "user",
        "assistant",
        "user",
    ]
    assert rows[0]["instruction"].endswith("Assistant: Hello 40.\n\nUser: What is 40 + 1?")
    assert rows[0]["outputs"][0]["answer_accuracy"] == 0
    assert "Answer accuracy" in (results / "report/results.html").read_text()
    lines = (results / "report/differences.csv").read_text().splitlines()
    assert any("answer_accuracy" in line for line in lines)
    prompts = load_from_disk(str(results / "data/talks/dataset"))["prompt_ids"]
    # the program on the card asks with these ids
    text = (results / f"models/{LAST}/seed1/card.md").read_text()
    (messages,) = re.findall(r"^messages = (.*)$", text, re.M)
    model = AutoTokenizer.from_pretrained(results / f"models/{LAST}/seed1/model")
    read = json.loads(rows[0]["messages"])
    assert messages == ascii(read)
    chat_ids = model.apply_chat_template(read, add_generation_prompt=True, return_dict=False)
    assert chat_ids == prompts[0]
    assert model.decode(prompts[0]).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert model.decode(prompts[0]).endswith("assistant\n<think>\n\n</think>\n\n")


def test_another_template_runs_what_depends_on_it(chat: Project, tmp_path: Path) -> None:
    assert chat.plan() == {}
    other = chat.copy(tmp_path / "copy")

    def edit(settings: dict[str, Any]) -> None:
        settings["data"]["system"] = "Be very brief."

    other.experiment(edit)
    assert {"tokenizer", "data", "teacher", "distill_minillm"} <= set(other.plan())
    other = chat.copy(tmp_path / "published")
    other.replace("data/tokenizer/chat_template.jinja", "assistant", "assistant ")
    assert "tokenizer" in other.plan()


# prompts without answers


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Splits of which the last rows, or all, have no answer."""
    space = Workspace(tmp_path_factory.mktemp("workspace"))
    rows = load_from_disk(str(space.folder / "train/dataset")).to_list()
    for name, answered in (("mixed", 16), ("prompts", 0)):
        kept = [
            row | ({} if at < answered else {"response_ids": [], "references": []})
            for at, row in enumerate(rows)
        ]
        features = load_from_disk(str(space.folder / "train/dataset")).features
        made = Dataset.from_list(kept, features=features)
        made.save_to_disk(space.folder / name / "dataset")
        space.manifest(name, **of_split("train"), counts={"without_answer": 24 - answered})
    return space


def weights(space: Workspace, name: str) -> dict[str, Any]:
    return load_file(space.folder / name / "model/model.safetensors")


def test_methods_that_learn_from_answers_read_the_rows_that_have_one(workspace: Workspace) -> None:
    short: dict[str, Any] = {"steps": 4, "evaluate_every": 4}
    workspace.finished(workspace.train("whole", "sft", rows=16, **short))
    workspace.finished(workspace.train("part", "sft", inputs={"train": "mixed"}, **short))
    first, second = weights(workspace, "whole"), weights(workspace, "part")
    assert all(first[name].equal(second[name]) for name in first)
    said = workspace.finished(
        workspace.train("none", "sft", inputs={"train": "prompts"}, **short), code=1
    )
    assert "student-sft: 'sft' learns from answers, and no row of data.train has one; give" in said


def test_on_policy_methods_need_no_answers(workspace: Workspace) -> None:
    short: dict[str, Any] = {"steps": 2, "evaluate_every": 2, "start": "base"}
    asked = {"teacher": "teacher", "train": "prompts"}
    minillm: dict[str, Any] = {**short, "lm_weight": 0.0, "inner_epochs": 1}
    workspace.manifest("teacher", kind="model", lineage="teacher-sft", seed=3)
    for name in ("train", "prompts"):
        inputs = asked | {"train": name}
        workspace.finished(workspace.train(f"m-{name}", "minillm", inputs=inputs, **minillm))
    first, second = weights(workspace, "m-train"), weights(workspace, "m-prompts")
    assert all(first[name].equal(second[name]) for name in first)  # answers play no part
    gkd: dict[str, Any] = {**short, "on_policy_share": 1.0}
    workspace.finished(workspace.train("gkd", "gkd", inputs=asked, **gkd))
    said = workspace.finished(
        workspace.train("half", "gkd", inputs=asked, **{**gkd, "on_policy_share": 0.5}), code=1
    )
    assert "'gkd' learns from answers" in said
    assert Gkd.needs_answers({"on_policy": "off", "on_policy_share": 1.0})
