"""Curves of trainings in trackers: what they get when, over resumed and repeated runs."""

import importlib.util
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import Project, small_experiment

from takd.experiment import specs
from takd.experiment.experiment import Experiment, load
from takd.preflight import doctor
from takd.runtime.checkpoints import key_of
from takd.runtime.errors import InputError
from takd.runtime.files import read_json
from takd.runtime.stage import Stage
from takd.watching import track, trackers
from takd.watching.track import Tracking
from takd.watching.trackers import TRACKERS, Curve

KD = "teacher-sft__student-kd"
STAND_IN = """
import json, os


class Run:
    def __init__(self, name):
        self.name = name

    def log(self, metrics, step=None):
        with open(os.environ["KEPT"], "a") as file:
            file.write(json.dumps([self.name, step, metrics]) + "\\n")

    def finish(self):
        with open(os.environ["KEPT"], "a") as file:
            file.write(json.dumps([self.name, "finish", {}]) + "\\n")


def init(project, name=None, group=None, config=None, resume="never", embed=True, auto_log_gpu=None, auto_log_cpu=None):
    assert resume == "allow" and project == "small" and name.startswith(group)
    return Run(name)
"""


class Kept:
    """A tracker that keeps what it gets."""

    made: ClassVar[list["Kept"]] = []
    broken = False

    def __init__(self, curve: Curve, folder: Path, began: float, new: bool) -> None:
        self.curve, self.new, self.began, self.closed = curve, new, began, False
        self.lines: list[tuple[int, dict[str, float]]] = []
        Kept.made.append(self)

    def log(self, step: int, values: Any, seconds: float) -> None:
        if Kept.broken:
            raise ConnectionError("no network")
        self.lines.append((step, dict(values)))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setattr(trackers, "missing", lambda names: None)
    monkeypatch.setattr(track, "missing", lambda names: None)
    monkeypatch.setattr(Kept, "made", [])
    monkeypatch.setattr(Kept, "broken", False)
    for name in TRACKERS:
        monkeypatch.setitem(TRACKERS, name, Kept)
    path = tmp_path / "config/experiments/small.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(small_experiment()))
    return load(path, tmp_path, {})


def lines(first: int, last: int, loss: float = 1.0) -> list[dict[str, Any]]:
    return [
        {
            "kind": kind,
            "step": s,
            "seconds": float(s),
            "tokens": 9 * s,
            "steps": 20,
            "loss": loss,
            "norm": None,
        }
        for s in range(first, last + 1)
        for kind in (("train", "dev") if s % 5 == 0 else ("train",))
    ]


def write(
    e: Experiment, what: list[dict[str, Any]], folder: str = f"{KD}/seed1/checkpoints/abc"
) -> Path:
    path = e.root / f"results/small/models/{folder}/metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in what))
    return path


def steps(kept: list[Kept], name: str) -> list[int]:
    return [step for each in kept for step, values in each.lines if name in values]


def test_a_resumed_training_continues_its_curve(experiment: Experiment) -> None:
    """It goes back to a checkpoint before the last line, and writes the lines between once more."""
    tracking = Tracking(experiment, ["trackio"])
    write(experiment, lines(1, 12))
    tracking.look()
    write(experiment, lines(1, 7))  # as the journal cuts it on resume
    tracking.look()
    tracking = Tracking(experiment, ["trackio"])  # of the second run
    write(experiment, lines(1, 10))
    tracking.look()
    write(experiment, [*lines(1, 20), {"kind": "end", "step": 20, "seconds": 20.0, "tokens": 1}])
    tracking.look()
    first, second = Kept.made
    assert first.curve == second.curve and (first.new, second.new) == (True, False)
    assert first.began == second.began
    assert steps([first, second], "train/loss") == list(range(1, 21))
    assert steps([first, second], "dev/loss") == [5, 10, 15, 20]
    assert second.closed and not any("norm" in name for _, v in first.lines for name in v)


