"""The resource `deterministic`: on in every process, without effect on a CPU, and said where it cannot be."""

import os
import shutil

import pytest
import torch
from test_ending import Scripted
from workspace import TEACHER

from takd.decoding import loading
from takd.runtime.stage import Stage

SETTINGS = {"steps": 3, "evaluate_every": 3}
TELL = """
import os
import torch
from takd.training.loop import Run
def train(run, whole=Run.train):
    modes = torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    text = " ".join(map(str, ("rank", run.rank, *modes)))
    os.write(1, text.encode() + b"; ")  # in one piece: two processes write
    whole(run)
Run.train = train
"""
SCATTER = """
import torch
from takd.training.loop import Run
def optimize(run, step):
    torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
Run.optimize = optimize
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Scripted(tmp_path_factory.mktemp("deterministic"))


def test_it_is_on_in_every_process_and_changes_nothing_on_a_cpu(workspace):
    workspace.script(TELL)
    plain = workspace.finished(workspace.train("plain", "sft", processes=2, **SETTINGS))
    assert "rank 0 False None" in plain
    more = {"processes": 2, **SETTINGS}
    said = workspace.finished(workspace.train("same", "sft", "--deterministic=1", **more))
    assert "rank 0 True :4096:8" in said and "rank 1 True :4096:8" in said
    results = ("model/model.safetensors", "init/model.safetensors", "manifest.json")
    for file in results:
        one, other = (workspace.folder / name / file for name in ("plain", "same"))
        assert one.read_bytes() == other.read_bytes()


def test_stages_that_ask_a_model_have_it_too(monkeypatch):
    for name in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    try:
        loading.configure_libraries(Stage({}, "code"))
        assert not torch.are_deterministic_algorithms_enabled()
        loading.configure_libraries(Stage({}, "code", deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
        torch.set_num_threads(threads)
        for name in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO"):
            os.environ.pop(name, None)


def test_an_operation_that_cannot_be_is_a_sentence(workspace):
    workspace.script(SCATTER)
    said = workspace.finished(workspace.train("cannot", "sft", "--deterministic=1"), code=1)
    assert "Error: torch has no variant of put_ that gives the same numbers each time" in said
    assert "Traceback" not in said


def test_methods_train_with_it(workspace):
    """Nothing that losses, sampling and caches use is without such a variant, as far as a CPU can tell."""
    workspace.script("")
    workspace.finished(workspace.train("trained-student", "sft", **SETTINGS))
    shutil.copytree(workspace.folder / "trained-student", workspace.folder / "trained-teacher")
    workspace.manifest("trained-teacher", **TEACHER)
    for method in ("kd", "minillm"):
        whole = workspace.train(method, method, "--deterministic=1", **SETTINGS)
        assert "dev ROUGE-L" in workspace.finished(whole)
