"""The profiles: what the Slurm one would submit, through the real executor, and what both must hold."""

import ast
import base64
import json
import os
import re
import shlex
import stat
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Project
from snakemake.profiles import ProfileConfigFileParser
from snakemake.resources import Resource

from takd.experiment.validation.common import distillation_methods

PROFILES = sorted(path.parent.name for path in (ROOT / "profiles").glob("*/config.yaml"))

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


@pytest.mark.parametrize("name", ["slurm", "slurm-h100"])
def test_slurm_gets_no_job_that_fetches(name: str, project: Project, slurm: dict[str, str]) -> None:
    """Tokenizer, data and starting weights are made where Snakemake runs, which has internet."""
    targets = [f"results/small/{made}/manifest.json" for made in ("data/train", "base/student")]
    project.run(*targets, "--profile", f"profiles/{name}", "--latency-wait", "1", env=slurm)
    assert all((project.folder / target).is_file() for target in targets)
    assert not Path(slurm["SUBMITTED"]).read_text()


# Profile, nodes of a training, how it asks for GPUs, model, cores a GPU, memory of a training and of an evaluation
CLUSTERS = [
    ("slurm", 1, "--gres", "gpu:v100l", 4, ("64000", "16000")),
    ("slurm", 2, "--gres", "gpu:v100l", 4, ("64000", "16000")),
    ("slurm-h100", 1, "--gpus-per-node", "h100", 12, ("240000", "60000")),
    ("slurm-h100", 2, "--gpus-per-node", "h100", 12, ("240000", "60000")),
]


