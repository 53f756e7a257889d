"""Training and evaluation stages as processes: killed and resumed, split over processes and micro-batches."""

import json
import random
import shutil
import signal
import time

import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file
from workspace import ROOT, TEACHER, TIMED, Workspace

from takd.methods.base import examples, response_tokens
from takd.methods.token_losses import label_loss
from takd.models.causal_lm import load_model
from takd.runtime.checkpoints import sweep
from takd.runtime.code_digest import git_commit
from takd.runtime.metrics_log import SPENT

LONG = {"steps": 48, "evaluate_every": 16}
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.1, "targets": None}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A prepared folder with a trained teacher and student."""
    space = Workspace(tmp_path_factory.mktemp("workspace"))
    space.finished(space.train("trained-student", "sft", steps=40, evaluate_every=20))
    shutil.copytree(space.folder / "trained-student", space.folder / "trained-teacher")
    space.manifest("trained-teacher", **TEACHER)
    return space


def weights(space, name):
    return load_file(space.folder / name / "model" / "model.safetensors")


def metrics(space, name):
    """Lines of metrics.jsonl without times and what depends on them, which differ between any two runs."""
    lines = (space.folder / name / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def assert_only_what_publishing_takes(folder):
    """Of all that made it resumable; and that takes no second place on the disk, and goes with the run."""
    left = [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]
    others = [path for path in left if not path.parent.name.startswith("kept-")]
    assert {path.name for path in others} == {"progress.json", "metrics.jsonl"}
    published = [(folder / name / "model.safetensors") for name in ("model", "init")]
    inodes = {path.stat().st_ino for path in published if path.exists()}
    assert {p.stat().st_ino for p in left if p.name == "model.safetensors"} == inodes
    sweep(folder)
    assert (folder / "manifest.json").exists() and not (folder / "checkpoints").exists()


def assert_equal_results(space, one, other):
    first, second = weights(space, one), weights(space, other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    manifests = [(space.folder / n / "manifest.json").read_bytes() for n in (one, other)]
    assert manifests[0] == manifests[1]
    assert metrics(space, one) == metrics(space, other)
    assert_only_what_publishing_takes(space.folder / other)


def wait_for_lines(space, name, count, process):
    """Until the run has written `count` metrics lines in this life; False when it ended before."""
    while process.poll() is None:
        written = list((space.folder / name).glob("checkpoints/*/metrics.jsonl"))
        if written and len(written[0].read_bytes().splitlines()) >= count:
            return True
        time.sleep(0.005)
    return False


def test_killed_twice_from_outside_ends_with_the_same_weights(workspace):
    """Wherever it happens to be; `test_training_matrix` kills every method, at chosen moments."""
    space, name, moments, kills = workspace, "killed", random.Random(1), 0
    space.finished(space.train("whole", "minillm", **LONG))
    for count in sorted(moments.sample(range(3, 45), 2)):
        process = space.train(name, "minillm", "--checkpoint-seconds=0.05", **LONG)
        if wait_for_lines(space, name, count, process):
            time.sleep(moments.uniform(0, 0.05))
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
        process.communicate()
    assert kills > 0
    said = space.finished(space.train(name, "minillm", **LONG))
    assert "resumes from step" in said
    assert_equal_results(space, "whole", name)


def test_lora_goes_on_from_adapters_alone_and_ends_with_the_same_plain_model(workspace):
    """In slices of one step, some of which recompute activations: neither changes a bit."""
    space, settings = workspace, {"steps": 3, "evaluate_every": 1, "lora": LORA}
    for attempt in range(3):
        more = ("--runtime=0.00001", f"--gradient-checkpointing={attempt % 2}")
        process = space.train("sliced-lora", "minillm", *more, **settings)
        said = space.finished(process, code=int(attempt < 2))
        if attempt < 2:
            (checkpoint,) = (space.folder / "sliced-lora").glob(
                f"checkpoints/*/step-*{attempt + 1}"
            )
            names = load_file(checkpoint / "model.safetensors").keys()
            assert names and all(".lora_" in name for name in names)
        if attempt:
            assert f"resumes from step {attempt}" in said
    space.finished(space.train("unsliced-lora", "minillm", **settings))
    assert_equal_results(space, "unsliced-lora", "sliced-lora")
    start = load_file(space.folder / "trained-student" / "init" / "model.safetensors")
    end = weights(space, "sliced-lora")
    assert start.keys() == end.keys()
    changed = {key.split(".")[-2] for key in end if not torch.equal(start[key], end[key])}
    assert changed == {"c_attn", "c_fc", "c_proj"}
    manifest = json.loads((space.folder / "sliced-lora" / "manifest.json").read_text())
    assert manifest["parameters"] == sum(tensor.numel() for tensor in end.values())


def test_lora_exports_the_model_that_was_measured(workspace):
    """An adapted teacher, written as a plain model, has the dev loss that its training saw."""
    space = workspace
    settings = {"steps": 12, "evaluate_every": 4, "keep": "loss", "lora": LORA}
    space.finished(space.train("adapted", "sft", **settings))
    manifest = json.loads((space.folder / "adapted" / "manifest.json").read_text())
    dev = [line["loss"] for line in metrics(space, "adapted") if line["kind"] == "dev"]
    assert min(dev[1:]) < dev[0] - 0.01
    model = load_model(space.folder / "adapted" / "model").eval()
    data = load_from_disk(space.folder / "dev" / "dataset")
    rows = examples(data, range(len(data)))
    with torch.no_grad():
        loss = label_loss(len(space.tokenizer), response_tokens(rows))(model, rows)[0]
    assert loss.item() == pytest.approx(manifest["best"]["loss"]["value"], abs=2e-6)


def test_lora_that_does_not_fit_is_refused_before_training(workspace):
    space = workspace
    process = space.train("misfit", "sft", lora={**LORA, "targets": ["query"]})
    said = space.finished(process, code=1)
    assert "Error: lora.targets has 'query', which is no linear layer of model 'student'" in said
    assert "Traceback" not in said and "step 0" not in said


def test_checkpoints_of_other_settings_are_not_resumed(workspace):
    space, settings = workspace, {"steps": 4000, "evaluate_every": 4000}
    process = space.train("changed", "sft", "--checkpoint-seconds=0", **settings)
    assert wait_for_lines(space, "changed", 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list((space.folder / "changed").glob("checkpoints/*/step-*"))
    said = space.finished(space.train("changed", "sft", steps=6))
    assert "goes on" not in said
    assert metrics(space, "changed")[-1]["step"] == 6


def test_a_second_copy_leaves(workspace, monkeypatch):
    space, settings = workspace, {"steps": 100_000, "evaluate_every": 100_000}
    first = space.train("locked", "sft", **settings)
    assert wait_for_lines(space, "locked", 2, first)
    said = space.finished(space.train("locked", "sft", **settings), code=1)
    assert f"process {first.pid}" in said and "already at work" in said
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = space.train("locked", "sft", "--runtime=0.00001", **settings)
    assert "Stopped" in space.finished(second, code=1)  # the dead one's lock is taken over


@pytest.mark.parametrize("method", ["kd", "gkd", "skd", "minillm", "loss_adaptive"])
def test_two_processes_equal_one(workspace, method):
    space = workspace
    # no dropout: its masks are drawn per process
    settings = {"dropout": 0.0, "steps": 8, "evaluate_every": 4}
    space.finished(space.train(f"one-{method}", method, **settings))
    space.finished(space.train(f"two-{method}", method, processes=2, **settings))
    ones, twos = (metrics(space, f"{n}-{method}")[:-1] for n in ("one", "two"))
    assert len(ones) == 11
    for one, two in zip(ones, twos, strict=True):
        assert one.pop("kind") == two.pop("kind")
        assert one == pytest.approx(two, rel=1e-4, abs=1e-4)
        # drawn token for token: lengths and scores of texts are equal, not near
        for exact in ("tokens", "rougeL", "response_length"):
            assert one.get(exact) == two.get(exact)


@pytest.mark.parametrize("method", ["sft", "minillm"])
def test_micro_batches_change_nothing(workspace, method):
    space = workspace
    settings = {"dropout": 0.0, "steps": 8, "evaluate_every": 4}
    space.finished(space.train(f"micro1-{method}", method, "--micro-batch=1", **settings))
    space.finished(space.train(f"micro4-{method}", method, "--micro-batch=4", **settings))
    # short rows together, long ones alone; several processes have equally many passes
    by_tokens = ["--micro-batch=4", "--max-tokens=14"]
    more = {**settings, "processes": 2}
    space.finished(space.train(f"tokens-{method}", method, *by_tokens, **more))
    ones = metrics(space, f"micro1-{method}")[:-1]
    for other in ("micro4", "tokens"):
        for one, found in zip(ones, metrics(space, f"{other}-{method}")[:-1], strict=True):
            assert one.get("kind") == found.pop("kind")
            numbers = {key: value for key, value in one.items() if key != "kind"}
            assert numbers == pytest.approx(found, rel=1e-4, abs=1e-4)


def test_a_batch_that_cannot_be_split_is_refused(workspace):
    process = workspace.train("uneven", "sft", processes=2, batch_size=3)
    said = workspace.finished(process, code=1)
    assert "a global batch of 3 rows cannot be split evenly over 2 processes" in said


@pytest.mark.parametrize("method", ["sft", "minillm"])
def test_outputs_deleted_after_the_end_are_put_there_again(workspace, method):
    """As Snakemake does when a job ends badly before its success is noted. Nothing is trained again."""
    space, name, settings = workspace, f"noted-{method}", {"steps": 6, "evaluate_every": 3}
    space.finished(space.train(name, method, **settings))
    outputs = {p.name: p for p in (space.folder / name).iterdir() if p.name != "checkpoints"}
    before = weights(space, name), metrics(space, name), outputs["manifest.json"].read_bytes()
    for path in outputs.values():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    said = space.finished(space.train(name, method, **settings))
    assert "resumes from step 6 of 6" in said and "dev loss" not in said
    after = weights(space, name), metrics(space, name), outputs["manifest.json"].read_bytes()
    assert before[1:] == after[1:]
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    sweep(space.folder / name)


def test_supervised_run_keeps_two_models(workspace):
    space = workspace
    space.finished(space.train("both", "sft", steps=40, evaluate_every=5, learning_rate=3e-2))
    manifest = json.loads((space.folder / "both" / "manifest.json").read_text())
    dev = {line["step"]: line for line in metrics(space, "both") if line["kind"] == "dev"}
    del dev[0]
    best = manifest["best"]
    assert best["loss"]["value"] == min(line["loss"] for line in dev.values())
    assert best["rougeL"]["value"] == max(line["rougeL"] for line in dev.values())
    assert dev[best["loss"]["step"]]["loss"] == best["loss"]["value"]
    for name in ("model", "init"):
        assert (space.folder / "both" / name / "model.safetensors").exists()


def test_killed_evaluation_ends_with_the_same_scores(workspace):
    space, seeds = workspace, list(range(60))
    arguments = {"model": "trained-student", "seeds": seeds}
    space.finished(space.evaluate("whole-evaluation", **arguments))
    process = space.start_evaluation_slowly("killed-evaluation", **arguments)
    store = space.folder / "killed-evaluation"
    while not [p for p in store.glob("checkpoints/*/answers.jsonl") if p.stat().st_size > 2000]:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (answers,) = store.glob("checkpoints/*/answers.jsonl")
    with open(answers, "a") as file:
        file.write('{"row": 1, "seed": 4, "tok')  # a half-written line
    kept = answers.read_text().count("\n")
    assert 0 < kept < 8 * len(seeds)
    stopped = space.evaluate(
        "killed-evaluation", arguments["model"], "--runtime=0.00001", seeds=seeds
    )
    assert "Stopped" in space.finished(stopped, code=1)
    (spent,) = (json.loads(path.read_text()) for path in store.glob(f"checkpoints/*/{SPENT}"))
    space.finished(space.evaluate("killed-evaluation", **arguments))
    (end,) = map(json.loads, (store / "metrics.jsonl").read_text().splitlines())
    assert end["seconds"] > spent["seconds"] > 0  # of all attempts
    assert end["commit"] == git_commit()  # None only where the tests run outside of a repository
    for name in ("scores.json", "generations.jsonl"):
        whole = (space.folder / "whole-evaluation" / name).read_bytes()
        assert whole == (store / name).read_bytes()


def test_scores_follow_from_the_generations(workspace):
    space = workspace
    space.finished(space.evaluate("scored", model="trained-student"))
    scores = json.loads((space.folder / "scored" / "scores.json").read_text())
    rows = [json.loads(x) for x in (space.folder / "scored" / "generations.jsonl").open()]
    assert scores["n"] == len(rows) == 8 and scores["decoding_seeds"] == [10, 20]
    for position, seed in enumerate(("10", "20")):
        values = [row["outputs"][position]["rougeL"] for row in rows]
        assert scores["scores"]["rougeL"]["by_seed"][seed] == pytest.approx(sum(values) / 8)
    cut = [not o["finished"] for row in rows for o in row["outputs"]]
    assert scores["cut_off"] == pytest.approx(sum(cut) / 16)


def test_changed_code_is_refused(workspace):
    process = workspace.train("recoded", "sft", "--code=0123456789abcdef")
    said = workspace.finished(process, code=1)
    assert "changed after it was submitted" in said


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3", "zero3-offload"])
def test_deepspeed_equals_plain_training_and_resumes(workspace, stage):
    """fp32 on the CPU: sharding moves numbers around and changes none."""
    space = workspace
    config = json.loads((ROOT / f"config/deepspeed/{stage}.json").read_text())
    settings = {"dropout": 0.0, "steps": 6, "evaluate_every": 3}
    sharded = {**settings, "deepspeed": {"name": stage, "config": config}}
    name = "plain-for-deepspeed"
    if not (space.folder / name / "manifest.json").exists():
        space.finished(space.train(name, "minillm", **settings))
    first = space.train(stage, "minillm", "--runtime=0.00001", processes=2, **sharded)
    assert "Stopped" in space.finished(first, code=1)
    said = space.finished(space.train(stage, "minillm", processes=2, **sharded))
    assert "resumes from step 1 of 6, fp32 on the CPU, 2 processes" in said
    assert "skipped" not in metrics(space, stage)[-2] and metrics(space, stage)[-1]["skipped"] == 0
    for one, two in zip(metrics(space, name)[:-1], metrics(space, stage)[:-1], strict=True):
        one.pop("gradient_norm", None), two.pop("gradient_norm", None)
        assert one.pop("kind") == two.pop("kind")
        assert one == pytest.approx(two, rel=1e-3, abs=1e-3)
