"""In which numbers models compute: by device, by what a model was pretrained in, through chains, and in plans."""

import json
import shutil

import pytest
import torch
from test_models import GROUPED
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from workspace import Workspace

from takd.decoding import loading
from takd.models import shapes
from takd.models.causal_lm import load_model
from takd.models.layer_dropping import keep_layers
from takd.models.precision import choose_precision, describe, pretrained_dtype, pretrained_in
from takd.preflight import memory
from takd.preflight.gpus import find_gpu
from takd.runtime.errors import InputError
from takd.runtime.stage import Stage

VOLTA = ("Tesla V100-SXM2-32GB", (7, 0))
AMPERE = ("NVIDIA A100-SXM4-40GB", (8, 0))
HOPPER = ("NVIDIA H100 80GB HBM3", (9, 0))
LACKING = "on Tesla V100-SXM2-32GB, which has no bfloat16"


@pytest.fixture
def pretend(monkeypatch):
    """Have torch say that it has a card; nothing can be put on it."""

    def card(name, capability, kernels=("sm_70", "sm_80", "sm_90")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(kernels))

    return card


@pytest.mark.parametrize(
    ("card", "pretrained", "precision", "words"),
    [
        (VOLTA, "", "fp16", f"fp16 with dynamic loss scaling {LACKING}"),
        (VOLTA, "float16", "fp16", f"fp16 with dynamic loss scaling {LACKING}"),
        (VOLTA, "float32", "fp16", f"fp16 with dynamic loss scaling {LACKING}"),
        (
            VOLTA,
            "bfloat16",
            "fp32",
            f"fp32 {LACKING}: a model pretrained in it may leave the range of fp16",
        ),
        (AMPERE, "bfloat16", "bf16", "bf16 on NVIDIA A100-SXM4-40GB"),
        (HOPPER, "", "bf16", "bf16 on NVIDIA H100 80GB HBM3"),
    ],
)
def test_precision_is_what_the_card_has_and_the_model_bears(
    pretend, card, pretrained, precision, words
):
    pretend(*card)
    assert choose_precision("auto", pretrained) == precision
    assert describe(precision, pretrained) == words
    assert find_gpu(card[0]).precision("auto", pretrained) == precision
    for asked in ("fp32", "fp16"):  # the user's word goes before
        assert choose_precision(asked, pretrained) == asked
    if card is not HOPPER:  # a stage ends before it loads anything
        pretend(*card, kernels=["sm_90"])
        with pytest.raises(InputError, match=f"has no kernels for {card[0]}"):
            choose_precision("fp32")


def test_precision_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_precision("auto", "bfloat16") == "fp32"
    assert choose_precision("bf16") == "bf16"
    assert describe("fp32", "bfloat16") == "fp32 on the CPU"
    with pytest.raises(InputError, match="precision 'fp16' needs a GPU"):
        choose_precision("fp16")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, ""),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "torch.float16"}, "float16"),
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),  # as Gemma 3 nests it
        ({"dtype": "float32", "pretrained_dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_where_a_configuration_says_it(config, expected):
    assert pretrained_dtype(config) == expected


def qwen2(folder, space=None):
    """A Qwen2 as its weights are published: in bfloat16."""
    vocabulary = {"vocab_size": len(space.tokenizer)} if space else {}
    torch.manual_seed(1)
    model = Qwen2ForCausalLM(Qwen2Config(**{**GROUPED, **vocabulary}))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_the_origin_survives_layers_training_and_export(tmp_path):
    """Also of the student of a student: what training writes is float32, whose own type says nothing."""
    space = Workspace(tmp_path)
    qwen2(tmp_path / "whole", space)
    (tmp_path / "origin" / "model").mkdir(parents=True)
    keep_layers(tmp_path / "whole", tmp_path / "origin" / "model", 1, "any")
    settings = {"steps": 2, "evaluate_every": 2, "dev_rows": 2, "dropout": 0.0}
    for name, start in (("first", "origin"), ("second", "again")):
        space.manifest(start, kind="base", model="student")
        space.finished(space.train(name, "sft", inputs={"base": start}, **settings))
        saved = json.loads((tmp_path / name / "model" / "config.json").read_text())
        assert saved["dtype"] == "float32"
        if name == "first":
            shutil.copytree(tmp_path / name / "model", tmp_path / "again" / "model")
        for output in ("model", "init"):
            assert pretrained_in(tmp_path / name / output) == "bfloat16"
            assert shapes.config_of(tmp_path / name / output).pretrained == "bfloat16"
    load_model(tmp_path / "student" / "model").save_pretrained(tmp_path / "scratch")
    assert pretrained_in(tmp_path / "scratch") in ("", "float32")


def test_an_evaluation_on_a_card_without_bfloat16_takes_fp32_and_says_it(
    tmp_path, pretend, monkeypatch, capsys
):
    space = Workspace(tmp_path)
    folder = qwen2(tmp_path / "model", space)
    pretend(*VOLTA)
    monkeypatch.setattr(loading, "current_device", lambda: torch.device("cpu"))

    def dtype(**spec):
        stage = Stage(spec=spec, code="")
        return loading.load(stage, folder, space.tokenizer, "student-sft", 16)[0].dtype

    assert dtype() == dtype(precision="auto") == torch.float32
    said = capsys.readouterr().out
    assert said.count(f"student-sft: fp32 {LACKING}: a model pretrained in it") == 2
    assert dtype(precision="fp16") == torch.float16
    pretend(*AMPERE)
    assert dtype() == torch.bfloat16
    assert not capsys.readouterr().out


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_evaluations_and_teachers_compute_as_the_settings_say(tmp_path, precision, capsys):
    """bf16 on a CPU too, where `auto` is fp32."""
    space = Workspace(tmp_path)
    folder = qwen2(tmp_path / "model", space)
    stage = Stage(spec={"precision": precision}, code="")
    model, _ = loading.load(stage, folder, space.tokenizer, "any", 16)
    assert model.dtype == (torch.float32 if precision == "auto" else torch.bfloat16)


def test_plans_count_the_bytes_of_fp32_on_a_card_without_bfloat16(tmp_path):
    torch.manual_seed(0)
    plain, origin = tmp_path / "plain", tmp_path / "origin"
    for folder, dtype in ((plain, torch.float32), (origin, torch.bfloat16)):
        LlamaForCausalLM(LlamaConfig(**GROUPED)).to(dtype).save_pretrained(folder)
    texts, given = memory.Texts(8, 8), memory.Resources(micro_batch=1)

    def weights(folder, card, setting="auto"):
        shape = shapes.config_of(folder)
        found = memory.asking(shape, texts, given, find_gpu(card), setting=setting)
        return found.always["weights"] / shape.parameters

    assert weights(plain, "v100l") == weights(plain, "a100") == weights(origin, "a100") == 2
    assert weights(origin, "v100l") == weights(origin, "a100", "fp32") == 4
    assert weights(origin, "v100l", "fp16") == weights(origin, "cpu", "bf16") == 2
    student, teacher = (shapes.config_of(folder) for folder in (plain, origin))
    settings = {"precision": "auto", "dropout": 0.0, "dev_rows": None, "divergence": "forward_kl"}
    spec = {"method": "kd", "settings": settings}
    found = memory.training(student, teacher, spec, texts, given, find_gpu("v100l"))
    assert found.always["teacher's weights"] == 4 * teacher.parameters
