"""LoRA: what trains, what is written, and what is refused."""

import pytest
import torch
from families import gemma3
from models_for_tests import tiny_gpt2
from test_models import FAMILIES
from transformers import AutoModelForCausalLM, Gemma3Config
from transformers.pytorch_utils import Conv1D

from takd.methods.base import Example
from takd.methods.token_losses import label_loss
from takd.models.causal_lm import freeze_other_parts
from takd.models.lora import add_lora, plain_weights
from takd.runtime.errors import InputError

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": None}
ROWS = [Example(0, 0, [3, 4], [5, 6, 0]), Example(1, 1, [7], [8, 0])]


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.manual_seed(0)
    return FAMILIES[request.param]().eval()


def train(model, steps=5):
    """Some steps of AdamW on what needs a gradient."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(steps):
        label_loss(13, 5)(model, ROWS)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def adapters(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("lora", [False, True])
def test_what_no_text_passes_through_is_not_trained(lora):
    """The larger Gemma 3 has an image encoder, whose gradients DDP would wait for in vain."""
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"intermediate_size": 16, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=gemma3(19, 16).to_dict(), vision_config=vision)
    model = AutoModelForCausalLM.from_config(config).train()
    freeze_other_parts(model)
    if lora:
        add_lora(model, LORA, name="m", seed=1)
    label_loss(19, 2)(model, [Example(0, 0, [2, 3], [4, 5])])[0].backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained and not any("vision" in name or "projector" in name for name in trained)


def test_only_adapters_train_and_the_export_is_the_trained_model(model, tmp_path):
    before = {name: p.clone() for name, p in model.state_dict().items()}
    ids = torch.tensor([[3, 4, 5, 6]])
    untouched = model(ids).logits
    add_lora(model, LORA, name="any", seed=1)
    assert torch.equal(model(ids).logits, untouched)  # B is zero
    assert adapters(model) == {n for n, _ in model.named_parameters() if "lora_" in n}
    train(model)
    trained = model(ids).logits
    assert (trained - untouched).abs().max() > 0.05
    plain = plain_weights(model)
    assert plain.keys() == before.keys()
    changed = {name for name in plain if not torch.equal(plain[name], before[name])}
    adapted = {n.split(".lora_")[0] + ".weight" for n in adapters(model)}
    assert changed == adapted
    for name in adapted:
        layer = model.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(layer.base_layer.weight, before[name])
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 2.0
        product = product.T if isinstance(layer.base_layer, Conv1D) else product
        torch.testing.assert_close(plain[name], before[name] + product)
    model.save_pretrained(tmp_path, state_dict=plain)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    torch.testing.assert_close(loaded(ids).logits, trained, atol=1e-5, rtol=1e-5)
    assert torch.equal(
        model(ids).logits, trained
    )  # training goes on as if nothing had been written


def test_all_linear_layers_of_the_body_are_adapted_and_never_the_output_embedding(model):
    add_lora(model, LORA, name="any", seed=1)
    names = {name.split(".lora_")[0] for name in adapters(model)}
    body = model.base_model_prefix
    linear = {
        name.replace(".base_layer", "")
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear | Conv1D) and "lora_" not in name
    }
    assert names == {name for name in linear if name.startswith(f"{body}.")}
    assert len(names) >= 8
    assert not model.get_output_embeddings().weight.requires_grad
    assert not hasattr(model.get_output_embeddings(), "lora_A")


def test_targets_and_scale():
    model = tiny_gpt2(0, vocabulary=13)
    settings = {"rank": 2, "alpha": 3.0, "dropout": 0.25, "targets": ["c_attn", "mlp.c_proj"]}
    add_lora(model, settings, name="any", seed=1)
    found = {name.split(".lora_")[0].split(".", 3)[3] for name in adapters(model)}
    assert found == {"attn.c_attn", "mlp.c_proj"}
    layer = model.transformer.h[0].attn.c_attn
    assert layer.lora_A["default"].weight.shape == (2, 16)
    assert layer.scaling["default"] == 1.5 and layer.lora_dropout["default"].p == 0.25


def test_the_seed_draws_the_adapters():
    first, again, other = (plain_a(seed, tiny_gpt2(0)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def plain_a(seed, model):
    add_lora(model, LORA, name="any", seed=seed)
    return model.transformer.h[0].attn.c_attn.lora_A["default"].weight


def test_mistakes_are_refused_in_a_sentence():
    with pytest.raises(
        InputError,
        match=r"lora.targets has 'q_proj', which is no linear layer of model 'small' \(gpt2\); it has"
        r" c_attn, c_fc, c_proj\.$",
    ):
        add_lora(tiny_gpt2(0), {**LORA, "targets": ["c_fc", "q_proj"]}, name="small", seed=1)
    with pytest.raises(InputError, match=r"lora.targets has 'lm_head', which is no linear layer"):
        add_lora(tiny_gpt2(0), {**LORA, "targets": ["lm_head"]}, name="small", seed=1)
    with pytest.raises(
        InputError,
        match=r"lora.rank is 17, but the layer transformer.* of model 'small' has only 16",
    ):
        add_lora(tiny_gpt2(0), {**LORA, "rank": 17}, name="small", seed=1)


def test_frozen_weights_in_half_precision_change_nothing_under_autocast():
    """They are in it for every product anyway; norms, embeddings and adapters stay in float32."""
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_gpt2(0, vocabulary=13, scale=1.0)
        add_lora(model, LORA, name="any", seed=1, frozen_dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            loss = label_loss(13, 5)(model, ROWS)[0]
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters() if p.requires_grad)])
        assert model.transformer.h[0].attn.c_attn.base_layer.weight.dtype == dtype
        assert model.dtype == torch.float32
        kinds = {p.dtype for n, p in model.named_parameters() if "base_layer.weight" not in n}
        assert kinds == {torch.float32}
        assert {w.dtype for w in plain_weights(model).values()} == {torch.float32}
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert all(value.isfinite().all() for value in results[0])
