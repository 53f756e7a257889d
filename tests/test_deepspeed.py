"""What DeepSpeed is told and what it leaves: weights in float32, and locks of builds that were killed."""

import json
import os
import threading
from pathlib import Path

import pytest
import torch
from forks import Forked
from safetensors.torch import load_file
from torch.utils import cpp_extension
from workspace import ROOT, Workspace

from takd.runtime import deepspeed_builds
from takd.runtime.errors import InputError
from takd.training import devices


def config(stage):
    return {
        "name": stage,
        "config": json.loads((ROOT / f"config/deepspeed/{stage}.json").read_text()),
    }


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("deepspeed"))


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_half_precision_exports_the_float32_weights_of_the_optimizer(workspace, stage):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    space, settings = workspace, {"steps": 4, "evaluate_every": 1, "keep": "loss", "dropout": 0.0}
    settings |= {"precision": "bf16", "deepspeed": config(stage)}
    # stopped after its first step: what was kept of it and its checkpoint are of the same weights
    first = space.train(stage, "sft", "--runtime=0.00001", processes=2, **settings)
    assert "Stopped" in space.finished(first, code=1)
    (checkpoint,) = (space.folder / stage).glob("checkpoints/*/step-000000001")
    masters = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    (kept,) = (space.folder / stage).glob("checkpoints/*/kept-*1")
    exported = load_file(kept / "model.safetensors")
    assert exported
    for name, tensor in exported.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, masters[f"model.{name}"]), name
    assert not all(torch.equal(t, t.bfloat16().float()) for t in exported.values())
    assert json.loads((kept / "config.json").read_text())["dtype"] == "float32"


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """A lock as torch makes one while it compiles, and a folder of another package's build beside it."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for name in ("cpu_adam", "of_others"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
        os.utime(tmp_path / name / "lock", (0, 0))
    return tmp_path / "cpu_adam" / "lock"


def test_a_lock_of_a_killed_build_is_told_with_its_remedy(lock):
    assert deepspeed_builds.locks() == [lock]
    with pytest.raises(InputError, match=rf"{lock} is \d+ minutes old: .* delete it \(rm {lock}\)"):
        deepspeed_builds.await_builds(print)


def test_a_lock_is_found_where_torch_builds_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = Path(cpp_extension._get_build_directory("cpu_adam", False))
    assert tmp_path in place.parents
    (place / "lock").touch()
    assert deepspeed_builds.locks() == [place / "lock"]


def test_a_build_that_is_under_way_is_waited_for(lock):
    os.utime(lock)
    said: list[str] = []
    threading.Timer(1.0, lock.unlink).start()
    deepspeed_builds.await_builds(said.append)
    assert len(said) == 1 and str(lock) in said[0]


def test_a_training_refuses_a_lock_of_a_killed_build(workspace, lock):
    process = workspace.train("locked", "sft", deepspeed=config("zero2"))
    said = workspace.finished(process, code=1)
    assert f"Error: {lock} is" in said and "Traceback" not in said


PROCESS = """
import json, os, sys
import torch.distributed as dist
from takd.training import devices
from takd.models.precision import current_device
import forks
forks._fork(nodes=1, processes=2, threads=1)
devices.start("fp32", 1, 1, 1.0, json.loads(sys.argv[1]))
patience = dist.group.WORLD._get_backend(current_device()).options._timeout
os.write(1, f"waits {patience}\\n".encode())  # in one piece: two processes write
dist.destroy_process_group()
"""


@pytest.mark.parametrize("stage", [None, "zero2"])
def test_processes_wait_for_one_that_writes_a_large_model(tmp_path, stage):
    (tmp_path / "start.py").write_text(PROCESS)
    process = Forked([str(tmp_path / "start.py"), json.dumps(stage and config(stage))], tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count(f"waits {devices.PATIENCE}") == 2
