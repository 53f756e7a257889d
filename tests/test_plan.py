"""The plan: what stages compute, how long they take, what of it is done."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from workspace import Workspace

from takd.models import load_model
from takd.preflight import shapes, work
from takd.preflight.footprint import Resources
from takd.stage import Stage
from takd.training import train

aten = torch.ops.aten
# attention on the CPU, which torch's counter leaves out
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, **kwargs: (
        sdpa_flop_count(q, k, v)
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *args, **kw: (
        sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Trained models are random ones here: what is counted does not depend on the weights."""
    space = Workspace(tmp_path_factory.mktemp("space"))
    for split, count in (("train", 48), ("dev", 16)):  # equally long, as padding is not planned
        rows = load_from_disk(str(space.folder / split / "dataset"))
        rows = rows.select([i % len(rows) for i in range(count)])
        rows = rows.map(
            lambda row, i: {
                "prompt_ids": [7, 2 + i % 10, 3, 4, 5, 6],
                "response_ids": [2, 3, 4, 5, 0],
            },
            with_indices=True,
        )
        rows.save_to_disk(space.folder / f"{split}-equal" / "dataset")
        space.manifest(f"{split}-equal")
    for name, start in (("trained-teacher", "teacher"), ("trained-student", "student")):
        for place in ("model", "init"):
            model = load_model(space.folder / start / "model", seed=1)
            model.save_pretrained(space.folder / name / place)
        space.manifest(name)
    return space


def rows_of(folder: Path) -> work.Rows:
    dataset = load_from_disk(str(folder / "dataset"))
    prompt, response = (
        sum(map(len, dataset[column])) / len(dataset) for column in ("prompt_ids", "response_ids")
    )
    return work.Rows(len(dataset), prompt, response)


def counted(space: Workspace, name: str, method: str, **settings: Any) -> tuple[float, Any, dict]:
    """Operations of a training stage by torch's own count, its settings, and the end of its journal."""
    spec = space.spec(method, **{"dropout": 0.0, **settings})
    inputs = {
        "base": "student",
        "tokenizer": "tokenizer",
        "train": "train-equal",
        "dev": "dev-equal",
    }
    if method != "sft":
        inputs |= {"teacher": "trained-teacher", "init": "trained-student"}
    if spec["settings"].get("lm_weight"):
        inputs["corpus"] = "corpus"
    folder = space.folder / name
    folder.mkdir()
    outputs = {"model": "model", "init": "init", "metrics": "metrics.jsonl"}
    stage = Stage(
        spec=spec,
        code="any",
        inputs={key: [space.folder / place / "manifest.json"] for key, place in inputs.items()},
        outputs={
            key: folder / file for key, file in {**outputs, "manifest": "manifest.json"}.items()
        },
        micro_batch=4,
    )
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        train.run(stage)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return counter.get_total_flops(), spec, [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", ["sft", "kd", "gkd", "minillm", "minillm-no-mix", "sft-lora"])
def test_work_is_what_torch_counts(space: Workspace, name: str) -> None:
    """Within 10 %: rows of a batch are padded, and a few passes before the first step are not planned."""
    method = name.split("-")[0]
    settings: dict[str, Any] = {
        "minillm-no-mix": {"teacher_mix": 0.0, "lm_weight": 0.0},
        "gkd": {"on_policy_share": 1.0},
        "sft-lora": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": None}},
    }.get(name, {})
    found, spec, journal = counted(space, name, method, steps=24, batch_size=8, **settings)
    student = shapes.config_of(space.folder / "student/model")
    teacher = shapes.config_of(space.folder / "trained-teacher/model")
    # random models draw longer responses than the labels: those that they drew
    drawn = [line["response_length"] for line in journal if line["kind"] == "dev"]
    print(found, drawn)
    train_rows, dev_rows = (rows_of(space.folder / f"{name}-equal") for name in ("train", "dev"))
    planned = work.training(
        spec,
        student,
        None if method == "sft" else teacher,
        train_rows,
        dev_rows,
        Resources(micro_batch=4),
        block_length=12,
        drawn=sum(drawn) / len(drawn),
    )
    assert planned is not None
    print(planned.operations / found, planned.tokens, journal[-1]["tokens"])
    assert planned.operations == pytest.approx(found, rel=0.10)
    assert planned.tokens == pytest.approx(journal[-1]["tokens"], rel=0.06)
