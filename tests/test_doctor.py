"""What is checked before a run and at its start."""

import dataclasses
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Project, make_project, small_experiment

from takd.__main__ import main
from takd.experiment.experiment import load
from takd.preflight import collect, disk, doctor, fitting, memory, start
from takd.preflight.collect import Answer, Facts, Torch
from takd.preflight.gpus import GPUS, Gpu, asked_for, find_gpu
from takd.preflight.jobs import Job
from takd.preflight.plan import Planner
from takd.runtime.cuda_arch import check_kernels, has_kernels
from takd.runtime.errors import InputError

CU128 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


@pytest.mark.parametrize(
    ("capability", "archs", "right"),
    [
        ((7, 0), CU128, False),
        ((7, 0), CU126, True),
        ((7, 5), ["sm_70"], True),  # of the same major version
        ((8, 9), CU128, True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["sm_80", "compute_70"], True),  # intermediate code runs on all newer cards
        ((7, 0), ["compute_75"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100a"], False),
        ((12, 0), ["sm_120"], True),
        ((7, 0), [], False),
    ],
)
def test_kernels_of_a_build(capability: tuple[int, int], archs: list[str], right: bool) -> None:
    assert has_kernels(capability, archs) == right


def test_a_card_without_kernels_is_refused_with_what_to_install() -> None:
    check_kernels((7, 0), CU126, "Tesla V100-SXM2-32GB", "2.11.0+cu126")
    with pytest.raises(
        InputError,
        match=r"^torch 2\.13\.0\+cu130 has no kernels for Tesla V100-SXM2-32GB \(sm_70\), only for sm_75, .*"
        r"install a build against CUDA 12\.6 \(make env TARGET=volta\).* up to torch 2\.14\.$",
    ):
        check_kernels((7, 0), CU128, "Tesla V100-SXM2-32GB", "2.13.0+cu130")
    with pytest.raises(InputError, match="newer torch, built for sm_120"):
        check_kernels((12, 0), CU126, "any", "2.7")


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("v100l", "v100-32gb"),
        ("V100", "v100-16gb"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("a100", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA L40S", "l40s"),
        ("cpu", "cpu"),
    ],
)
def test_gpus_by_the_names_of_clusters_and_drivers(name: str, card: str) -> None:
    assert find_gpu(name).name == card


def test_every_card_is_found_by_its_own_name_alone() -> None:
    for card in GPUS:
        assert find_gpu(card.name) is card
    assert find_gpu("v100l").precision() == "fp16"
    assert find_gpu("a40").precision() == "bf16"
    with pytest.raises(
        InputError, match=r"GPU 'h10O' is not in the table .*--gpu: did you mean 'h100'"
    ):
        find_gpu("h10O")


@pytest.mark.parametrize(
    ("resources", "asked"),
    [
        ({"gres": "gpu:v100l:4"}, ("v100l", 4)),
        ({"gres": "gpu:2"}, ("", 2)),
        ({"gres": "gpu:a100"}, ("a100", 1)),
        ({"slurm_extra": "'--gpus-per-node=h100:4'"}, ("h100", 4)),
        ({"slurm_extra": "--constraint=x --gres=gpu:a100_80gb:1"}, ("a100_80gb", 1)),
        ({"mem_mb": "4000"}, None),
    ],
)
def test_card_that_a_job_asks_for(resources: dict[str, str], asked: Any) -> None:
    assert asked_for(resources) == asked


# findings


FACTS = Facts(
    python="3.11.7",
    versions={name: ("1.0", "1.0") for name in (*doctor.NEEDED, "deepspeed")},
    torch=Torch("2.13.0", "12.6", CU126),
    gpus=[],
    executor="slurm",
    slurm=Answer(0, "gpu:v100l:4\n"),
    account="rrg-mine",
    accounts=["rrg-mine"],
    hub=[],
    hub_problem=None,
    free=1e15,
    free_cache=None,
    attempts=4,
)


def planner(card: str = "v100l", experiment: str = "gpt2-dolly") -> Planner:
    path = ROOT / f"config/experiments/{experiment}.yaml"
    counts = {"train": 11435, "dev": 1000, "dolly": 500}
    return Planner(load(path, ROOT), find_gpu(card), counts=counts)


def training(micro_batch: int = 4, gpus: int = 4, **resources: str) -> Job:
    """The largest distillation of the replication."""
    return Job(
        "distill_minillm",
        "results/gpt2-dolly/models/1.5B-sft__760M-minillm/seed10/model",
        {"teacher": "1.5B-sft", "student": "760M", "method": "minillm", "seed": "10"},
        {
            "gres": f"gpu:v100l:{gpus}",
            "processes": str(gpus),
            "micro_batch": str(micro_batch),
            "runtime": "600",
            **resources,
        },
    )


def found(jobs: list[Job] | None = None, card: str = "v100l", **facts: Any) -> dict[str, str]:
    """Findings that are not ok, by subject, with their level."""
    own = planner(card)
    planned = own.plan([training()] if jobs is None else jobs)
    findings = doctor.examine(dataclasses.replace(FACTS, **facts), own, planned)
    assert all("\n" not in str(finding) for finding in findings)
    return {f.subject: f"{f.level}: {f.text}" for f in findings if f.level != "ok"}


def test_nothing_is_found_where_all_is_well() -> None:
    assert found() == {}


@pytest.mark.parametrize(
    ("facts", "subject", "level", "text"),
    [
        ({"torch": Torch("2.13.0", "13.0", CU128)}, "torch", "error", "cu126, up to torch 2.14"),
        ({"torch": Torch("2.13.0", "12.8")}, "torch", "error", "no kernels for v100-32gb"),
        ({"torch": Torch("2.13.0", None)}, "torch", "error", "built for the CPU"),
        ({"torch": None}, "torch", "error", "make env"),
        ({"python": "3.9.2"}, "python", "error", "3.11 or newer"),
        ({"slurm": Answer(1, "x\nno controller")}, "Slurm", "error", "(no controller): start this"),
        ({"slurm": Answer(0, "gpu:h100:4(S:0-1)\n")}, "Slurm", "error", "sinfo names h100"),
        ({"account": "def-CHANGEME"}, "account", "error", "put your own account (rrg-mine)"),
        ({"account": "def-other"}, "account", "warning", "none that Slurm names"),
        ({"hub": ["gpt2"], "hub_problem": "no route"}, "hub", "error", "HF_ENDPOINT"),
        ({"missing": "no such file"}, "files", "error", "no such file"),
        ({"free": 2e9}, "disk", "error", "2GB free, but the run writes 3.1GB"),
        ({"free": 5e9}, "disk", "warning", "of checkpoints: make room"),
    ],
)
def test_each_fault_is_one_line_with_what_to_do(
    facts: dict[str, Any], subject: str, level: str, text: str
) -> None:
    said = found(**facts)
    assert list(said) == [subject]
    assert said[subject].startswith(level)
    assert text in said[subject]


def test_an_older_torch_has_kernels_for_volta_whatever_its_cuda() -> None:
    assert found(torch=Torch("2.7.1", "12.8")) == {}
    assert found(torch=Torch("2.11.0", "12.6")) == {}


def test_packages_that_are_missing_or_others() -> None:
    versions = {**FACTS.versions, "deepspeed": (None, "1.0"), "torch": ("2.9.0", "1.0")}
    job = Job("teacher", "any", {"model": "1.5B", "seed": "10"}, training().resources)
    said = found([job], versions=versions)
    assert "1.5B-sft ask for it" in said["DeepSpeed"]
    assert said["versions"].startswith("warning: other than tested: torch 2.9.0 (tested: 1.0)")


def test_a_gpu_of_this_machine_needs_kernels_too() -> None:
    said = found(gpus=[Gpu("NVIDIA B200", 180, (10, 0))])
    assert "no kernels for NVIDIA B200 (sm_100)" in said["torch"]


def test_memory_names_what_fills_the_card_and_a_micro_batch_that_fits() -> None:
    said = found([training(micro_batch=16)])["memory"]
    assert said.startswith("error: distill_minillm 1.5B-sft__760M-minillm takes ")
    assert "(activations " in said
    size = int(said.split("micro_batch: ")[1].split(" ")[0])
    assert 4 <= size < 16
    assert found([training(micro_batch=size)]) == {}
    # or by tokens, with which short rows still go together
    tokens = said.split("or max_tokens: ")[1].split(" ")[0]
    assert found([training(micro_batch=16, max_tokens=tokens)]) == {}
    more = found([training(micro_batch=16, max_tokens="8192")])["memory"]
    less = more.split("set max_tokens: ")[1].split(" ")[0]
    assert found([training(micro_batch=16, max_tokens=less)]) == {}


def decoded(job: Job, card: str) -> tuple[dict[str, int], list[Any]]:
    """The responses that a job decodes at once, and what doctor says of them."""
    own = planner(card)
    planned = own.plan([job])
    (each,) = planned
    assert each.footprint is not None
    return each.footprint.rows, list(fitting.decoding(own, planned))


def test_rows_of_decoding_follow_from_the_memory_beside_the_models() -> None:
    rows, (said,) = decoded(training(), "h100")
    assert rows == {"dev": 128, "rollouts": 128}
    assert str(said).startswith("ok") and "memory for 128 responses at once" in said.text
    rows, (said,) = decoded(training(), "v100l")
    assert 16 <= rows["rollouts"] < rows["dev"] < 128  # the teacher's caches are as large again
    assert f"memory for {rows['rollouts']} to {rows['dev']} responses" in said.text
    # a micro-batch is what training holds, and leaves decoding as it is
    assert decoded(training(micro_batch=1), "v100l")[0] == rows


def test_memory_for_few_responses_at_once_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "FEW_ROWS", 64)
    rows, (said,) = decoded(training(), "v100l")
    assert said.level == "warning"
    assert f"rollouts of distill_minillm 1.5B-sft__760M-minillm {rows['rollouts']}" in said.text
    # what does not fit at all is said elsewhere
    assert decoded(training(), "v100")[1] == []


def test_memory_asks_for_checkpointing_or_sharding_where_no_micro_batch_is_enough() -> None:
    said = found([training(micro_batch=1)], card="v100")["memory"]
    assert "no micro_batch fits; set deepspeed: zero2 or zero3, or lora" in said


def test_main_memory_that_each_process_needs_to_read_its_models() -> None:
    """Four processes, each with a student of 760M in float32, a teacher of 1.5B in half precision, and 3 GiB."""
    said = found([training(mem_mb="30000")])["memory"]
    assert said.startswith("error: distill_minillm 1.5B-sft__760M-minillm takes 38 GB of a node's")
    assert "for 4 processes (Python and PyTorch 13, " in said and "gives 30 GB" in said
    wanted = said.split("set mem_mb of distill_minillm to ")[1].split(" ")[0]
    assert found([training(mem_mb=wanted)]) == {}
    assert found([training(mem_mb="1000")], executor=None) == {}  # where nobody counts it


def test_main_memory_with_offloading_holds_the_optimizer() -> None:
    student = planner().shapes["1.5B"]
    config = json.loads((ROOT / "config/deepspeed/zero3-offload.json").read_text())
    settings = {"precision": "auto", "deepspeed": {"name": "zero3-offload", "config": config}}
    spec = {"method": "sft", "settings": settings}
    for nodes in (1, 2):
        given = memory.Resources(processes=2, nodes=nodes)
        parts = memory.host(student, None, spec, given, find_gpu("a100"))
        here = student.parameters / nodes
        assert parts["master weights and moments"] == pytest.approx(12 * here)
        assert parts["student's weights"] == pytest.approx(2 * here)
        assert parts["what is written"] == 4 * student.parameters


@pytest.mark.parametrize(("card", "level"), [("v100l", "warning"), ("a100", None)])
def test_models_that_compute_in_fp32_for_want_of_bfloat16(card: str, level: str | None) -> None:
    own = planner(card)
    pretrained = dataclasses.replace(own.shapes["760M"], pretrained="bfloat16", estimated=False)
    own.shapes["760M"] = pretrained
    planned = own.plan([training()])
    findings = list(fitting.precision(own, planned))
    if level is None:
        assert not findings
        return
    (finding,) = findings
    assert finding.level == level
    assert finding.text.startswith("760M were pretrained in bfloat16, which a v100-32gb lacks")
    assert own.precision(training()) == "fp32"
    (plain,) = planner(card).plan([training()])
    wide, narrow = planned[0].footprint, plain.footprint
    assert wide and narrow
    # training takes more; decoding takes what is left, for fewer rows
    wider, narrower = (sum(each.moments["training"].values()) for each in (wide, narrow))
    assert wider > narrower
    assert all(wide.rows[use] < narrow.rows[use] for use in ("dev", "rollouts"))
    assert planned[0].hours and plain.hours and planned[0].hours > plain.hours


def test_time_that_the_attempts_do_not_give() -> None:
    said = found([training(runtime="10")])
    assert said["time"].startswith(
        "warning: distill_minillm 1.5B-sft__760M-minillm is expected to take"
    )
    assert found([dataclasses.replace(training(runtime="10"), to_do=False)]) == {}


# Slurm at the start of a run


QUEUE = """\
12|rule_sft_wildcards_student_1|RUNNING|/home/me/takd
13|rule_evaluate|PENDING|/home/me/takd
14|rule_evaluate|COMPLETED|/home/me/takd
15|rule_evaluate|RUNNING|/home/me/other
16|my own|RUNNING|/home/me/takd
17|rule_a|b|PENDING|/home/me/takd
"""


def test_jobs_of_an_earlier_run_are_those_of_this_folder_that_are_not_done() -> None:
    assert start.earlier_jobs(QUEUE, "/home/me/takd") == ["12", "13", "17"]
    assert start.earlier_jobs("", "/home/me/takd") == []
    assert start.earlier_jobs("1|FAILED\n", "/home/me/takd") == []


def test_an_earlier_run_is_named_in_one_sentence() -> None:
    (finding,) = start.slurm_findings(Answer(0, QUEUE), "rrg-mine", None, "/home/me/takd")
    assert finding.text == (
        "jobs 12, 13, 17 of an earlier run still work in this folder: wait for them, or `scancel 12 13 17`, then"
        " start again."
    )


def test_slurm_that_does_not_answer_is_one_finding_with_its_reason() -> None:
    (finding,) = start.slurm_findings(
        Answer(1, "squeue: x\nno controller"), "def-CHANGEME", None, "/"
    )
    assert finding.level == "error"
    assert finding.text.startswith(
        "Slurm does not answer (no controller): start this on a login node"
    )


def test_a_placeholder_is_refused_unless_slurm_knows_it() -> None:
    queue = Answer(0, "")
    (finding,) = start.slurm_findings(queue, "def-CHANGEME", None, "/")
    assert finding.subject == "account"
    assert not list(start.slurm_findings(queue, "def-CHANGEME", ["def-changeme"], "/"))
    assert not list(start.slurm_findings(queue, None, None, "/"))


# Stand-ins for Slurm's commands: every job that is submitted has failed when it is asked for
COMMANDS = {
    "sbatch": 'echo x >>"$SUBMITTED"; wc -l <"$SUBMITTED"',
    "squeue": 'case "$*" in *%Z*) echo "$QUEUED" ;; *) seq "$(wc -l <"$SUBMITTED")" | sed "s/$/|FAILED/" ;; esac',
    "sinfo": "echo gpu:v100l:4",
    "sacctmgr": 'echo "$ACCOUNTS"',
    "scontrol": "echo MinJobAge = 3600 sec",
    "scancel": "true",
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment with Slurm's commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in COMMANDS.items():
        script = folder / name
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    submitted = tmp_path / "submitted"
    submitted.touch()
    found = {"SUBMITTED": str(submitted), "QUEUED": "", "ACCOUNTS": "rrg-mine"}
    return {**os.environ, **found, "PATH": f"{folder}:{os.environ['PATH']}"}


def submit(project: Project, slurm: dict[str, str], **environment: str) -> tuple[str, bool]:
    """Start one training with the Slurm profile; what was printed, and whether a job was submitted."""
    printed = project.run(
        "results/small/models/assistant-sft/seed1/manifest.json",
        *("--force", "--profile", "profiles/slurm", "--retries", "0", "--latency-wait", "1"),
        *("--slurm-init-seconds-before-status-checks", "1"),
        check=False,
        env={**slurm, **environment},
    )
    return printed, bool(Path(slurm["SUBMITTED"]).read_text())


def test_a_run_with_slurm_stops_at_its_start_where_it_would_fail(
    finished: Project, tmp_path: Path, slurm: dict[str, str]
) -> None:
    """Each of these is one sentence, before anything is submitted; the last run gets through."""
    project = finished.copy(tmp_path / "copy")
    printed, submitted = submit(project, slurm)
    assert "Error: the profile still says def-CHANGEME: put your own account (rrg-mine)" in printed
    assert not submitted
    project.replace("profiles/slurm/config.yaml", "def-CHANGEME", "rrg-mine")
    queued = f"7|rule_sft|RUNNING|{project.folder}"
    printed, submitted = submit(project, slurm, QUEUED=queued)
    assert "Error: job 7 of an earlier run still works in this folder: wait for it" in printed
    assert not submitted
    printed, submitted = submit(project, slurm, QUEUED=queued.replace(str(project.folder), "/else"))
    assert submitted, printed
    assert (
        "Warning: torch: " in printed
    )  # this one is built for the CPU, and the job asks for a V100


def test_a_local_run_is_checked_once_and_asks_slurm_nothing(
    project: Project, slurm: dict[str, str]
) -> None:
    """The processes that Snakemake starts for jobs have no hooks."""
    first = "    experiment.require_files()"
    project.replace("src/takd/preflight/start.py", first, f'    print("CHECKED")\n{first}')
    (Path(slurm["SUBMITTED"]).parent / "bin/squeue").write_text("#!/bin/sh\necho ASKED >&2\n")
    printed = project.run("results/small/models/student-sft/seed1/manifest.json", env=slurm)
    assert printed.count("CHECKED") == 1
    assert not re.search("Warning|account|ASKED", printed)
    assert "CHECKED" not in project.run("--dry-run", "--forceall")


def test_what_only_expects_does_not_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Workflow:
        executor_plugin = None

    monkeypatch.setattr(start, "of_dag", lambda workflow: [training(micro_batch="many")])  # type: ignore[arg-type]
    experiment = planner(experiment="demo").experiment
    (warning,) = start.check(experiment, Workflow())
    assert warning.startswith("Warning: preflight: nothing can be expected (")


def test_nothing_heavy_is_imported_to_check_a_start() -> None:
    code = (
        "import sys, takd.runtime.cuda_arch, takd.preflight.start;"
        "print({'torch', 'transformers', 'datasets', 'pandas', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.stdout.strip() == "set()", done.stderr


def test_weights_that_have_no_room_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda place: 1e9)
    with pytest.raises(
        InputError, match=r"disk: 1GB free, but the run writes 3\.1GB that stay: make room"
    ):
        list(start.expected(planner().experiment, [training()]))
    monkeypatch.setattr(disk, "free_bytes", lambda place: 4e9)
    said = list(start.expected(planner().experiment, [training(micro_batch=64)]))
    assert {"disk", "memory", "torch"} <= {finding.subject for finding in said}


# what is collected


def test_the_torch_that_is_installed_is_known_without_importing_it() -> None:
    import torch

    found = collect.installed_torch()
    assert found is not None
    assert (found.version, found.cuda) == (torch.__version__, torch.version.cuda)


def test_a_command_that_is_not_there_is_an_answer() -> None:
    answer = collect.ask("no-such-command")
    assert not answer.works
    assert "no-such-command" in answer.said


def test_gpus_as_nvidia_smi_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!{sys.executable}\nprint('Tesla V100-SXM2-32GB, 32768, 7.0')\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert collect.own_gpus() == [Gpu("Tesla V100-SXM2-32GB", 32.0, (7, 0))]
    assert collect.choose_gpu(None, []).name == "v100-32gb"


@pytest.mark.usefixtures("warm_plans")
def test_command_line(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Right after a clone, with data that are not there."""
    monkeypatch.setattr("takd.__main__.ROOT", project.folder)
    monkeypatch.setattr(collect, "ask", lambda *command: Answer(127, f"no {command[0]}"))
    project.experiment(lambda settings: settings["data"].update(dev={"json": "data/none.jsonl"}))
    assert main(["doctor", "--profile", "profiles/slurm"]) == 1
    printed = capsys.readouterr().out
    subjects = [line.split()[1] for line in printed.splitlines() if line.startswith("error")]
    assert subjects == ["torch", "Slurm", "account", "files"]
    for words, text in (
        (["plan", "--gpu", "abacus"], "the GPU 'abacus' is not in the table"),
        (["plan", "--card", "v100l"], "--card is called --gpu: --gpu v100l"),
        (["plan", "--rows", "tain=3"], "there is no such data; there are train, dev, heldout"),
        (["plan", "--rows", "train=x"], "must end in a number of rows"),
        (["plan", "--profile", "profiles/none"], "there are profiles/local, profiles/slurm"),
        (["plan", "--experiment", "smal"], "did you mean 'small'"),
    ):
        assert main(words) == 1
        assert text in capsys.readouterr().err


@pytest.mark.usefixtures("warm_plans")
def test_a_local_experiment_is_well(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path / "project", small_experiment())
    monkeypatch.setattr("takd.__main__.ROOT", project.folder)
    assert main(["doctor"]) == 0, capsys.readouterr().out
