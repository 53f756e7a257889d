"""ZeRO-3 with losses in several chunks: processes have different numbers of them, and gather weights together."""

import json

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close
from workspace import ROOT, TEACHER, Workspace

STAGE = """
import takd.losses.chunked
from takd.runtime.command_line import main

takd.losses.chunked.chunk_size = lambda vocabulary, device: 1  # token
main("takd.training.train", also=lambda spec: [f"takd.methods.{spec['method']}"], gpus=True)
"""


class InChunks(Workspace):
    """A workspace whose trainings have chunks of one token: rows of 2 to 4 tokens have as many."""

    def start(self, script, *arguments, **options):
        (self.folder / "in_chunks.py").write_text(STAGE)
        chosen = str(self.folder / "in_chunks") if script == "train" else script
        return super().start(chosen, *arguments, **options)


@pytest.mark.parametrize("method", ["sft", "kd"])
def test_unequal_numbers_of_chunks_equal_plain_training(tmp_path, method):
    space = InChunks(tmp_path)
    space.manifest("teacher", **TEACHER)
    config = json.loads((ROOT / "config/deepspeed/zero3.json").read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # no weight stays whole
    settings = {"steps": 4, "evaluate_every": 2, "dropout": 0.0}
    inputs = {"teacher": "teacher"} if method != "sft" else {}
    for name, more in (("plain", {}), ("sharded", {"deepspeed": {"name": "z", "config": config}})):
        process = space.train(
            name,
            method,
            "--micro-batch=1",
            processes=2 if more else 1,
            inputs=inputs,
            **{**settings, **more},
        )
        space.finished(process)
    plain, sharded = (
        load_file(tmp_path / name / "model/model.safetensors") for name in ("plain", "sharded")
    )
    assert plain.keys() == sharded.keys()
    for key, value in plain.items():
        assert_close(sharded[key], value, rtol=1e-3, atol=1e-4)
