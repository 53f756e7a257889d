"""Options of stages, numbers of profiles, locks, leases, disks: what is wrong is one sentence with what to do."""

import errno
import json
import os
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Project, make_project, small_experiment
from snakemake.resources import Resource
from workspace import Workspace

from takd.preflight import amounts
from takd.preflight.jobs import Job, checked
from takd.runtime import command_line, gpu_lock, stage_lock
from takd.runtime.errors import InputError, no_room
from takd.runtime.stage import Stage
from takd.runtime.stage_lock import Lock

MODULE = "takd.evaluation.evaluate"

OPTIONS = {
    "--max-tokens": ["-1", "1.5", "many", "nan", "", "9" * 30, "٣"],
    "--micro-batch": ["0", "-3", "1.5", "many", "nan", "", "9" * 30, "٣"],
    "--threads": ["0", "-1", "inf", "2 "],
    "--processes": ["0", "-1", "1e3"],
    "--nodes": ["0", "-2", "one"],
    "--runtime": ["nan", "inf", "-inf", "-5", "0", "10h", ""],
    "--checkpoint-seconds": ["nan", "inf", "-1"],
    "--deterministic": ["2", "yes", "-1"],
    "--compile": ["true", "01"],
    "--gradient-checkpointing": ["on"],
    "--spec": ["", "{", "[]", "3", "[" * 100_000, '{"a": ' * 5000],
    "--input": ["model", "=x", "model=", "a=b\0"],
    "--output": ["scores", ""],
    "--mikro-batch": ["3", "\n"],
    "--micro": ["3"],
}


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, vs in OPTIONS.items() for v in vs])
def test_options_of_a_stage_are_refused_in_one_sentence(
    option: str, value: str, capsys: Any
) -> None:
    known = [] if option == "--spec" else ["--spec={}"]
    with pytest.raises(SystemExit) as caught:
        command_line._parser(MODULE).parse_args([*known, f"{option}={value}"])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == err and out.startswith("Error: ") and out.count("\n") == 1 and len(out) < 400
    assert option in out or "--spec" in out


def test_options_that_are_right() -> None:
    words = [
        "--spec={}",
        "--micro-batch=3",
        "--max-tokens=512",
        "--runtime=0.5",
        "--checkpoint-seconds=0",
        "--compile=1",
    ]
    found = command_line._parser(MODULE).parse_args([*words, "--input=a=b=c", "--input=a=d"])
    assert (found.micro_batch, found.runtime, found.compile, found.deterministic) == (
        3,
        0.5,
        True,
        False,
    )
    assert command_line._by_name(found.input) == {"a": [Path("b=c"), Path("d")]}


@pytest.mark.parametrize(
    "spec",
    ["{}", '{"method": "none"}', '{"method": 3}', '{"method": "kd", "teacher": ["a-sft", 1]}'],
)
def test_settings_that_no_stage_knows(
    spec: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(spec: dict[str, Any]) -> list[str]:
        return [] if "teacher" not in spec or spec["asks_teacher"] else ["teacher"]

    monkeypatch.setattr(command_line.shutdown, "skip_teardown", lambda: None)
    monkeypatch.setattr("sys.argv", ["train.py", f"--spec={spec}"])
    with pytest.raises(SystemExit):
        command_line.main(
            "takd.training.train", lambda spec: [f"takd.methods.{spec['method']}"], named=named
        )
    assert capsys.readouterr().out.startswith(
        "Error: argument --spec: lacks a setting or has a wrong one ("
    )


def test_an_input_that_is_not_given_is_one_sentence() -> None:
    for inputs in ({}, {"model": [Path("a"), Path("b")]}):
        with pytest.raises(InputError, match=r"--input model=PATH must be given once"):
            Stage({}, "", inputs).input("model")


# profiles


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("micro_batch", 0, "a whole number of at least 1"),
        ("max_tokens", -1, "a whole number of at least 0"),
        ("max_tokens", 0.5, "a whole number of at least 0"),
        ("micro_batch", "nan", "a whole number of at least 1"),
        ("processes", -1, "a whole number of at least 1"),
        ("nodes", "0", "a whole number of at least 1"),
        ("runtime", "nan", "a finite number greater than 0"),
        ("runtime", "-inf", "a finite number greater than 0"),
        ("runtime", 0, "a finite number greater than 0"),
        ("mem_mb", "nan", "a finite number greater than 0"),
        ("deterministic", 2, "0 or 1"),
    ],
)
def test_numbers_of_a_profile(name: str, value: Any, right: str) -> None:
    settings = SimpleNamespace(
        overwrite_resources={
            "sft": {name: value, "gres": "gpu:4", "slurm_extra": "''"},
            "kd": {name: 1},
        },
        overwrite_threads={"sft": 4},
    )
    with pytest.raises(InputError) as caught:
        amounts.check_profile(settings)
    assert (
        str(caught.value)
        == f"profile (set-resources): sft gets {name} = {value}, but it must be {right}."
    )
    with pytest.raises(
        InputError, match=f"profile: sft gets {name} = {value}, but it must be {right}"
    ):
        checked([Job("sft", "any", {}, {name: str(value)})])


