"""A model made of some of another's layers: its tensors, its configuration, how it decodes, what is refused."""

import json

import pytest
import torch
from models_for_tests import tiny_gpt2
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from takd.decoding.model_checks import check_decoding, check_projection
from takd.models.causal_lm import load_model
from takd.models.layer_dropping import choose, keep_layers
from takd.runtime.errors import InputError

SMALL = {"hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "vocab_size": 13}
LLAMA_LIKE = {**SMALL, "intermediate_size": 24, "num_key_value_heads": 2}
FAMILIES = {
    "gpt2": lambda: tiny_gpt2(0, vocabulary=13, layers=5),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**SMALL, ffn_dim=24, word_embed_proj_dim=8, max_position_embeddings=32)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**LLAMA_LIKE)),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            **LLAMA_LIKE,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=2,
        )
    ),
}
IDS = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10]])


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.manual_seed(0)
    return FAMILIES[request.param]().eval()


def without(model, kept):
    """The same model with other blocks taken out of its list."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == 5:
                setattr(module, name, nn.ModuleList(child[layer] for layer in kept))
                model.config.num_hidden_layers = len(kept)
                return model
    raise AssertionError("no blocks")


@pytest.mark.parametrize("shards", [False, True])
@torch.no_grad()
def test_a_smaller_model_is_the_larger_one_without_the_others(model, tmp_path, shards):
    size = sum(p.nbytes for p in model.parameters())
    limit = {"max_shard_size": size // 3} if shards else {}
    model.save_pretrained(tmp_path / "whole", **limit)
    (tmp_path / "part").mkdir()
    assert keep_layers(tmp_path / "whole", tmp_path / "part", [0, 2, 3], "any") == [0, 2, 3]
    small = load_model(tmp_path / "part").eval()
    assert small.config.num_hidden_layers == 3
    if types := getattr(model.config, "layer_types", None):
        assert small.config.layer_types == [types[layer] for layer in (0, 2, 3)]
        if model.config.model_type == "qwen2":
            assert len(set(small.config.layer_types)) == 2
    check_projection(small, "any")
    check_decoding(small, "any", longest=24)
    many = len(list((tmp_path / "part").glob("*.safetensors"))) > 1
    assert many == shards
    if (
        "layer_types" not in model.config.to_dict()
    ):  # else the shortened one looks up the wrong types
        expected = without(model, [0, 2, 3])(IDS, use_cache=False).logits
        torch.testing.assert_close(small(IDS).logits, expected)
    else:
        names = {0: 0, 2: 1, 3: 2}
        ours = small.state_dict()
        for key, value in model.state_dict().items():
            number = next((int(part) for part in key.split(".") if part.isdigit()), None)
            if number is None or number in names:
                new = key if number is None else key.replace(f".{number}.", f".{names[number]}.")
                assert torch.equal(ours.pop(new), value)
        assert not ours


def test_a_count_is_spread_from_the_first_layer_to_the_last():
    assert choose(1, 12, "m") == [0]
    assert choose(2, 12, "m") == [0, 11]
    assert choose(6, 12, "m") == [0, 2, 4, 7, 9, 11]
    assert choose(12, 12, "m") == list(range(12))
    for layers in range(1, 40):
        for count in range(1, layers + 1):
            kept = choose(count, layers, "m")
            assert len(set(kept)) == count and kept == sorted(kept) and kept[-1] < layers


def test_more_layers_than_there_are_are_refused():
    with pytest.raises(InputError, match=r"'m': keep_layers is 13, but the source has 12 layers"):
        choose(13, 12, "m")
    with pytest.raises(InputError, match=r"names the layer 12, but .* the last is 11"):
        choose([0, 12], 12, "m")


def test_tensors_of_other_names_are_refused(tmp_path):
    tiny_gpt2(0).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "vision.h.0.weight": torch.ones(1)}, file, metadata={"format": "pt"})
    (tmp_path / "part").mkdir()
    with pytest.raises(InputError, match=r"one stack of 2 blocks.*transformer\.h\., vision\.h\."):
        keep_layers(tmp_path, tmp_path / "part", 1, "m")


def test_tensors_without_the_name_of_the_whole_model(tmp_path):
    """As in the hub's own GPT-2, whose files hold `h.0.attn...`, with buffers that nobody reads."""
    model = tiny_gpt2(0, layers=3)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {key.removeprefix("transformer."): v for key, v in load_file(file).items()}
    weights |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 4, 4) for layer in range(3)}
    save_file(weights, file, metadata={"format": "pt"})
    (tmp_path / "part").mkdir()
    assert keep_layers(tmp_path, tmp_path / "part", 2, "m") == [0, 2]
    small = load_model(tmp_path / "part").eval()
    torch.testing.assert_close(small(IDS).logits, without_of_three(model)(IDS).logits)
    settings = json.loads((tmp_path / "part/config.json").read_text())
    assert settings["n_layer"] == 2 and "num_hidden_layers" not in settings


