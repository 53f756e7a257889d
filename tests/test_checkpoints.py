"""A damaged checkpoint is named and the one before it is taken, with the same end as if nothing had happened."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models_for_tests import tiny_gpt2
from safetensors.torch import load_file
from test_integrity import flip, truncate
from test_methods_on_policy import Interruptible
from workspace import STUDENT, TEACHER, TIMED, Workspace

from takd.runtime.errors import InputError
from takd.runtime.sharding import JsonlStore, Shard
from takd.runtime.stage import Interrupted, Stage
from takd.runtime.verify import verify
from takd.training import train as training
from takd.training.best_weights import Best

SETTINGS = {"steps": 8, "evaluate_every": 3, "dropout": 0.1}
STOP = 6  # a checkpoint each step: those of steps 5 and 6 are there, which name weights of steps 3 and 6


@pytest.fixture(scope="module", autouse=True)
def improving() -> Iterator[None]:
    """Each evaluation is the best so far, so that the two checkpoints name different weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Best, "improves", lambda best, value: True)
        yield


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    space = Workspace(tmp_path_factory.mktemp("workspace"))
    for name, part, said in (
        ("trained-teacher", "model", TEACHER),
        ("trained-student", "init", STUDENT),
    ):
        tiny_gpt2(ord(part[0]), len(space.tokenizer)).save_pretrained(space.folder / name / part)
        space.manifest(name, **said)
    return space


def stage(space: Workspace, name: str, steps_left: float) -> Interruptible:
    """A training with weights, optimizer and a state of the method's own."""
    read = {"base": "student", "teacher": "trained-teacher", "init": "trained-student"}
    read |= {data: data for data in ("tokenizer", "train", "dev")}
    files = {"model": "model", "metrics": "metrics.jsonl", "manifest": "manifest.json"}
    return Interruptible(
        space.spec("gkd", **SETTINGS),
        "code",
        {key: [space.folder / of / "manifest.json"] for key, of in read.items()},
        {key: space.folder / name / file for key, file in files.items()},
        checkpoint_seconds=0.0,
        steps_left=steps_left,
    )


@pytest.fixture(scope="module")
def stopped(space: Workspace) -> Path:
    """A training that was stopped; the folder of its checkpoints' key."""
    with pytest.raises(Interrupted):
        training.run(stage(space, "stopped", STOP))
    (folder,) = (space.folder / "stopped/checkpoints").glob("*")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("kept-000000003", "kept-000000006", "metrics.jsonl"),
        *("step-000000005", "step-000000006"),
    ]
    return folder


@pytest.fixture(scope="module")
def whole(space: Workspace) -> tuple[dict[str, torch.Tensor], bytes, list[Any]]:
    """What an undisturbed run ends with."""
    training.run(stage(space, "whole", float("inf")))
    return results(space, "whole")


def results(space: Workspace, name: str) -> tuple[dict[str, torch.Tensor], bytes, list[Any]]:
    folder = space.folder / name
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = [{k: v for k, v in line.items() if k not in TIMED} for line in lines]
    weights = load_file(folder / "model/model.safetensors")
    return weights, (folder / "manifest.json").read_bytes(), log


def copied(space: Workspace, stopped: Path, name: str) -> Path:
    shutil.copytree(space.folder / "stopped", space.folder / name)
    return space.folder / name / "checkpoints" / stopped.name


def shortened(path: Path) -> None:
    """As after a full disk: what was written last is lost."""
    path.write_bytes(path.read_bytes()[:-9])