@pytest.mark.parametrize(("name", "nodes", "option", "model", "cores", "memory"), CLUSTERS)
def test_slurm_submits_what_the_cluster_is_meant_to_give(
    name: str,
    nodes: int,
    option: str,
    model: str,
    cores: int,
    memory: tuple[str, str],
    finished: Project,
    tmp_path: Path,
    slurm: dict[str, str],
) -> None:
    """One job of each kind, submitted side by side since all that they read is there."""
    project = finished.copy(tmp_path / "copy")
    project.replace(f"profiles/{name}/config.yaml", "nodes: 1 ", f"nodes: {nodes} ")
    models = "results/small/models"
    printed = project.run(
        f"{models}/assistant-sft/seed1/manifest.json",
        f"{models}/teacher-sft__student-kd/seed1/manifest.json",
        f"{models}/teacher-sft__student-minillm/seed1/manifest.json",
        "results/small/evaluations/teacher-sft/seed1/heldout/scores.json",
        "--force",
        *("--profile", f"profiles/{name}", "--retries", "0", "--latency-wait", "1"),
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
        gpus = 4 if training else 1
        assert call["-A"] == "def-CHANGEME"
        assert call["--export"] == "ALL"  # HF_HOME and HF_ENDPOINT of the shell, for instance
        # both are per node: --gpus counts over all nodes
        assert call[option] == f"{model}:{gpus}"
        assert len({"--gres", "--gpus", "--gpus-per-node", "--gpus-per-task"} & set(call)) == 1
        assert call["--cpus-per-task"] == str(cores * gpus)
        assert call["--mem"] == memory[0 if training else 1]
        assert call["-t"] == ("600" if training else "300")
        assert "--requeue" in call
        # one task on each node, which starts the processes there
        assert call.get("--nodes", "1") == (str(nodes) if training else "1")
        assert call.get("--ntasks", "1") == call.get("--nodes", "1")
        assert not {"--ntasks-per-gpu", "--ntasks-per-node"} & set(call)
        # the job on the node is told the same, for its processes and its time budget
        words = re.findall(r"base64//([\w+/=]+)", call["--wrap"])
        told = {base64.b64decode(word).decode() for word in words}
        rule = rule.removeprefix("rule_")
        assert f"{rule}:processes={gpus}" in told
        assert f"{rule}:runtime={call['-t']}" in told
        # with `mpi` Slurm's plugin leaves srun to the stage, which needs it on several nodes only
        assert (f"{rule}:mpi=srun" in told) == (training and nodes > 1)


@pytest.mark.parametrize("name", ["slurm", "slurm-h100"])
def test_further_attempts_ask_for_more_memory_but_not_for_more_than_a_node_has(name: str) -> None:
    """What Snakemake makes of the expression; an attempt never knows whether time or memory ended the last one."""
    settings = dict(value.split("=", 1) for value in profile(name)["set-resources"])
    limit = {"slurm": 187_000, "slurm-h100": 498_000}[name]
    for rule in ("distill_minillm", "evaluate"):
        asked = [
            Resource.cli_evaluator(
                "mem_mb",
                settings[f"{rule}:mem_mb"],
                wildcards={},
                input=[],
                attempt=k,
                async_run=None,
            )
            for k in range(1, 30)
        ]
        assert asked[1] == asked[0] * 3 // 2
        assert asked == sorted(asked)
        assert max(asked) == limit


def test_a_stage_is_told_what_its_job_gets(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "copy")
    printed = project.run(
        "results/small/models/teacher-sft__student-minillm/seed1/manifest.json",
        *("--force", "--dry-run", "--printshellcmds"),
        *("--set-resources", "distill_minillm:runtime=600", "distill_minillm:processes=4"),
        "distill_minillm:gradient_checkpointing=1",
        "distill_minillm:deterministic=1",
        *("--set-threads", "distill_minillm=6"),
    )
    command = next(line for line in printed.splitlines() if "train.py" in line)
    words = shlex.split(command.strip())
    assert words[words.index("--processes") + 1] == "4"
    assert words[words.index("--gradient-checkpointing") + 1] == "1"
    assert words[words.index("--compile") + 1] == "0"
    assert words[words.index("--deterministic") + 1] == "1"
    assert words[words.index("--runtime") + 1] == "600"
    assert words[words.index("--nodes") + 1] == "1"
    (text,) = re.findall(r"--threads \$\(\((.*?)\)\) --", command)
    threads = eval(text.replace("/", "//"))
    assert threads == 1  # --cores 2 scales the threads down to two, and a process has at least one


@pytest.mark.parametrize("name", PROFILES)
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


SLURM_PROFILES = [name for name in PROFILES if profile(name).get("executor") == "slurm"]


def test_both_kinds_of_cluster_have_a_profile() -> None:
    assert SLURM_PROFILES == ["slurm", "slurm-h100"]


@pytest.mark.parametrize("name", SLURM_PROFILES)
def test_slurm_profile_names_every_training_rule(name: str) -> None:
    settings = profile(name)
    rules = [
        "teacher",
        "sft",
        *(f"distill_{method}" for method in distillation_methods()),
        *("evaluate", "likelihoods", "generate", "teacher_outputs"),
    ]
    for rule in rules:
        given = {value.split("=")[0] for value in settings["set-resources"]}
        request = "gres" if name == "slurm" else "slurm_extra"
        keys = (request, "processes", "micro_batch", "mem_mb", "runtime")
        assert {f"{rule}:{key}" for key in keys} <= given
        assert any(value.startswith(f"{rule}=") for value in settings["set-threads"])
    assert settings["slurm-status-command"] == "squeue"
    assert int(settings["retries"]) == 3


def test_slurm_profiles_differ_in_their_first_block_only() -> None:
    """A profile replaces the keys of another one whole, set-resources too, so none can build on another."""
    texts = [(ROOT / f"profiles/{name}/config.yaml").read_text() for name in SLURM_PROFILES]
    first, shared = zip(*(text.split("# From here on the same") for text in texts), strict=True)
    assert len(set(shared)) == 1
    variables = [yaml.safe_load(block)["__variables__"] for block in first]
    assert [list(block) for block in variables] == [list(variables[0])] * len(variables)
    differing = {key for key in variables[0] if len({block[key] for block in variables}) > 1}
    assert differing == {"gpu", "request", "cores", "memory", "node_memory", "micro_batch"}
    explained = (ROOT / "profiles/README.md").read_text()
    assert [key for key in variables[0] if not re.search(rf"[*`\s]{key}[*`,]", explained)] == []


def changed(name: str, folder: Path, **variables: str) -> dict:
    """A profile with other values in its first block."""
    text = (ROOT / f"profiles/{name}/config.yaml").read_text()
    for key, value in variables.items():
        text, count = re.subn(rf"^  {key}: \S+", f"  {key}: {value}", text, flags=re.M)
        assert count == 1, key
    (folder / "config.yaml").write_text(text)
    with open(folder / "config.yaml") as file:
        return ProfileConfigFileParser().parse(file)


def test_one_place_for_all_that_depends_on_the_cluster(tmp_path: Path) -> None:
    more = {"gpus": "2", "evaluation_gpus": "3"}
    settings = changed("slurm", tmp_path, account="rrg-mine", gpu="h100", **more)
    assert "slurm_account=rrg-mine" in settings["default-resources"]
    assert {"sft:gres=gpu:h100:2", "sft:processes=2", "generate:gres=gpu:h100:1"} <= set(
        settings["set-resources"]
    )
    for rule in ("evaluate", "likelihoods"):
        sharing = {f"{rule}:gres=gpu:h100:3", f"{rule}:processes=3"}
        assert sharing <= set(settings["set-resources"]) and f"{rule}=12" in settings["set-threads"]
    assert {"sft=8", "generate=4"} <= set(settings["set-threads"])


@pytest.mark.parametrize("name", SLURM_PROFILES)
def test_a_cluster_without_accounts_but_with_partitions(name: str, tmp_path: Path) -> None:
    settings = changed(name, tmp_path, account='""', partition="gpu")
    given = dict(value.split("=") for value in settings["default-resources"])
    assert given == {"slurm_partition": "gpu", "runtime": "60", "mem_mb": "4000"}


@pytest.mark.parametrize("name", SLURM_PROFILES)
@pytest.mark.parametrize("gpu", ["", "v100", "h100"])
@pytest.mark.parametrize("more", ["", "--exclude=a1,a2 --switches=1"])
def test_gpus_and_options(name: str, gpu: str, more: str, tmp_path: Path) -> None:
    settings = changed(name, tmp_path, gpu=f'"{gpu}"', options=f'"{more}"')
    given = dict(value.split("=", 1) for value in settings["set-resources"])
    for rule, count in (("distill_minillm", 4), ("evaluate", 1)):
        wanted = f"{gpu}:{count}" if gpu else str(count)
        extra = ast.literal_eval(given[f"{rule}:slurm_extra"]).split()
        if name == "slurm":
            assert given[f"{rule}:gres"] == f"gpu:{wanted}"
            assert extra == more.split()
        else:
            assert f"{rule}:gres" not in given
            assert extra == [f"--gpus-per-node={wanted}", *more.split()]