def without_of_three(model):
    blocks = model.transformer.h
    model.transformer.h = nn.ModuleList([blocks[0], blocks[2]])
    model.transformer.h[1].attn.layer_idx = 1
    model.config.n_layer = 2
    return model.eval()


# what families say of each layer, by whatever name: (settings, layers of six that stay)
SIX = {**LLAMA_LIKE, "num_hidden_layers": 6, "pad_token_id": 0, "head_dim": 8}
EXPERTS = {
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mlp_only_layers": [0, 1],
}
VISION = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 6},
    **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
}
SETTINGS = {
    "smollm3": {"no_rope_layers": [1, 1, 0, 0, 1, 0]},
    "qwen3": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    "olmo3": {"sliding_window": 4},
    "exaone4": {"sliding_window": 4, "sliding_window_pattern": 3},
    "gemma3_text": {"sliding_window": 4, "eos_token_id": [0, 1, 2, 3, 4, 5]},
    "gemma4_unified_text": {"sliding_window": 4, "hidden_size_per_layer_input": 0},
    "qwen3_moe": EXPERTS,
    # the settings of the text, and its layers beside as many of the images
    "gemma3": {"text_config": {**SIX, "sliding_window": 4}, "vision_config": VISION},
}


def of_six(kind, **settings):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**({} if kind == "gemma3" else SIX), **settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6.0)
    return model


def handing_on(model, kept):
    """Every layer but these gives its input as its result."""
    (layers,) = (
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == 6 and "vision" not in name
    )
    for number, layer in enumerate(layers):
        if number not in kept:
            layer.register_forward_hook(
                lambda _, args, kwargs, output: args[0] if args else kwargs["hidden_states"],
                with_kwargs=True,
            )
    return model


@pytest.mark.parametrize("kind", SETTINGS)
@torch.no_grad()
def test_what_a_family_says_of_each_layer_goes_with_the_layer(tmp_path, kind):
    kept = [0, 1, 4] if kind == "qwen3_moe" else [0, 2, 5]
    model = of_six(kind, **SETTINGS[kind])
    model.save_pretrained(tmp_path)
    (tmp_path / "part").mkdir()
    assert keep_layers(tmp_path, tmp_path / "part", kept, "m") == kept
    small = load_model(tmp_path / "part").eval()
    expected = handing_on(model, kept)(IDS, use_cache=False).logits
    torch.testing.assert_close(small(IDS, use_cache=False).logits, expected)
    text, whole = small.config.get_text_config(), model.config.get_text_config()
    assert text.num_hidden_layers == 3 and text.eos_token_id == whole.eos_token_id
    check_decoding(small, "m", longest=24)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        # computes with a layer's number
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("diffllama", {}),
        # names layers by their numbers, and counts them
        ("qwen3_moe", EXPERTS),
        ("qwen2_moe", {**EXPERTS, "mlp_only_layers": [], "decoder_sparse_step": 2}),
        ("ernie4_5_moe", {"moe_layer_start_index": 2, "moe_num_experts": 4, "moe_k": 2}),
    ],
)
def test_layers_that_would_compute_something_else_are_refused(tmp_path, kind, settings):
    model = of_six(kind, **settings)
    model.save_pretrained(tmp_path)
    (tmp_path / "part").mkdir()
    said = (
        rf"'m' \({kind}\): keep_layers does not work on it: .* choose other layers, or use a family"
    )
    with pytest.raises(InputError, match=said):
        keep_layers(tmp_path, tmp_path / "part", [1, 2, 5], "m")
    assert not list((tmp_path / "part").iterdir())
