"""Files of a model as users bring them: each fault is one sentence that names the file and the remedy."""

import json
import re

import pytest
import torch
from models_for_tests import tiny_gpt2
from safetensors.torch import load_file, save_file
from test_base import in_shards, prepare  # noqa: F401, a fixture
from transformers import BartConfig, T5Config, ViTConfig

from takd.models.causal_lm import load_model
from takd.models.weight_files import check_finite, unwrapped
from takd.runtime.errors import InputError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 1234\n"
GREATER = (2**60).to_bytes(8, "little")
NOT_FINITE = [torch.nan, torch.inf, -torch.inf]


@pytest.fixture
def source(tmp_path):
    tiny_gpt2(0).save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def refusal(prepare, source):  # noqa: F811
    """What the stage says of a folder: one sentence."""
    with pytest.raises(InputError) as told:
        prepare({"folder": str(source)}, parameters=1e4)
    said = str(told.value)
    assert said.startswith("model 'm'") and said.endswith(".") and "\n" not in said
    assert len(re.findall(r"[.?!] [A-Z]", said)) == 0
    return said


DAMAGES = {
    "pointer": (lambda old: POINTER, "a pointer of git-lfs .*git lfs pull"),
    "empty": (lambda old: b"", "is empty; fetch or copy it again"),
    "page": (lambda old: b"<!DOCTYPE html><html>", "is a web page"),
    "pickle": (lambda old: b"PK\x03\x04" + bytes(100), "pickled .* convert it"),
    "truncated": (lambda old: old[:-100], r"has \d+ of its \d+ bytes; fetch or copy it again"),
    "header only": (lambda old: old[:300], "has lost its end .300 bytes are there.; fetch"),
    "greater header": (
        lambda old: GREATER + old[8:],
        "is no safetensors file, or has lost its end",
    ),
    "broken header": (lambda old: old[:8] + b"#" + old[9:], "header that is no safetensors header"),
    "zeros": (lambda old: bytes(len(old)), "no safetensors header; fetch"),
    "longer": (lambda old: old + b"more", "is no valid safetensors file"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_weights_are_told_with_file_and_remedy(prepare, source, kind):  # noqa: F811
    damage, says = DAMAGES[kind]
    path = source / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    said = refusal(prepare, source)
    assert str(path) in said and re.search(says, said), said


def test_a_header_whose_length_begins_like_a_pickle(prepare, source):  # noqa: F811
    path = source / "model.safetensors"
    old = path.read_bytes()
    length = int.from_bytes(old[:8], "little")
    more = -length % 256 + 128  # blanks at the end of a header are allowed
    header = old[8 : 8 + length] + b" " * more
    whole = (length + more).to_bytes(8, "little") + header + old[8 + length :]
    assert whole[:1] == b"\x80"
    path.write_bytes(whole[:-100])
    assert re.search(DAMAGES["truncated"][1], refusal(prepare, source))


@pytest.mark.parametrize("kind", ["pointer", "truncated"])
def test_a_damaged_shard_is_named(prepare, tmp_path, kind):  # noqa: F811
    in_shards(tiny_gpt2(0, width=64), tmp_path / "source")
    shard = sorted((tmp_path / "source").glob("model-*.safetensors"))[1]
    shard.write_bytes(DAMAGES[kind][0](shard.read_bytes()))
    said = refusal(prepare, tmp_path / "source")
    assert str(shard) in said and re.search(DAMAGES[kind][1], said), said


CONFIGS = {
    "no json": ("{", "is not JSON .Expecting"),
    "empty": ("", "is empty"),
    "pointer": (POINTER.decode(), "git lfs pull"),
    "list": ("[1]", "one JSON object"),
    "nested": ("[" * 100_000, "is not JSON"),
    "no type": ("{}", "names the model_type None"),
    "unknown type": ({"model_type": "gpt77"}, "model_type 'gpt77', which the installed"),
    "own code": (
        {"model_type": "own", "auto_map": {"AutoConfig": "a.b"}},
        "code of its own, which is",
    ),
    "wrong value": (
        {"model_type": "llama", "hidden_size": "wide"},
        "is no configuration of a llama",
    ),
    "wrong shape": (
        {"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4},
        "is no configuration of a llama",
    ),
    "no activation": (
        {"model_type": "gpt2", "activation_function": "none"},
        "cannot be built from",
    ),
    **{
        f"quantised by {method}": (
            {"model_type": "llama", "quantization_config": {"quant_method": method}},
            rf"quantised \({method}\).* dequantise",
        )
        for method in ("gptq", "awq", "bitsandbytes", "fp8", "mxfp4", "compressed-tensors")
    },
    "t5": (T5Config().to_dict(), "is a t5, which has an encoder beside its decoder"),
    "bart": (BartConfig().to_dict(), "is a bart, which has an encoder"),
    "vit": (ViTConfig().to_dict(), "is a vit, which does not continue a text"),
    "other family": ({"model_type": "opt"}, "its safetensors lack"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_configuration_that_does_not_fit_is_told(prepare, source, kind):  # noqa: F811
    settings, says = CONFIGS[kind]
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (source / "config.json").write_text(text)
    said = refusal(prepare, source)
    assert re.search(says, said), said


@pytest.mark.parametrize(
    "index",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"weight_map": {"a": "../../other/model.safetensors"}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": ["model.safetensors"]}',
    ],
)
def test_an_index_that_is_none_is_told(prepare, source, index):  # noqa: F811
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refusal(prepare, source)


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_names_that_wrappers_made_are_taken_off(prepare, tmp_path, prefix, shards):  # noqa: F811
    model = tiny_gpt2(0, width=64 if shards else 16)
    source = tmp_path / "source"
    in_shards(model, source) if shards else model.save_pretrained(source)
    for file in source.glob("*.safetensors"):
        named = {prefix + key: value for key, value in load_file(file).items()}
        save_file(named, file)
    if shards:
        path = source / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"] = {prefix + key: name for key, name in index["weight_map"].items()}
        path.write_text(json.dumps(index))
    count = sum(p.numel() for p in model.parameters())
    assert prepare({"folder": str(source)}, parameters=count)["parameters"] == count
    for file in source.glob("*.safetensors*"):
        file.unlink()  # nothing links to them
    loaded = load_model(tmp_path / "model").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


def test_names_of_wrapped_blocks_and_of_plain_models():
    assert unwrapped("model._orig_mod.layers.0._fsdp_wrapped_module.mlp.weight") == (
        "model.layers.0.mlp.weight"
    )
    assert unwrapped("h.1._checkpoint_wrapped_module.attn.weight") == "h.1.attn.weight"
    for plain in ("model.layers.0.module.weight", "modules.weight", "module", "h.0.attn.bias"):
        assert unwrapped(plain) == plain


def test_a_tensor_with_and_without_a_wrapper_is_refused(prepare, source):  # noqa: F811
    file = source / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "module.transformer.wte.weight": torch.ones(1)}, file)
    assert "the same tensor as" in refusal(prepare, source)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", NOT_FINITE)
def test_weights_that_are_not_finite_are_refused_by_name(prepare, tmp_path, value, dtype):  # noqa: F811
    model = tiny_gpt2(0).to(dtype)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[3, 5] = value
    model.save_pretrained(tmp_path / "source")
    count = sum(p.numel() for p in model.parameters())
    with pytest.raises(
        InputError, match=r"1 of \d+ numbers .* transformer\.h\.1\.mlp\.c_fc\.weight"
    ):
        prepare({"folder": str(tmp_path / "source")}, parameters=count)


def test_what_a_model_does_not_read_may_be_infinite(prepare, source):  # noqa: F811
    file = source / "model.safetensors"
    extra = {"transformer.h.0.attn.masked_bias": torch.tensor(-torch.inf), "x": torch.ones(2).int()}
    save_file({**load_file(file), **extra}, file)
    count = sum(p.numel() for p in tiny_gpt2(0).parameters())
    prepare({"folder": str(source)}, parameters=count)
    with pytest.raises(InputError, match="masked_bias"):
        check_finite([file], "m")
