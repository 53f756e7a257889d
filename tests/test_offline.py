"""Jobs run with the hub switched off; what was fetched before is found; shipped experiments plan without either."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Project, make_project, writing_experiment
from models_for_tests import tiny_gpt2

ROOT = Path(__file__).resolve().parents[1]
REVISION = "1" * 40
# rules that may download: they are local, on the machine that starts the workflow
LOCAL = {"tokenizer", "data", "base"}


def run(program: str, hub: Path, **environment: str) -> str:
    """Run Python without a network to ask: no name of a host is found."""
    given = {
        "PYTHONPATH": str(ROOT / "src"),
        "HF_HOME": str(hub),
        "HF_ENDPOINT": "https://nowhere.invalid",
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**inherited, **given, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_job_but_those_that_fetch_runs_with_the_hub_switched_off(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", writing_experiment())
    printed = project.run("--dry-run", "--printshellcmds")
    jobs = re.split(r"\nrule (?=\w+:\n)", printed)[1:]
    commands = {job.partition(":")[0]: job for job in jobs if "workflow/scripts/" in job}
    on = {name for name, job in commands.items() if "HF_HUB_OFFLINE=1 " not in job}
    assert on - {"report"} == LOCAL  # the report reads files of the results alone
    assert {"teacher", "sft", "distill_kd", "generate", "teacher_outputs", "evaluate"} <= set(
        commands
    )
    rules = (ROOT / "rules/data.smk").read_text().split("\nrule ")
    blocks = {block.removeprefix("rule ").partition(":")[0]: block for block in rules}
    assert all("    localrule: True" in blocks[name] for name in LOCAL)


def test_one_switch_is_enough_for_all_libraries(tmp_path: Path) -> None:
    program = (
        "import huggingface_hub.constants as hub, datasets, transformers.utils.hub as models;"
        "print(hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE, models.is_offline_mode())"
    )
    assert run(program, tmp_path, HF_HUB_OFFLINE="1") == "True True True"


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A cache of the hub with a model and a data set in it, as its library lays them out."""
    model = tmp_path / f"hub/models--some--model/snapshots/{REVISION}"
    tiny_gpt2(0).save_pretrained(model)
    data = tmp_path / f"hub/datasets--some--data/snapshots/{REVISION}"
    data.mkdir(parents=True)
    rows = [{"instruction": f"Say {i}.", "output": str(i)} for i in range(5)]
    (data / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


# without the switch its library tries for half a minute, and comes to the same
def test_what_was_fetched_before_is_found_without_the_hub(hub: Path) -> None:
    program = f"""
from pathlib import Path
from takd.models.hub import fetch_model
from takd.data import sources
source = {{"hub": "some/data", "revision": "{REVISION}", "file": "raw.jsonl", "rows": [1, 3]}}
print([row.instruction for row in sources.rows(source)])
folder = fetch_model("some/model", "{REVISION}")
print(sorted(path.name for path in folder.iterdir() if path.suffix == ".safetensors"))
"""
    found = run(program, hub, HF_HUB_OFFLINE="1").splitlines()
    assert found == ["['Say 1.', 'Say 2.']", "['model.safetensors']"]


def test_what_was_not_is_told_in_a_sentence(hub: Path) -> None:
    program = f"""
from takd.models.hub import fetch_model
from takd.data import sources
from takd.runtime.errors import InputError
missing = {{"hub": "some/other", "revision": "{REVISION}", "file": "raw.jsonl"}}
for act in (lambda: list(sources.rows(missing)), lambda: fetch_model("some/other", "{REVISION}")):
    try:
        act()
    except InputError as error:
        print(error)
"""
    data, model = run(program, hub, HF_HUB_OFFLINE="1").splitlines()
    at = "cannot be fetched from the hub at https://nowhere.invalid:"
    assert data.startswith(f"raw.jsonl of the data set some/other {at}")
    assert model.startswith(f"the model some/other {at}")
    for sentence in (data, model):
        assert "cannot be reached and its cache (HF_HOME) lacks it" in sentence


@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        ("opt-dolly", {"base": 4, "teacher": 1, "sft": 3, "distill_minillm": 5, "data": 7}),
        (
            "llama-dolly",
            {"base": 2, "teacher": 1, "sft": 1, "distill_minillm": 1, "distill_kd": 1, "data": 7},
        ),
        (
            "mistral-dolly",
            {"base": 3, "teacher": 1, "sft": 2, "distill_minillm": 3, "distill_kd": 3, "data": 3},
        ),
        ("qwen2.5-dolly", {"base": 4, "teacher": 1, "sft": 3, "distill_minillm": 6, "data": 3}),
        ("smollm2", {"base": 3, "teacher": 1, "sft": 2, "distill_minillm": 3, "data": 3}),
    ],
)
def test_families_plan_without_hub_and_data(
    project: Project, name: str, jobs: dict[str, int]
) -> None:
    planned = project.plan("--config", f"experiment={name}")
    trained = sum(jobs.get(rule, 0) for rule in ("teacher", "sft", "distill_minillm", "distill_kd"))
    sets = jobs["data"] - 2
    rest = {"tokenizer": 1, "data_report": 1, "report": 1}
    rest |= dict.fromkeys(("evaluate", "likelihoods"), trained * sets) | {"card": trained}
    assert planned == {**jobs, **rest}
