"""What `takd watch` says of stages, from files that a run, a crash or another node leaves."""

import io
import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Project, small_experiment

from takd.experiment.experiment import Experiment, load
from takd.runtime.stage_lock import Lock
from takd.watching import screen, stages
from takd.watching.stages import Seen, look, places

KD = "models/teacher-sft__student-kd/seed1"
DEAD = 2**22 + 1  # above the largest process id of Linux


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    path = tmp_path / "config/experiments/small.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(small_experiment()))
    return load(path, tmp_path, {})


def write(path: Path, text: str, age: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)
    return path


def log(e: Experiment, text: str, process: int = DEAD, host: str = "", age: float = 0.0) -> Path:
    """The log of a training of KD."""
    head = f"takd.training.train on {host or socket.gethostname()}, process {process}\n"
    return write(e.root / f"logs/small/{KD}.log", head + text, age)


def hold(e: Experiment, process: int, host: str, age: float) -> Path:
    """A lock that somebody holds, with a heartbeat of some age."""
    owner = {"host": host, "process": process, "job": "77"}
    return write(e.root / f"results/small/{KD}/checkpoints/lock", json.dumps(owner), age)


def metrics(e: Experiment, *lines: dict[str, Any], folder: str = "checkpoints/key/") -> Path:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    return write(e.root / f"results/small/{KD}/{folder}metrics.jsonl", text)


def seen(e: Experiment, before: Any = None) -> Seen:
    return look(e, before)[e.root / f"results/small/{KD}/manifest.json"]


def test_nothing_has_begun(experiment: Experiment) -> None:
    assert {each.state for each in look(experiment).values()} == {"waiting"}


def test_a_lock_with_a_heartbeat_is_a_stage_at_work(experiment: Experiment) -> None:
    log(experiment, "", os.getpid())
    with Lock(experiment.root / f"results/small/{KD}/checkpoints/lock"):
        assert seen(experiment).state == "running"
    assert seen(experiment).state == "running"  # between two steps of its end


def test_the_card_does_not_run_because_its_training_does(experiment: Experiment) -> None:
    with Lock(experiment.root / f"results/small/{KD}/checkpoints/lock"):
        assert look(experiment)[experiment.root / f"results/small/{KD}/card.md"].state == "waiting"


def test_a_heartbeat_that_stopped_on_another_node_is_said(experiment: Experiment) -> None:
    log(experiment, "", 12, "node5", age=900)
    hold(experiment, 12, "node5", age=600)
    found = seen(experiment)
    assert found.state == "lost"
    assert "process 12 on node5 (Slurm job 77): no heartbeat for 10 min" in found.note
    hold(experiment, 12, "node5", age=4)
    assert seen(experiment).state == "running"


def test_a_heartbeat_that_moves_is_alive_whatever_the_clocks_say(experiment: Experiment) -> None:
    hold(experiment, 12, "node5", age=600)
    before = look(experiment)
    hold(experiment, 12, "node5", age=595)
    after = look(experiment, before)
    assert seen(experiment, before).state == "running"
    assert seen(experiment, after).state == "running"  # between two heartbeats


def test_a_process_of_this_host_that_was_killed_is_lost_at_once(experiment: Experiment) -> None:
    hold(experiment, DEAD, socket.gethostname(), age=1)
    assert seen(experiment).state == "lost"


def test_failed_and_stopped_stages_say_why_and_where(experiment: Experiment) -> None:
    path = log(experiment, "step 1\nError: the disk is full.\n")
    found = seen(experiment)
    assert (found.state, found.note) == ("failed", "the disk is full.")
    printed = "\n".join(screen.lines(experiment, [found]))
    assert f"the disk is full. (log: {path.relative_to(experiment.root)})" in printed
    log(experiment, "Stopped: at step 3 of 9; the next run resumes from there.\n")
    assert (seen(experiment).state, seen(experiment).note[:9]) == ("stopped", "at step 3")


def test_a_stage_that_vanished_without_a_lock_is_lost(experiment: Experiment) -> None:
    log(experiment, "loading\n")
    assert "its log ends without an error" in seen(experiment).note
    log(experiment, "loading\n", 12, "login2", age=2)  # alive, as far as can be seen
    assert seen(experiment).state == "running"
    log(experiment, "loading\n", 12, "login2", age=stages.SILENT + 60)
    assert "silent for 6 min" in seen(experiment).note


