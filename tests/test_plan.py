"""The plan: what stages compute, how long they take, what of it is done."""

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Project
from datasets import load_from_disk
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from workspace import Workspace, of_split

from takd.__main__ import main
from takd.experiment import lineage
from takd.experiment.experiment import load
from takd.methods.schedule import total_steps
from takd.models import shapes
from takd.models.causal_lm import load_model
from takd.preflight import disk, flops, rates, table
from takd.preflight.gpus import asked_for, find_gpu
from takd.preflight.jobs import Job
from takd.preflight.memory import Resources
from takd.preflight.plan import Planner
from takd.runtime.stage import Stage
from takd.training import train

aten = torch.ops.aten
# attention on the CPU, which torch's counter leaves out
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, **kwargs: (
        sdpa_flop_count(q, k, v)
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *args, **kw: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Trained models are random ones here: what is counted does not depend on the weights."""
    space = Workspace(tmp_path_factory.mktemp("space"))
    for split, count in (("train", 48), ("dev", 16)):  # equally long, as padding is not planned
        rows = load_from_disk(str(space.folder / split / "dataset"))
        rows = rows.select([i % len(rows) for i in range(count)])
        rows = rows.map(
            lambda row, i: {
                "prompt_ids": [7, 2 + i % 10, 3, 4, 5, 6],
                "response_ids": [2, 3, 4, 5, 0],
            },
            with_indices=True,
        )
        rows.save_to_disk(space.folder / f"{split}-equal" / "dataset")
        space.manifest(f"{split}-equal", **of_split(split))
    for name, start in (("trained-teacher", "teacher"), ("trained-student", "student")):
        for place in ("model", "init"):
            model = load_model(space.folder / start / "model", seed=1)
            model.save_pretrained(space.folder / name / place)
        space.manifest(name)
    return space


def rows_of(folder: Path) -> flops.Rows:
    dataset = load_from_disk(str(folder / "dataset"))
    prompt, response = (
        sum(map(len, dataset[column])) / len(dataset) for column in ("prompt_ids", "response_ids")
    )
    return flops.Rows(len(dataset), prompt, response)


def counted(
    space: Workspace,
    name: str,
    method: str,
    other: dict[str, str] | None = None,
    micro_batch: int = 4,
    **settings: Any,
) -> tuple[float, Any, dict]:
    """Operations of a training stage by torch's own count, its settings, and the end of its journal."""
    spec = space.spec(method, **{"dropout": 0.0, **settings})
    inputs = {
        "base": "student",
        "tokenizer": "tokenizer",
        "train": "train-equal",
        "dev": "dev-equal",
    }
    if method != "sft":
        inputs |= {"teacher": "trained-teacher", "init": "trained-student"}
    inputs |= other or {}
    if spec["settings"].get("lm_weight"):
        inputs["corpus"] = "corpus"
    folder = space.folder / name
    folder.mkdir()
    outputs = {"model": "model", "metrics": "metrics.jsonl"}
    if method == "sft":
        outputs["init"] = "init"
    stage = Stage(
        spec=spec,
        code="any",
        inputs={key: [space.folder / place / "manifest.json"] for key, place in inputs.items()},
        outputs={
            key: folder / file for key, file in {**outputs, "manifest": "manifest.json"}.items()
        },
        micro_batch=micro_batch,
    )
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        train.run(stage)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return counter.get_total_flops(), spec, [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sft", "kd", "gkd", "skd", "minillm", "minillm-no-mix", "sft-lora"]
)
def test_work_is_what_torch_counts(space: Workspace, name: str) -> None:
    """Within 10 %: rows of a batch are padded, and a few passes before the first step are not planned."""
    method = name.split("-")[0]
    settings: dict[str, Any] = {
        "minillm-no-mix": {"teacher_mix": 0.0, "lm_weight": 0.0},
        "gkd": {"on_policy_share": 1.0},
        "skd": {"on_policy_share": 1.0},
        "sft-lora": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": None}},
    }.get(name, {})
    # drawn rows have to be many, for the lengths of dev, and few at a time, which need little padding
    steps, rows = (12, 8) if method in ("sft", "kd") else (24, 4)
    settings |= {"steps": steps, "batch_size": 8, "evaluate_every": 8}
    found, spec, journal = counted(space, name, method, micro_batch=rows, **settings)
    student = shapes.config_of(space.folder / "student/model")
    teacher = shapes.config_of(space.folder / "trained-teacher/model")
    # random models draw longer responses than the labels: those that they drew
    drawn = [line["response_length"] for line in journal if line["kind"] == "dev"]
    train_rows, dev_rows = (rows_of(space.folder / f"{name}-equal") for name in ("train", "dev"))
    given = flops.Conditions(
        Resources(micro_batch=rows), drawn=sum(drawn) / len(drawn), block_length=12
    )
    models = student, None if method == "sft" else teacher
    planned = flops.training(spec, *models, train_rows, dev_rows, given)
    assert planned is not None
    assert planned.operations == pytest.approx(found, rel=0.10)
    assert planned.tokens == pytest.approx(journal[-1]["tokens"], rel=0.06)


def test_checkpoints_and_weights_take_the_disk_that_is_planned(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wider models, so that weights are what takes it; within 5 %."""
    monkeypatch.setattr(train.Checkpoints, "close", lambda checkpoints: None)
    for name, start in (("student", "wide"), ("trained-teacher", "wide-teacher")):
        folder = space.folder / start / "model"
        config = json.loads((space.folder / name / "model/config.json").read_text())
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({**config, "n_embd": 256}))
        space.manifest(start)
    load_model(space.folder / "wide-teacher/model").save_pretrained(
        space.folder / "wide-teacher/model"
    )
    student = shapes.config_of(space.folder / "wide/model")
    for method in ("sft", "minillm"):
        more = {"lm_weight": 0.0, "rollouts_per_round": 64} if method == "minillm" else {}
        inputs = {"base": "wide", "init": "wide", "teacher": "wide-teacher"}
        monkeypatch.setattr(train, "_weights", lambda stage: space.folder / "wide/model")
        _, spec, journal = counted(
            space, f"disk-{method}", method, inputs, steps=4, evaluate_every=2, batch_size=8, **more
        )
        folder = space.folder / f"disk-{method}"
        drawn = journal[-2]["response_length"]
        planned = disk.training(spec, student, student if method == "minillm" else None, drawn)
        outputs = sum(size_of(folder / name) for name in ("model", "init"))
        assert planned.stays == pytest.approx(outputs, rel=0.05)
        (key,) = [path for path in (folder / "checkpoints").iterdir() if path.is_dir()]
        checkpoints = [size_of(path) for path in key.glob("step-*")]
        assert len(checkpoints) == 2
        kept = disk.KEPT * 4 * student.parameters
        assert (planned.meanwhile - kept) / disk.CHECKPOINTS == pytest.approx(
            max(checkpoints), rel=0.05
        )
        assert sum(size_of(path) for path in key.glob("kept-*")) <= 1.05 * kept


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


ROUNDS = {"rollouts_per_round": 4, "inner_epochs": 4}


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"steps": 7}, 7),
        ({"epochs": 3.5}, 7),
        ({"epochs": 3.6}, 8),
        ({"steps": 30, "epochs": 2.0}, 4),
        ({"steps": 7, **ROUNDS}, 7),
        ({"epochs": 3.5, **ROUNDS}, 28),  # 4 rollouts make 2 batches, 4 times
        ({"steps": 30, "epochs": 2.0, **ROUNDS}, 16),
    ],
)
def test_steps_of_four_rows_in_batches_of_two(settings: dict[str, Any], steps: int) -> None:
    """A plan and a training count them alike, as long as the number of rows is known."""
    settings = {"steps": None, "epochs": None, "batch_size": 2, **settings}
    assert total_steps(settings, 4) == steps
    assert total_steps(settings, None) == settings["steps"]


def test_student_responses_are_drawn_as_often_as_the_regime_does() -> None:
    """The real method's own choices, counted over many steps."""
    from models_for_tests import context
    from workspace import COMMON, SETTINGS

    for regime in ("off", "mixed", "adaptive"):
        settings = {
            **COMMON,
            **SETTINGS["gkd"],
            "on_policy": regime,
            "steps": 2000,
            "capacity": 400,
        }
        method = importlib.import_module("takd.methods.gkd").METHOD(context(settings, None, 11))
        counts = {"data": 0, "student": 0, "buffer": 0}
        for step in range(2000):
            source = method.source(step)
            counts[source] += 1
            if source == "student" and regime == "adaptive":
                method.buffer.extend([None] * settings["batch_size"])
        new, old = flops.drawing_steps(settings, 2000)
        assert new == pytest.approx(counts["student"], abs=60)
        assert old == pytest.approx(counts["buffer"], abs=60)


# jobs, as Snakemake tells them


def planned(project: Project, *words: str, capsys: Any) -> dict[str, Any]:
    assert main(["plan", "--json", *words]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("warm_plans")
def test_what_is_done_is_what_snakemake_would_not_run(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    project = finished.copy(tmp_path / "copy")
    monkeypatch.setattr("takd.__main__.ROOT", project.folder)
    found = planned(project, capsys=capsys)
    lines = {line["stage"]: line for line in found["stages"]}
    assert lines["left to do"]["jobs"] == 0
    assert lines["all"]["jobs"] == len(found["jobs"]) > 20
    assert found["disk"]["stays"] == 0
    # a changed setting makes its results stale, though they are there
    project.experiment(lambda settings: settings["training"]["kd"].update(steps=6))
    left = project.plan()
    found = planned(project, capsys=capsys)
    to_do: dict[str, int] = {}
    for job in found["jobs"]:
        if job["to_do"]:
            to_do[job["rule"]] = to_do.get(job["rule"], 0) + 1
    assert to_do == left
    assert to_do["distill_kd"] == 1


@pytest.mark.usefixtures("warm_plans")
def test_right_after_a_clone_the_profile_says_what_jobs_get(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (project.folder / "data/dev.jsonl").unlink()
    monkeypatch.setattr("takd.__main__.ROOT", project.folder)
    found = planned(project, "--profile", "profiles/slurm", "--rows", "dev=10", capsys=capsys)
    assert found["gpu"] == "v100-32gb"
    assert all(job["to_do"] for job in found["jobs"])
    by_rule = {job["rule"]: job for job in found["jobs"]}
    assert by_rule["distill_minillm"]["gpus"] == 4
    assert by_rule["evaluate"]["gpus"] == 1
    assert by_rule["data"]["operations"] is None
    assert all(job["operations"] > 0 for job in found["jobs"] if job["memory"])
    # without the number of rows, a sum is a lower bound and says so
    assert main(["plan", "--profile", "profiles/slurm"]) == 0
    printed = capsys.readouterr().out
    assert "Rows of dev are not known" in printed
    assert re.search(r"^sft student-sft .* \? +\? +\? +\? ", printed, re.M)


SHIPPED = sorted(path.stem for path in (ROOT / "config/experiments").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_experiment_can_be_planned(name: str) -> None:
    """Its models and trainings, without asking Snakemake."""
    experiment = load(ROOT / f"config/experiments/{name}.yaml", ROOT)
    counts = dict.fromkeys(experiment.splits, 1000)
    planner = Planner(experiment, find_gpu("a100"), counts=counts)
    jobs = [job_of(node, experiment) for node in experiment.nodes]
    plan = planner.plan(jobs)
    assert all(each.work and each.estimate and each.footprint for each in plan)
    text = table.text(planner, plan)
    assert "assumed" in text
    banned = experiment.settings["evaluation"]["decoding"]["no_repeat_ngram"]
    assert ("evaluation.decoding.no_repeat_ngram: the host reads every token" in text) == bool(
        banned
    )
    widths = {len(line) for line in text.split("\n\n")[0].splitlines() if line.startswith("-")}
    assert len(widths) == 1


def job_of(node: Any, experiment: Any) -> Job:
    hops = lineage.split(node.lineage)
    teacher, seed = lineage.teacher_of(node.lineage), str(node.seed)
    if teacher is None:
        return Job(
            "sft", node.lineage, {"model": hops[0].model, "seed": seed}, {"micro_batch": "4"}
        )
    names = {"teacher": teacher, "student": hops[-1].model, "method": hops[-1].method, "seed": seed}
    return Job(f"distill_{hops[-1].method}", node.lineage, names, {"micro_batch": "4"})


def test_processes_and_gpus_of_a_job_are_those_of_its_resources() -> None:
    extra = "'--constraint=a,b --gpus-per-node=h100:4'"
    resources = {"nodes": "2", "processes": "4", "runtime": "300", "slurm_extra": extra}
    evaluate = Job("evaluate", "scores.json", {"lineage": "a-sft__b-kd"}, resources)
    assert (evaluate.lineage, evaluate.allotted.world) == ("a-sft__b-kd", 8)
    assert asked_for(evaluate.resources) == ("h100", 4)


# how long


def test_hours_come_from_runs_of_the_same_kind_and_gpu_nearest_in_size() -> None:
    gpu = find_gpu("v100l")
    todo = flops.Work(passes=1e15)

    def run(gpu: str, kind: str, parameters: int, rate: float) -> rates.Measured:
        return rates.Measured(gpu, kind, parameters, 10 * rate, 10.0)

    runs = [
        run("v100-32gb", "sft", 100, 1e12),
        run("v100-32gb", "sft", 100, 3e12),
        run("v100-32gb", "sft", 300, 9e12),
        run("v100-32gb", "kd", 100, 5e12),
        run("h100", "sft", 100, 7e12),
    ]
    found = rates.estimate(todo, "sft", 110, gpu, "fp16", runs)
    assert found.seconds == pytest.approx(1e15 / 2e12)
    assert "measured on v100-32gb by 2 runs of 100 parameters" in found.source
    for kind, parameters in (("minillm", 100), ("sft", 10_000)):
        assumed = rates.estimate(todo, kind, parameters, gpu, "fp16", runs)
        assert assumed.source == "assumed"
        assert assumed.seconds == pytest.approx(1e15 / (0.30 * 125e12))


def test_decoding_waits_for_arithmetic_for_memory_or_for_kernels() -> None:
    gpu = find_gpu("v100l")
    assert rates.assumed(flops.Work(decoding=37.5e12), gpu, "fp16") == pytest.approx(1.0)
    assert rates.assumed(flops.Work(read=450e9), gpu, "fp16") == pytest.approx(1.0)
    assert rates.assumed(flops.Work(block_steps=20_000), gpu, "fp16") == pytest.approx(1.0)
    # one row at a time takes as many steps as there are tokens, sixteen a sixteenth
    shape = shapes.estimated(124_000_000)
    one, many = (
        flops.decoded(shape, 160, 10, 50, flops.Conditions(together=rows)) for rows in (1, 16)
    )
    assert one.decoding == many.decoding
    assert one.block_steps == 16 * many.block_steps


def test_a_finished_training_is_measured(space: Workspace, tmp_path: Path) -> None:
    """Its operations are those that torch counted, and its seconds those of a CPU core in its journal."""
    found, _, journal = counted(space, "measured", "sft", steps=12, batch_size=8)
    place = tmp_path / "results/other/models/student-sft/seed3"
    shutil.copytree(space.folder / "measured", place)
    for split in ("train", "dev"):
        rows = rows_of(space.folder / f"{split}-equal")
        assert rows.count is not None
        folder = tmp_path / "results/other/data" / split
        folder.mkdir(parents=True)
        tokens = {"prompt": rows.count * rows.prompt, "response": rows.count * rows.response}
        text = json.dumps({"counts": {"kept": rows.count}, "tokens": tokens})
        (folder / "manifest.json").write_text(text)
    (run,) = rates.measured(tmp_path / "results")
    assert (run.gpu, run.kind, run.seconds) == ("cpu", "sft", journal[-1]["cpu_seconds"])
    assert run.operations == pytest.approx(found, rel=0.10)
    # what is half there is passed over
    (place / "metrics.jsonl").write_text("")
    assert rates.measured(tmp_path / "results") == []
