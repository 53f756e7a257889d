"""The store of trained models: who trains, who takes, and what a kill or a full disk leaves behind."""

import copy
import errno
import json
import os
import shutil
import signal
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Project, small_experiment
from strike import Strike
from workspace import BASE, TEACHER, Workspace

from takd.__main__ import main
from takd.commands.adopt import adopt
from takd.experiment import specs
from takd.experiment.experiment import load
from takd.runtime import store
from takd.runtime.files import read_json
from takd.runtime.records import read_log
from takd.runtime.stage import Stage

TAKEN = "taken from the store"
SHORT = {"steps": 3, "evaluate_every": 3}
STUDENT = "models/student-sft/seed3"


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "store"))
    (tmp_path / "one").mkdir()
    return Workspace(tmp_path / "one")


@pytest.fixture
def results(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Results of a training without a store."""
    monkeypatch.delenv(store.VARIABLE)
    train(space)
    return space


Adopt = Callable[..., list[str]]


@pytest.fixture
def adopted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Adopt:
    """Put a folder of results into a store by the program of that name; returns what it says, line by line."""

    def run(folder: Path, to: str = "store", code: int = 0, **options: Any) -> list[str]:
        given = {"accept_code": False, "experiment": None, **options}
        namespace = Namespace(folder=folder, store=tmp_path / to, **given)
        assert adopt(tmp_path / "root", namespace) == code
        return capsys.readouterr().out.splitlines()

    return run


def user(space: Workspace, name: str, model: str = "student") -> Workspace:
    """Another folder with the same data and weights, in which the model may have another name."""
    other = copy.copy(space)
    other.folder = space.folder.parent / name
    shutil.copytree(space.folder, other.folder, ignore=shutil.ignore_patterns("models"))
    other.manifest("student", **BASE | {"spec": {"model": model}})
    return other


def start(
    space: Workspace,
    model: str = "student",
    strike: Strike | None = None,
    processes: int = 1,
    **more: Any,
) -> Any:
    """Start to fine-tune a student below `models/`, as in results; several processes by torchrun."""
    folder = f"models/{model}-sft/seed3"
    spec = space.spec("sft", **SHORT | more) | {"lineage": f"{model}-sft", "model": model}
    read = {"base": "student", **{name: name for name in ("tokenizer", "train", "dev")}}
    outputs = {
        "model": "model",
        "init": "init",
        "metrics": "metrics.jsonl",
        "manifest": "manifest.json",
    }
    return space.start(
        "train",
        spec,
        [f"{name}={place}/manifest.json" for name, place in read.items()],
        [f"{name}={folder}/{file}" for name, file in outputs.items()],
        f"--processes={processes}",
        strike=strike,
        torchrun=processes > 1,
    )


def train(space: Workspace, model: str = "student", **more: Any) -> str:
    return space.finished(start(space, model, **more))


def files(space: Workspace, model: str = "student") -> dict[str, bytes]:
    folder = space.folder / f"models/{model}-sft/seed3"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "checkpoints" not in path.parts
    }


def entries(space: Workspace) -> list[Path]:
    return [path for path in (space.folder.parent / "store").iterdir() if path.name[0] != "."]


def test_a_model_is_trained_once_whoever_names_it_how(space: Workspace) -> None:
    assert TAKEN not in train(space)
    second, third = user(space, "second"), user(space, "third", "small")
    assert TAKEN in train(second) and TAKEN in train(third, "small")
    assert len(entries(space)) == 1
    first = files(space)
    assert files(second) == first
    other = files(third, "small")
    assert {name for name in first if first[name] != other[name]} == {"manifest.json"}
    here, there = (json.loads(found["manifest.json"]) for found in (first, other))
    assert (there["lineage"], there["model"], there["spec"]["model"]) == (
        "small-sft",
        "small",
        "small",
    )
    same = here.keys() - {"lineage", "model", "spec", "inputs", "digest"}
    assert {key: here[key] for key in same} == {key: there[key] for key in same}
    read_log(third.folder / "models/small-sft/seed3/metrics.jsonl")
    assert main(["verify", str(third.folder)]) in (0, 1)  # its other folders are no results


def test_other_settings_or_other_data_are_another_model(space: Workspace) -> None:
    train(space)
    assert TAKEN not in train(user(space, "second"), learning_rate=2e-2)
    third = user(space, "third")
    third.data("train", 20)
    assert TAKEN not in train(third)
    assert len(entries(space)) == 3


def test_of_two_writers_one_trains(space: Workspace) -> None:
    second = user(space, "second")
    running = [start(space), start(second)]
    said = [each.finished(process) for each, process in zip((space, second), running, strict=True)]
    assert sorted(TAKEN in each for each in said) == [False, True], said
    assert files(space) == files(second) and len(entries(space)) == 1


def test_a_training_of_several_processes_gives_and_takes_as_one_of_one_does(
    space: Workspace,
) -> None:
    """Two ranks claim, train and give once; who waits and who comes later takes it, whatever the processes."""
    second = user(space, "second")
    first = start(space, processes=2)
    locks = space.folder.parent / "store"
    while not list(locks.glob(".*.lock")):  # claimed before the processes are started
        assert first.poll() is None
        time.sleep(0.05)
    waiting = start(second)
    assert TAKEN not in space.finished(first)
    record = json.loads(files(space)["manifest.json"])
    (end,) = (
        line for line in read_log(space.folder / STUDENT / "metrics.jsonl") if line["kind"] == "end"
    )
    assert end["processes"] == 2 and len(entries(space)) == 1
    assert TAKEN in second.finished(waiting) and files(second) == files(space)
    third = user(space, "third", "small")
    said = third.finished(start(third, "small", processes=2))
    assert TAKEN in said and said.count("takd.training.train on ") == 1  # no second process
    assert json.loads(files(third, "small")["manifest.json"])["files"] == record["files"]
    # nobody holds it any more: what kept the lock ends with the launcher
    for _ in range(100):
        if not list(locks.glob(".*")):
            break
        time.sleep(0.1)
    assert [path.name for path in locks.iterdir()] == [entries(space)[0].name]


def test_who_is_killed_is_followed_by_the_next(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    struck = space.folder / "struck"
    strike = Strike(signal.SIGKILL, "takd.training.student.Student.export", 1, struck)
    space.finished(start(space, strike=strike), code=-signal.SIGKILL)
    assert struck.exists() and not entries(space)
    second = user(space, "second")
    assert TAKEN not in train(second)
    assert TAKEN in train(space)
    monkeypatch.delenv(store.VARIABLE)
    alone = user(space, "alone")
    train(alone)
    weights = "model/model.safetensors"
    assert files(alone)[weights] == files(space)[weights] == files(second)[weights]


@pytest.mark.parametrize(
    "file", ["model/model.safetensors", "metrics.jsonl", "manifest.json", "init/config.json"]
)
def test_a_damaged_entry_is_not_used_and_made_anew(space: Workspace, file: str) -> None:
    train(space)
    (entry,) = entries(space)
    damaged = entry / file
    content = damaged.read_bytes()
    damaged.unlink()  # a link to the results of the first
    damaged.write_bytes(content[:-3] + b"xyz")
    second = user(space, "second")
    said = train(second)
    assert TAKEN not in said and "is not used, the model is trained" in said
    assert files(second)["model/model.safetensors"] == files(space)["model/model.safetensors"]
    assert entries(space) == [entry] and TAKEN in train(user(space, "third"))


def test_a_store_that_cannot_be_written_to_fails_no_training(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (space.folder / "file").touch()
    monkeypatch.setenv(store.VARIABLE, str(space.folder / "file/store"))
    said = train(space)
    assert "could not be put into the store" in said and "manifest.json" in files(space)


def test_a_full_store_is_left_as_it_was(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    train(space)
    (entry,) = entries(space)
    shutil.rmtree(entry)

    def full(source: Path, target: Path) -> None:
        if target.suffix == ".safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)

    monkeypatch.setattr(store, "_copy", full)
    said: list[str] = []
    stage = Stage(
        {"lineage": "student-sft"},
        "",
        outputs={"manifest": space.folder / STUDENT / "manifest.json"},
    )
    monkeypatch.setattr(stage, "say", said.append)
    store.Entry(entry.parent, entry.name).put(stage)
    assert "No space left on device" in said[0] and "here it is complete" in said[0]
    assert not entries(space) and not list(entry.parent.glob("*.partial"))


def test_a_group_can_read_what_was_put_there(space: Workspace) -> None:
    before = os.umask(0o077)
    try:
        train(space)
    finally:
        os.umask(before)
    (entry,) = entries(space)
    for path in (entry, *entry.rglob("*")):
        needed = 0o50 if path.is_dir() else 0o40
        assert path.stat().st_mode & needed == needed, path


def test_results_from_elsewhere_are_adopted(
    results: Workspace,
    adopted: Adopt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["adopt", str(results.folder), "--store", str(tmp_path / "store")]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[0] == "student-sft seed 3: put into the store"
    assert "is in the store already" in adopted(results.folder)[0]
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "store"))
    second = user(results, "second")
    assert TAKEN in train(second) and files(second) == files(results)
    assert TAKEN not in train(user(results, "third"), steps=6)  # a changed setting is trained
    weights = second.folder / STUDENT / "model/model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-1] + b"x")
    assert "student-sft seed 3: left out: " in "".join(adopted(second.folder, "other", code=1))
    (results.folder / "train/manifest.json").write_text(
        json.dumps(read_json(results.folder / "dev/manifest.json"))
    )
    assert main([*arguments[:2], "--store", str(tmp_path / "third-store")]) == 1
    assert main(["adopt", str(tmp_path / "nowhere"), "--store", "x"]) == 1


def test_adopting_says_what_an_experiment_trains_otherwise(
    results: Workspace, adopted: Adopt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key by key, of the model and of what it was made from; and which models do not lie there."""
    experiment = small_experiment()
    experiment["seeds"] = [3]
    file = tmp_path / "root/config/experiments/mine.yaml"
    file.parent.mkdir(parents=True)
    mine = tmp_path / "results/mine"
    shutil.copytree(results.folder, mine)
    assert adopted(mine)[1] == (
        "compared with no experiment; --experiment NAME says which settings are those of today"
    )
    file.write_text(json.dumps(experiment))
    first, missing = adopted(mine)
    assert first.startswith("student-sft seed 3: is in the store already; mine trains another: ")
    assert "steps 3 → " in first
    assert missing.startswith("mine also trains: assistant-sft seed 3, teacher-sft seed 3, ")
    assert adopted(results.folder, experiment="mine") == [first, missing]
    # as it was trained, but for one key of the model and one of its data
    record = read_json(mine / "models/student-sft/seed3/manifest.json")
    wanted = specs.train(load(file, tmp_path / "root"), "student-sft", 3)
    monkeypatch.setattr(specs, "train", lambda *_: {**wanted, **record["spec"], "max_length": 7})
    said_first, _ = adopted(mine)
    assert f"max_length {record['spec']['max_length']} → 7" in said_first
    assert "steps" not in said_first
    monkeypatch.setattr(specs, "data", lambda _, split: {"split": f"{split}!", "source": 1})
    monkeypatch.setattr(specs, "train", lambda *_: record["spec"])
    first, _ = adopted(mine)
    assert 'data train: split "train" → "train!"' in first and "source" not in first
    experiment["chains"] = [{"models": ["teacher"]}]
    file.write_text(json.dumps(experiment))
    assert adopted(mine)[0].endswith("; mine trains another: it has no such model")


def test_a_damaged_entry_is_replaced_by_who_adopts(results: Workspace, adopted: Adopt) -> None:
    """And what was put aside is removed after a week."""
    adopted(results.folder)
    (entry,) = entries(results)
    weights = entry / "model/model.safetensors"
    weights.unlink()
    said = adopted(results.folder)[0]
    assert f"where it was damaged ({weights}: is missing)" in said and weights.is_file()
    (aside,) = entry.parent.glob(".*.damaged-*")
    for age, left in ((time.time(), True), (0, False)):
        os.utime(aside, (age, age))
        shutil.rmtree(entry)
        adopted(results.folder)
        assert aside.exists() is left


def test_names_are_no_part_of_the_key() -> None:
    spec = {"lineage": "a-sft", "model": "a", "seed": 1, "settings": {"steps": 3}}
    renamed = spec | {"lineage": "b-sft", "model": "b"}
    record = {"kind": "base", "model": "a", "files": {"model/config.json": "0"}}
    inputs = {"base": [record]}
    same = store.key(spec, "code", inputs)
    assert store.key(renamed, "code", {"base": [record | {"model": "b"}]}) == same
    assert store.key(spec, "other", inputs) != same
    assert store.key(spec | {"seed": 2}, "code", inputs) != same
    assert store.key(spec, "code", {"base": [record | {"files": {}}]}) != same
    assert store.key(spec, "code", {"teacher": [record]}) != same
    assert TEACHER["kind"] == "model"


def test_an_experiment_with_one_changed_method_trains_only_that(
    forked: Project, tmp_path: Path
) -> None:
    project = forked.copy(tmp_path / "project")
    shutil.rmtree(project.folder / "results")
    found = (f"store={tmp_path / 'store'}",)
    first = small_experiment()
    first["chains"] = [{"models": ["teacher", "student"], "methods": ["kd"]}]
    second = json.loads(json.dumps(first))
    second["models"] = {"big": second["models"]["teacher"], "small": second["models"]["student"]}
    second["chains"] = [{"models": ["big", "small"], "methods": ["kd", "minillm"]}]
    for name, experiment in (("first", first), ("second", second)):
        template = {"with_input": "{instruction}\n{input}\n", "without_input": "{instruction}\n"}
        experiment["data"]["template"] = template
        (project.folder / f"config/experiments/{name}.yaml").write_text(json.dumps(experiment))
    said = [
        project.run("models", "--config", f"experiment={name}", *found)
        for name in ("first", "second")
    ]
    assert [each.count(TAKEN) for each in said] == [0, 3]
    weights = [
        (project.folder / f"results/{path}/seed1/model/model.safetensors").read_bytes()
        for path in ("first/models/teacher-sft__student-kd", "second/models/big-sft__small-kd")
    ]
    assert weights[0] == weights[1] and len(list((tmp_path / "store").glob("[!.]*"))) == 4