def test_numbers_of_a_profile_that_snakemake_computes() -> None:
    def computed(text: str) -> dict[str, Any]:
        return {"sft": {"mem_mb": Resource.from_cli_expression("mem_mb", text)}}

    for text in ("min(4000 * (1 + attempt) // 2, 9000)", "input.size_mb"):
        amounts.check_profile(
            SimpleNamespace(overwrite_resources=computed(text), overwrite_threads={})
        )
    with pytest.raises(InputError, match=r"set-threads\): sft gets threads = 0"):
        amounts.check_profile(SimpleNamespace(overwrite_resources={}, overwrite_threads={"sft": 0}))
    for value in ("many", "1.5", "0", "-1"):
        with pytest.raises(InputError, match="at least 1"):
            checked([Job("sft", "any", {}, {"micro_batch": value})])


def test_a_run_with_such_a_profile_does_not_begin(project: Project) -> None:
    target = "results/small/models/teacher-sft/seed1/manifest.json"
    profile = project.folder / "profiles/mine"
    profile.mkdir(exist_ok=True)
    lines = "{teacher: {micro_batch: 0, runtime: .nan}, sft: {processes: 0}}"
    (profile / "config.yaml").write_text(f"cores: 1\nset-resources: {lines}\n")
    printed = project.run(target, "--profile", "profiles/mine", check=False)
    assert printed.count("but it must be") == 3 and "Traceback" not in printed


# places with odd names


@pytest.mark.parametrize("name", ["{b}", "a {lineage}", "}{", "{{x}}"])
def test_a_checkout_in_braces_is_refused(name: str, tmp_path: Path) -> None:
    project = make_project(tmp_path / name, small_experiment())
    printed = project.run("--dry-run", check=False)
    assert printed.count("move the repository to a folder without {, }") == 1
    assert "Traceback" not in printed


def test_a_checkout_and_data_whose_paths_hold_what_shells_replace(tmp_path: Path) -> None:
    project = make_project(tmp_path / "a 'c' \"d\" $HOME %s ; x", small_experiment())
    data = project.folder / "data/odd data $HOME.jsonl"
    shutil.copy(project.folder / "data/dev.jsonl", data)
    source = {"json": "data/{name} $HOME.jsonl"}
    project.experiment(lambda settings: settings["evaluation"]["sets"].update(mine=source))
    target = "results/small/data/mine/manifest.json"
    printed = project.run(target, "--config", "experiment=small", "name=odd data")
    assert "Traceback" not in printed
    assert (project.folder / "results/small/data/mine/manifest.json").is_file()


# locks


FOREIGN = {
    "another program's": "12345\n",
    "binary": b"\xff\xfe\x00",
    "a list": "[1, 2]",
    "a text": '"me"',
    "no process": '{"host": "HOST"}',
    "all processes": '{"host": "HOST", "process": -1}',
    "this group": '{"host": "HOST", "process": 0}',
    "a large number": '{"host": "HOST", "process": 99999999999999999999}',
    "a word": '{"host": "HOST", "process": "me"}',
    "brackets": "[" * 100_000,
    "nothing": "",
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_lock_that_holds_something_else_is_taken_over_after_a_while(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_lock, "HEARTBEAT_SECONDS", 0.01)
    content = FOREIGN[case]
    content = (
        content
        if isinstance(content, bytes)
        else content.replace("HOST", socket.gethostname()).encode()
    )
    path = tmp_path / "lock"
    path.write_bytes(content)
    said: list[str] = []
    with Lock(path, said.append):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert said == [f"{path} is held by an unknown process; waiting 0 s to see whether it is alive"]


def test_a_foreign_lock_that_is_written_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_lock, "HEARTBEAT_SECONDS", 0.1)
    path = tmp_path / "lock"
    path.write_text("mine")

    def touch(seconds: float) -> None:
        os.utime(path, (time.time(), time.time()))
        real(seconds)

    real = time.sleep
    monkeypatch.setattr(stage_lock.time, "sleep", touch)
    with (
        pytest.raises(InputError, match="is written to by a program that is no stage"),
        Lock(path, str),
    ):
        pass