def test_a_retry_is_at_work_until_it_fails_too(experiment: Experiment) -> None:
    log(experiment, "Error: the network is gone.\n")
    hold(experiment, os.getpid(), socket.gethostname(), age=0)
    assert seen(experiment).state == "running"


def test_progress_rate_and_scores_of_a_training(experiment: Experiment) -> None:
    hold(experiment, os.getpid(), socket.gethostname(), age=0)
    log(experiment, "kd seed 1: step 1/100, loss 9.1, lr 0.1, 900 s left\n", os.getpid())
    first = seen(experiment)
    assert (first.step, first.total, round(first.left or 0, -1)) == (1, 100, 900)
    dev = {"steps": 100, "exact_match": 0.0, "loss": 2.0}
    train = {"kind": "train", "steps": 100, "loss": 3.0}
    file = metrics(
        experiment,
        {"kind": "dev", "step": 0, "seconds": 0.1, "tokens": 0, "rougeL": 60.0, **dev},
        {**train, "step": 10, "seconds": 10.0, "tokens": 1000},
        {**train, "step": 20, "seconds": 20.0, "tokens": 3000},
        {"kind": "dev", "step": 20, "seconds": 21.0, "tokens": 3000, "rougeL": 40.0, **dev},
    )
    with open(file, "a") as half:
        half.write('{"kind": "train", "st')
    found = seen(experiment)
    assert (found.step, found.total, found.rate, found.left) == (20, 100, 200.0, 80.0)
    assert (
        screen.scores(found) == "dev ROUGE-L 40.0 (best 40.0), loss 2.000"
    )  # not that before training
    assert screen.scores(replace(found, scores={**found.scores, "loss": None})).endswith(
        "not finite"
    )
    assert screen.speed(found) == "200 tokens/s, 80 s left"


def test_an_evaluation_tells_its_progress_in_its_log(experiment: Experiment) -> None:
    at = "evaluations/teacher-sft/seed1/heldout"
    log(experiment, "")
    head = f"takd.evaluation.evaluate on {socket.gethostname()}, process {os.getpid()}\n"
    line = "teacher-sft seed 1 on heldout: step 300/1000, 60 s left\n"
    write(experiment.root / f"logs/small/{at}.log", head + line, age=20)
    found = look(experiment)[experiment.root / f"results/small/{at}/scores.json"]
    assert (found.state, found.step, found.total) == ("running", 300, 1000)
    assert 35 < (found.left or 0) < 41  # 20 of the 60 seconds have passed since


def test_once_looks_twice_before_it_calls_a_heartbeat_stopped(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(experiment, 12, "node5", age=600)
    waited = []

    def beat(seconds: float) -> None:
        waited.append(seconds)
        hold(experiment, 12, "node5", age=594)

    monkeypatch.setattr(time, "sleep", beat)
    assert screen.watch(experiment, once=True) == 0
    assert waited and "running   train kd: teacher → student, seed 1" in capsys.readouterr().out


def test_a_terminal_shows_reason_bar_and_counts(experiment: Experiment) -> None:
    from rich.console import Console

    log(experiment, "Error: bad [value] here.\n")
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(screen.show(experiment, list(look(experiment).values())))
    text = console.export_text()
    assert "bad [value] here. (log: logs/small/models" in text
    assert "train 0/7" in text and "small: " in text


@pytest.mark.slow
@pytest.mark.parametrize("which", ["finished", "finished_writing"])
def test_every_stage_of_a_finished_run_is_known(which: str, request: pytest.FixtureRequest) -> None:
    """Records and logs are where the rules have them."""
    project: Project = request.getfixturevalue(which)
    e = load(project.folder / "config/experiments/small.yaml", project.folder, {})
    found = look(e)
    left = {each.place.record for each in found.values() if each.state != "finished"}
    # these stand-ins of stages write a page in place of the report's record
    assert {path.name for path in left} <= {"digests.json"}
    known = {place.log for place in places(e)}
    assert set((project.folder / "logs/small").rglob("*.log")) <= known
