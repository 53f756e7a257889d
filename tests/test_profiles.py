"""The profiles: what the Slurm one would submit, through the real executor, and what both must hold."""

import base64
import json
import os
import re
import shlex
import stat
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Project
from snakemake.profiles import ProfileConfigFileParser

from takd.checks import distillation_methods

# Stand-ins for Slurm's commands: sbatch notes its arguments, and every job has failed when squeue is asked.
COMMANDS = {
    "sbatch": """
        import json, os, sys
        with open(os.environ["SUBMITTED"], "a+") as file:
            file.write(json.dumps(sys.argv[1:]) + "\\n")
            file.seek(0)
            print(len(file.readlines()))
        """,
    "squeue": """
        import json, os
        for number, line in enumerate(open(os.environ["SUBMITTED"]), 1):
            print(f"{number}|FAILED")
        """,
    "sinfo": "",
    "sacctmgr": "print('def-CHANGEME')",
    "scontrol": "print('MinJobAge = 3600 sec')",
    "scancel": "",
}


def profile(name: str) -> dict:
    with open(ROOT / f"profiles/{name}/config.yaml", encoding="utf-8") as file:
        return ProfileConfigFileParser().parse(file)


def options(arguments: list[str]) -> dict[str, str]:
    """Options of an sbatch call that take a value."""
    found = {}
    for this, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = this.partition("=")
        if this.startswith("-"):
            found[name] = value if equals else following
    return found


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment with Slurm's commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in COMMANDS.items():
        script = folder / name
        lines = "\n".join(line.removeprefix(" " * 8) for line in body.splitlines())
        script.write_text(f"#!{sys.executable}\n{lines}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    submitted = tmp_path / "submitted"
    submitted.touch()
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SUBMITTED": str(submitted)}


def test_slurm_submits_what_the_cluster_is_meant_to_give(
    finished: Project, tmp_path: Path, slurm: dict[str, str]
) -> None:
    """One job of each kind, submitted side by side since all that they read is there."""
    project = finished.copy(tmp_path / "copy")
    models = "results/small/models"
    printed = project.run(
        f"{models}/assistant-sft/seed1/manifest.json",
        f"{models}/teacher-sft__student-kd/seed1/manifest.json",
        f"{models}/teacher-sft__student-minillm/seed1/manifest.json",
        "results/small/evaluations/teacher-sft/seed1/heldout/scores.json",
        "--force",
        *("--profile", "profiles/slurm", "--retries", "0", "--latency-wait", "1"),
        *("--slurm-init-seconds-before-status-checks", "1"),
        check=False,
        env=slurm,
    )
    lines = [json.loads(line) for line in Path(slurm["SUBMITTED"]).read_text().splitlines()]
    calls = {options(line)["--comment"].split("_wildcards")[0]: options(line) for line in lines}
    assert set(calls) == {
        "rule_sft",
        "rule_distill_kd",
        "rule_distill_minillm",
        "rule_evaluate",
    }, printed
    for rule, call in calls.items():
        training = rule != "rule_evaluate"
        assert call["-A"] == "def-CHANGEME"
        assert call["--gres"] == ("gpu:v100l:4" if training else "gpu:v100l:1")
        assert call["--cpus-per-task"] == ("16" if training else "4")
        assert call["--mem"] == ("64000" if training else "16000")
        assert call["-t"] == ("600" if training else "300")
        assert "--requeue" in call
        # --gpus counts over all nodes, and tasks would be per GPU
        assert not {"--gpus", "--ntasks", "--ntasks-per-gpu", "--gpus-per-task"} & set(call)
        # the job on the node is told the same, for its processes and its time budget
        words = re.findall(r"base64//([\w+/=]+)", call["--wrap"])
        told = {base64.b64decode(word).decode() for word in words}
        name = rule.removeprefix("rule_")
        assert f"{name}:processes={4 if training else 1}" in told
        assert f"{name}:runtime={call['-t']}" in told


def test_a_stage_is_told_what_its_job_gets(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "copy")
    printed = project.run(
        "results/small/models/teacher-sft__student-minillm/seed1/manifest.json",
        *("--force", "--dry-run", "--printshellcmds"),
        *("--set-resources", "distill_minillm:runtime=600", "distill_minillm:processes=4"),
        "distill_minillm:gradient_checkpointing=1",
        *("--set-threads", "distill_minillm=6"),
    )
    command = next(line for line in printed.splitlines() if "train.py" in line)
    words = shlex.split(command.strip())
    assert words[words.index("--processes") + 1] == "4"
    assert words[words.index("--gradient-checkpointing") + 1] == "1"
    assert words[words.index("--compile") + 1] == "0"
    assert words[words.index("--runtime") + 1] == "600"
    assert words[words.index("--nodes") + 1] == "1"
    (text,) = re.findall(r"--threads \$\(\((.*?)\)\) --", command)
    threads = eval(text.replace("/", "//"))
    assert threads == 1  # --cores 2 scales the threads down to two, and a process has at least one


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_profile_avoids_what_breaks(name: str) -> None:
    settings = profile(name)
    assert "keep-incomplete" not in settings  # half a model would count as whole
    assert "rerun-triggers" not in settings
    assert settings["rerun-incomplete"] == "True"
    defaults = " ".join(settings.get("default-resources", []))
    assert not re.search(r"\b(cpus_per_task|tasks|gpu)=", defaults)
    assert not {"slurm-no-account", "slurm-array-jobs"} & set(settings)


def test_no_default_profile() -> None:
    """Beside one, `--profile` loses its default-resources."""
    assert not (ROOT / "profiles/default").exists()


def test_slurm_profile_names_every_training_rule() -> None:
    settings = profile("slurm")
    rules = [
        "teacher",
        "sft",
        *(f"distill_{method}" for method in distillation_methods()),
        *("evaluate", "generate", "teacher_outputs"),
    ]
    for rule in rules:
        given = {value.split("=")[0] for value in settings["set-resources"]}
        keys = ("gres", "processes", "micro_batch", "mem_mb", "runtime")
        assert {f"{rule}:{key}" for key in keys} <= given
        assert any(value.startswith(f"{rule}=") for value in settings["set-threads"])
    assert settings["slurm-status-command"] == "squeue"
    assert int(settings["retries"]) == 3


def test_one_place_for_account_and_gpus(tmp_path: Path) -> None:
    text = (ROOT / "profiles/slurm/config.yaml").read_text()
    for old, new in (("def-CHANGEME", "rrg-mine"), ("v100l ", "h100 "), ("gpus: 4", "gpus: 2")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "config.yaml").write_text(text)
    with open(tmp_path / "config.yaml") as file:
        settings = ProfileConfigFileParser().parse(file)
    assert "slurm_account=rrg-mine" in settings["default-resources"]
    assert {"sft:gres=gpu:h100:2", "sft:processes=2", "evaluate:gres=gpu:h100:1"} <= set(
        settings["set-resources"]
    )
    assert "sft=8" in settings["set-threads"]