def test_another_training_in_the_same_place_is_another_curve(experiment: Experiment) -> None:
    tracking = Tracking(experiment, ["trackio"])
    write(experiment, lines(1, 3))
    tracking.look()
    shutil.rmtree(experiment.root / "results/small/models")
    write(experiment, lines(1, 2), f"{KD}/seed1/checkpoints/other")
    tracking.look()
    assert [each.curve.key for each in Kept.made] == ["abc", "other"]
    assert steps(Kept.made[1:], "train/loss") == [1, 2]


def test_seeds_are_runs_of_one_group_and_settings_those_of_the_training(
    experiment: Experiment,
) -> None:
    experiment.settings["seeds"] = [1, 2]
    for seed in (1, 2):
        write(experiment, lines(1, 2), f"{KD}/seed{seed}/checkpoints/abc")
    Tracking(experiment, ["trackio"]).look()
    curves = [each.curve for each in Kept.made]
    assert [(c.project, c.group, c.name) for c in curves] == [
        ("small", KD, f"{KD}/seed{seed}") for seed in (1, 2)
    ]
    assert curves[1].settings == specs.train(experiment, KD, 2)


def test_no_secret_is_among_the_settings(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    experiment.settings["evaluation"]["judge"] = {
        "endpoint": "https://me:secret@x.org",
        "model": "m",
    }
    write(experiment, lines(1, 2))
    Tracking(experiment, ["wandb"]).look()
    assert "secret" not in json.dumps(dict(Kept.made[0].curve.settings))


def test_a_tracker_that_fails_holds_up_no_other_and_is_told(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    write(experiment, lines(1, 2))
    Kept.broken = True
    tracking = Tracking(experiment, ["wandb"])
    tracking.look()
    tracking.look()
    assert tracking.failed == {"wandb": "ConnectionError: no network"}
    assert capsys.readouterr().err.count("no network") == 1
    Kept.broken = False  # a later run gives it what it lacks
    Tracking(experiment, ["wandb"]).look()
    assert steps(Kept.made[-1:], "train/loss") == [1, 2]


def test_the_key_of_a_finished_training_is_that_of_its_checkpoints(tmp_path: Path) -> None:
    """So that a curve is one while its training runs and when it has ended."""
    source = tmp_path / "in.json"
    source.write_text("{}")
    stage = Stage({"lineage": "a-sft", "x": 1.0}, "c0de", {"train": [source], "dev": [source]})
    stage.outputs = {"manifest": tmp_path / "manifest.json"}
    stage.write_manifest(tmp_path / "manifest.json")
    record = read_json(tmp_path / "manifest.json")
    from takd.runtime.checkpoints import resume_key

    assert key_of(record["spec"], record["code"], record["inputs"]) == resume_key(stage)


def test_absent_packages_are_named_with_the_command_that_installs_them() -> None:
    import takd.watching.trackers as real

    text = real.missing(["no_such_tracker"]) or ""
    assert text.startswith(
        "no_such_tracker is not installed here: python -m pip install no_such_tracker, or"
    )
    assert [each.level for each in doctor.trackers(["no_such_tracker"])] == ["error"]
    assert real.missing([]) is None
    with pytest.raises(InputError, match="pip install"):
        Tracking(None, ["no_such_tracker"])  # type: ignore[arg-type]


# What the libraries' functions take, as of TensorBoard's writer in torch 2.13, wandb 0.31 and trackio 0.43: the parts
# that are used here. Where a library is installed, its own signature is asked.
SIGNATURES = {
    "trackio": "project, name=None, group=None, config=None, resume='never', embed=True, auto_log_gpu=None,"
    " auto_log_cpu=None",
    "wandb": "project=None, dir=None, id=None, name=None, config=None, group=None, reinit=None, resume=None,"
    " save_code=None, settings=None",
}


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_libraries_are_called_as_they_ask(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    scope: dict[str, Any] = {}
    exec(f"def init({SIGNATURES[name]}): pass", scope)
    asked = [inspect.signature(scope["init"])]
    if importlib.util.find_spec(name):
        asked.append(inspect.signature(__import__(name).init))

    class Library:
        def log(self, metrics: dict[str, float], step: int | None = None) -> None:
            called.append((metrics, step))

        def finish(self) -> None:
            called.append("finish")

    def init(**given: Any) -> Library:
        for signature in asked:
            signature.bind(**given)
        called.append(given)
        return Library()

    module = types.ModuleType(name)
    module.init = init  # type: ignore[attr-defined]
    module.Settings = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    curve = Curve("small", KD, f"{KD}/seed1", "abc", {"seed": 1})
    run = TRACKERS[name](curve, tmp_path, 0.0, True)
    run.log(3, {"train/loss": 0.5}, 1.0)
    run.flush()
    run.close()
    given, logged, end = called
    assert (given["project"], given["group"], given["resume"]) == ("small", KD, "allow")
    assert logged == ({"train/loss": 0.5, "seconds": 1.0}, 3) and end == "finish"


def test_tensorboard_reads_what_is_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curve = Curve("small", KD, f"{KD}/seed1", "abc", {"seed": 1})
    for first, new in ((1, True), (4, False)):  # two attempts
        run = TRACKERS["tensorboard"](curve, tmp_path, 1000.0, new)
        for step in range(first, first + 3):
            run.log(step, {"train/loss": step / 2}, float(step))
        run.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / KD / "seed1/abc")).Reload()
    found = events.Scalars("train/loss")
    assert [(e.step, e.value, e.wall_time) for e in found] == [
        (s, s / 2, 1000.0 + s) for s in range(1, 7)
    ]
    (text,) = events.Tensors("settings/text_summary")
    assert b'"seed": 1' in text.tensor_proto.string_val[0]


def test_a_run_that_ends_at_once_gets_its_curves(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal to end may come while the tracking process still starts."""
    masks = []

    def started(*_: Any, **__: Any) -> object:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return object()

    experiment.settings["report"]["trackers"] = ["trackio"]
    monkeypatch.setenv("TAKD_HOME", str(experiment.root))
    monkeypatch.setattr(track, "_follower", [])
    monkeypatch.setattr(subprocess, "Popen", started)
    track.start(experiment, {})
    assert signal.SIGTERM in masks[0]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    write(experiment, lines(1, 7))
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        signal.raise_signal(signal.SIGTERM)
        assert track.run(experiment, ["trackio"], follow=True, parent=0) == 0
        assert not signal.sigpending()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before:
            signal.signal(number, handler)
    assert Kept.made[0].lines and all(each.closed for each in Kept.made)


@pytest.mark.slow
def test_a_run_of_snakemake_is_tracked_to_its_end(forked: Project, tmp_path: Path) -> None:
    """By a process of its own; the key makes nothing stale, and an absent package starts no job."""
    project = forked.copy(tmp_path / "project")
    assert project.plan() == {}
    project.experiment(lambda e: e["report"].update(trackers=["trackio"]))
    assert project.plan() == {}
    student = next((project.folder / "results/small/models").glob("*minillm"))
    shutil.rmtree(student)
    model = f"results/small/models/{student.name}/seed1/manifest.json"

    env = {**os.environ, "KEPT": str(tmp_path / "kept.jsonl")}
    if importlib.util.find_spec("trackio") is None:
        refused = project.run(model, check=False, env=env)
        assert (
            "report.trackers: trackio is not installed here: python -m pip install trackio"
            in refused
        )
        assert not student.exists()
    (project.folder / "src/trackio.py").write_text(STAND_IN)
    project.warm = None  # a process that is forked does not read PYTHONPATH
    project.run(model, "--quiet", "rules", env=env)
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    names = {name.rsplit("-", 1)[0] for name, _, _ in kept}
    assert names == {f"{path.parent.name}-{path.name}" for path in student.parent.glob("*/seed1")}
    for name in {name for name, _, _ in kept}:
        trained = [step for each, step, values in kept if each == name and "train/loss" in values]
        assert trained == sorted(set(trained)) and trained
    assert not (project.folder / "logs/small/trackers.lock").exists()
