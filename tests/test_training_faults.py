"""What goes wrong within a training: gradients that are not finite, a full disk, a card without a number format."""

import contextlib
import json
import math
import socket

import pytest
import torch
from safetensors.torch import load_file
from workspace import ROOT, TEACHER, Workspace

from takd.models.causal_lm import load_model
from takd.runtime.checkpoints import Pace
from takd.training.best_weights import Best
from takd.training.loop import SKIPPED_IN_A_ROW

# one row a step, of three: with each of them once in three steps
THREE_ROWS = {
    "rows": 3,
    "batch_size": 1,
    "steps": 12,
    "evaluate_every": 12,
    "dropout": 0.0,
    "dev_rows": 2,
}


@pytest.fixture(scope="module", autouse=True)
def usual_port():
    """The port that torch takes unless told otherwise is another training's, here as on a node with several jobs."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # it is in use already: as good
            held.enter_context(socket.create_server(("", 29500)))
        yield


class Shortened(Workspace):
    """One whose settings say how long texts are: models are not checked beyond."""

    longest = 6

    def spec(self, method, **settings):
        return {**super().spec(method, **settings), "max_length": self.longest}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A prepared folder whose teacher has no finite opinion on the seventh token of a row: one row in three has it."""
    space = Shortened(tmp_path_factory.mktemp("faults"))
    teacher = load_model(space.folder / "teacher" / "model", seed=1)
    with torch.no_grad():
        teacher.transformer.wpe.weight[6] = torch.inf
    teacher.save_pretrained(space.folder / "broken" / "model")
    space.manifest("broken", **TEACHER)
    return space


def lines(space, name):
    return [json.loads(x) for x in (space.folder / name / "metrics.jsonl").open()]


@pytest.mark.parametrize("deepspeed", [None, "zero1", "zero2", "zero3"])
def test_a_step_without_a_finite_gradient_is_skipped_and_counted(workspace, deepspeed):
    space, name, settings = workspace, f"skipping-{deepspeed}", dict(THREE_ROWS)
    if deepspeed:
        config = json.loads((ROOT / f"config/deepspeed/{deepspeed}.json").read_text())
        settings["deepspeed"] = {"name": deepspeed, "config": config}
    inputs = {"teacher": "broken"}
    # in two slices: the count goes on
    first = space.train(name, "kd", "--runtime=0.00001", inputs=inputs, **settings)
    said = space.finished(first, code=1)
    said += space.finished(space.train(name, "kd", inputs=inputs, **settings))
    assert (
        said.count("skipped, its gradient is not finite (1 so far)") == 2
    )  # on the console and in the log
    written = lines(space, name)
    steps = [line for line in written if line["kind"] == "train"]
    skipped = [line["step"] for line in steps if line["gradient_norm"] is None]
    assert len(steps) == 12 and len(skipped) == 4
    for epoch in range(4):  # the one row, wherever the shuffled pass has it
        assert sum(3 * epoch < step <= 3 * epoch + 3 for step in skipped) == 1
    assert written[-1]["skipped"] == 4
    weights = load_file(space.folder / name / "model" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    begin, end = (line["loss"] for line in written if line["kind"] == "dev")
    assert end < begin - 0.03  # the other steps were taken


def test_a_teacher_that_is_not_finite_is_refused_before_training(workspace, monkeypatch):
    monkeypatch.setattr(workspace, "longest", 16)
    process = workspace.train("unasked", "kd", inputs={"teacher": "broken"}, **THREE_ROWS)
    said = workspace.finished(process, code=1)
    assert "Error: model 'teacher' computes numbers that are not finite" in said
    assert "goes on" not in said and " steps, " not in said


def test_many_such_steps_in_a_row_end_the_job_with_a_checkpoint(workspace):
    space = workspace
    settings = {
        **THREE_ROWS,
        "batch_size": 3,
        "steps": 2 * SKIPPED_IN_A_ROW,
        "evaluate_every": 1000,
    }
    process = space.train("diverged", "kd", inputs={"teacher": "broken"}, **settings)
    said = space.finished(process, code=1)
    assert (
        f"Error: teacher-sft__student-kd seed 3: no finite gradient in {SKIPPED_IN_A_ROW} steps in a row"
        in said
    )
    assert "lower the learning rate (now 0.00" in said and "Traceback" not in said
    (checkpoint,) = (space.folder / "diverged").glob(f"checkpoints/*/step-{SKIPPED_IN_A_ROW:09d}")
    start = load_model(space.folder / "student" / "model", seed=3).state_dict()
    saved = load_file(checkpoint / "model.safetensors")
    assert saved and all(torch.equal(saved[name], start[name]) for name in saved)


def test_a_disk_that_is_full_is_one_sentence_and_loses_nothing_before(workspace):
    """A limit on the size of files stands in for the disk; logs and tokenizer files stay below it."""
    space, settings = workspace, {"steps": 60, "evaluate_every": 1000, "dev_rows": 2}
    process = space.train("full", "sft", "--checkpoint-seconds=0", limit_file_kb=20, **settings)
    said = space.finished(process, code=1)
    assert "Error: a checkpoint could not be written to" in said and "File too large" in said
    assert "make room there, and start" in said
    assert not list(
        (space.folder / "full").glob("checkpoints/*/step-*")
    )  # nor is half of one taken for whole
    assert "goes on" not in space.finished(space.train("full", "sft", **settings))


def test_weights_are_kept_for_finite_values_only():
    best = Best("loss")

    def improves(loss: float) -> bool:
        return best.improves({"loss": loss})

    assert not improves(math.nan) and not improves(math.inf)
    assert improves(2.0)
    best.value = best.loss = 2.0
    assert improves(1.0) and not improves(3.0) and not improves(math.nan)


@pytest.mark.parametrize(
    ("seconds", "done", "cost", "expected"),
    [
        (100, 10, 0.0, 50),  # 10 s a step, 100 steps: 5 % of 1000 s
        (100, 10, 0.5, 50),  # half a second in 50 is 1 %
        (1, 10, 0.5, 25),  # of 10 s, 5 % would be 0.5 s: it would train half of the time
        (3600, 10, 5.0, 600),  # ten hours: ten minutes
        (3600, 10, 30.0, 600),  # and no longer, whatever they cost
    ],
)
def test_a_checkpoint_is_due_after_a_twentieth_or_ten_minutes(seconds, done, cost, expected):
    pace = Pace(600.0)
    pace.saved(cost)
    assert pace.interval(seconds, done, 100) == pytest.approx(expected)