NEWEST = "step-000000006"
DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "flipped weights": (f"{NEWEST}/model.safetensors", flip),
    "flipped moments": (f"{NEWEST}/optimizer.safetensors", flip),
    "flipped state of the method": (f"{NEWEST}/method.safetensors", flip),
    "flipped record": (f"{NEWEST}/progress.json", flip),
    "no moments": (f"{NEWEST}/optimizer.safetensors", Path.unlink),
    "no weights": (f"{NEWEST}/model.safetensors", Path.unlink),
    "no record": (f"{NEWEST}/progress.json", Path.unlink),
    "half of the weights": (f"{NEWEST}/model.safetensors", truncate),
    "half of the record": (f"{NEWEST}/progress.json", truncate),
    "flipped best weights": ("kept-000000006/model.safetensors", flip),
    "flipped tokenizer beside the best": ("kept-000000006/tokenizer.json", flip),
    "best weights of others": (
        "kept-000000006/model.safetensors",
        lambda path: path.write_bytes(
            (path.parents[1] / "kept-000000003" / path.name).read_bytes()
        ),
    ),
    "no best weights": ("kept-000000006", shutil.rmtree),
    "end of the log lost": ("metrics.jsonl", shortened),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_taken(
    space: Workspace,
    stopped: Path,
    whole: tuple[dict[str, torch.Tensor], bytes, list[Any]],
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = damage.replace(" ", "-")
    file, harm = DAMAGES[damage]
    folder = copied(space, stopped, name)
    harm(folder / file)
    assert any(file in fault for fault in verify(space.folder / name).faults)
    training.run(stage(space, name, float("inf")))
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "Damaged checkpoint" in line]
    assert file in line and line.endswith("the training resumes from step 5.")
    weights, manifest, log = results(space, name)
    assert all(torch.equal(weights[key], tensor) for key, tensor in whole[0].items())
    assert manifest == whole[1] and log == whole[2]


@pytest.mark.parametrize("file", ["step-*/progress.json", "kept-000000003/config.json"])
def test_without_a_whole_checkpoint_one_sentence_names_the_folder(
    space: Workspace, stopped: Path, file: str
) -> None:
    """The weights of step 3 are what the older one names; the newer one is damaged itself."""
    folder = copied(space, stopped, f"both-{file[:4]}")
    for path in (*folder.glob(file), folder / NEWEST / "optimizer.safetensors"):
        flip(path)
    before = sorted(path for path in folder.rglob("*"))
    with pytest.raises(InputError) as error:
        training.run(stage(space, f"both-{file[:4]}", float("inf")))
    assert str(error.value).startswith(f"no checkpoint is whole ({folder}")
    assert f"delete {folder} and start again" in str(error.value)
    assert sorted(path for path in folder.rglob("*")) == before


def test_damaged_best_weights_are_not_published(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged after the last checkpoint named them."""
    end = training.Run.end

    def damaging(job: training.Run) -> None:
        end(job)
        flip(job.checkpoints.kept(8) / "generation_config.json")

    monkeypatch.setattr(training.Run, "end", damaging)
    with pytest.raises(InputError, match=r"kept-000000008: changed .*\(model/generation_config"):
        training.run(stage(space, "published", float("inf")))
    assert not (space.folder / "published/manifest.json").exists()


def test_all_processes_take_the_same_checkpoint(space: Workspace) -> None:
    processes, name, settings = 2, "two", {"steps": 6, "evaluate_every": 3, "dropout": 0.1}
    more = ("--checkpoint-seconds=0", "--runtime=0.00001")
    for _ in range(2):
        space.finished(space.train(name, "kd", *more, processes=processes, **settings), code=1)
    newest = sorted((space.folder / name).glob("checkpoints/*/step-*"))[-1]
    flip(newest / "model.safetensors")
    said = space.finished(space.train(name, "kd", processes=processes, **settings))
    assert f"Damaged checkpoint: {newest.relative_to(space.folder)}/model.safetensors" in said
    assert "resumes from step 1 of 6" in said
    space.finished(space.train("two-whole", "kd", processes=processes, **settings))
    ends = [load_file(space.folder / n / "model/model.safetensors") for n in (name, "two-whole")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[1])


def test_a_damaged_line_of_what_was_found_is_found_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, stage = JsonlStore(tmp_path, "answers", Shard()), Stage(spec={}, code="")
    with store.saving(stage, "test", "rows", 3) as save:
        save(*({"row": row, "tokens": [row]} for row in range(3)), count=3)
    file = tmp_path / "answers.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"[1]", b"[4]")
    file.write_bytes(b"".join(lines) + b"deadbeef {")
    assert [record["row"] for record in store.read()] == [0, 2]
    assert f"{file}, line 2: damaged; what it held is done again" in capsys.readouterr().out
    with store.saving(stage, "test", "rows", 3, done=2) as save:
        save({"row": 1, "tokens": [1]})
    assert [record["tokens"] for record in store.read()] == [[0], [2], [1]]