def test_a_lock_that_another_has_just_taken_over_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies wait for the same dead process; the second finds the lock of the first."""
    monkeypatch.setattr(stage_lock, "HEARTBEAT_SECONDS", 0.01)
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "process": 1}))
    wait = Lock._wait_for_owner_to_be_gone

    def first_is_faster(lock: Lock) -> float | None:
        monkeypatch.setattr(Lock, "_wait_for_owner_to_be_gone", still_there)
        seen = wait(lock)
        path.unlink()
        path.write_text(json.dumps({"host": "third", "process": 2}))
        os.utime(path, (1, 1))
        return seen

    def still_there(lock: Lock) -> float | None:
        raise InputError(path.read_text())

    monkeypatch.setattr(Lock, "_wait_for_owner_to_be_gone", first_is_faster)
    with pytest.raises(InputError, match="third"), Lock(path, str):
        pass


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "link to nothing"])
def test_what_is_no_file_is_no_lock(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    (tmp_path / "other").write_text("keep")
    make = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(tmp_path / "other"),
        "link to nothing": lambda: path.symlink_to(tmp_path / "none"),
    }
    make[kind]()
    with (
        pytest.raises(InputError, match="no lock of a stage; remove it and start again"),
        Lock(path),
    ):
        pass
    assert (tmp_path / "other").read_text() == "keep" and not (tmp_path / "none").exists()


# GPUs


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder that all may write to; the name that this user's stages will take in it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(gpu_lock.tempfile, "tempdir", None)
    monkeypatch.setenv(gpu_lock.VISIBLE, "0,1")
    for name in ("RANK", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / f"takd-gpus-{os.getuid()}-no-job"


def test_locks_of_gpus_are_this_users_alone(shared: Path) -> None:
    shared.mkdir(mode=0o777)
    shared.chmod(0o777)
    gpu_lock.reserve_gpus(1, print)
    assert os.environ[gpu_lock.VISIBLE] == "0"
    assert shared.stat().st_mode & 0o777 == 0o700
    assert (shared / "0").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["link", "link to nothing", "file", "another's"])
def test_a_foreign_folder_of_locks_is_refused(
    kind: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    if kind == "another's":
        shared.mkdir()
        monkeypatch.setattr(gpu_lock.os, "getuid", lambda: 4242)
        shared.rename(tmp_path / "takd-gpus-4242-no-job")
    elif kind == "file":
        shared.touch()
    else:
        shared.symlink_to(victim if kind == "link" else tmp_path / "none")
    with pytest.raises(InputError, match="set TMPDIR to a folder of your own"):
        gpu_lock.reserve_gpus(1, print)
    assert not list(victim.iterdir()) and not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ["link", "link to nothing", "folder", "pipe"])
def test_a_foreign_lock_of_a_gpu_is_refused(kind: str, shared: Path, tmp_path: Path) -> None:
    shared.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("keep")
    make = {
        "link": lambda: (shared / "0").symlink_to(victim),
        "link to nothing": lambda: (shared / "0").symlink_to(tmp_path / "none"),
        "folder": (shared / "0").mkdir,
        "pipe": lambda: os.mkfifo(shared / "0"),
    }
    make[kind]()
    with pytest.raises(InputError, match=r"no-job/0: is not a folder or file of yours"):
        gpu_lock.reserve_gpus(1, print)
    assert victim.read_text() == "keep" and not (tmp_path / "none").exists()


# disks


def chained(inner: BaseException) -> BaseException:
    try:
        raise ValueError("could not save") from inner
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "there: cannot be written, since the disk is full",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "a.json"), "a.json: cannot be written"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the quota of this disk is used up"),
        (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (chained(OSError(errno.ENOSPC, "No space left on device")), "the disk is full"),
    ],
)
def test_a_full_disk_is_one_sentence(error: BaseException, words: str) -> None:
    said = no_room(error, "there")
    assert said and words in said and said.endswith("and start again: finished results stay.")


def test_other_errors_are_no_full_disk() -> None:
    loop = ValueError("a")
    loop.__cause__ = loop
    for error in (loop, OSError(errno.ENOENT, "No such file"), KeyError("space")):
        assert no_room(error, "there") is None


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("workspace"))


@pytest.mark.parametrize("script", ["evaluate", "train"])
def test_stages_on_a_full_disk(script: str, workspace: Workspace) -> None:
    """A limit on the size of files stands in for it."""
    if script == "train":
        more = {"steps": 2, "evaluate_every": 1, "dev_rows": 2}
        process = workspace.train(
            "full-train", "sft", "--checkpoint-seconds=9999", limit_file_kb=2, **more
        )
        name = "full-train"
    else:
        workspace.finished(workspace.train("trained", "sft", steps=2, evaluate_every=9, dev_rows=2))
        name = "full-evaluate"
        (workspace.folder / name).mkdir()
        process = workspace.run(
            "evaluate",
            name,
            {
                **{
                    "lineage": "student-sft",
                    "seed": 3,
                    "set": "dev",
                    "seeds": [10, 20],
                    "max_length": 16,
                },
                "decoding": {**workspace.spec("sft")["dev_decoding"]},
                "precision": "auto",
            },
            {"model": "trained", "data": "dev", "tokenizer": "tokenizer"},
            ["scores.json", "generations.jsonl", "answers.jsonl", "metrics.jsonl"],
            limit_file_kb=1,
        )
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    last = out.strip().splitlines()[-1]
    assert last.startswith("Error: ") and name in last and "make room there" in last, out
