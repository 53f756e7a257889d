"""The model in training, its copies beside it, and what they take of the memory."""

import pytest
import torch
from models_for_tests import tiny_gpt2
from transformers import LlamaConfig, LlamaForCausalLM

from takd.methods.base import Method
from takd.methods.minillm import MiniLLM
from takd.models.lora import add_lora
from takd.training.student import _unfilled, parameter_groups

# whose weights the authors' `get_optimizer_params` leaves out of weight decay, by parts of their names
SPARED = ("bias", "ln_f.weight", "ln_1.weight", "ln_2.weight", "ln_cross_attn")


def llama():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 13}
    config = LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True)
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("lora", [False, True])
def test_the_copy_that_samples_takes_no_memory_of_a_second_model(lora):
    """As many parameters, tied ones tied, in half precision; rotary frequencies stay as they are."""
    model = llama()
    if lora:
        settings = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": None}
        add_lora(model, settings, name="any", seed=1, frozen_dtype=torch.float32)
    meta = _unfilled(model, torch.bfloat16, torch.device("cpu"))
    names = dict(meta.named_parameters())
    assert list(names) == list(dict(model.named_parameters()))
    assert {parameter.dtype for parameter in names.values()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in names.values())
    assert meta.lm_head.weight is meta.model.embed_tokens.weight
    for (name, buffer), (_, own) in zip(meta.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(buffer, own) and buffer.dtype == own.dtype, name
    with torch.no_grad():
        for mine, own in zip(meta.parameters(), model.parameters(), strict=True):
            mine.copy_(own)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        expected = model.eval()(ids).logits
        torch.testing.assert_close(meta.eval()(ids).logits.float(), expected, atol=0.05, rtol=0.05)


def test_weight_decay_is_that_of_the_authors():
    model = tiny_gpt2(0)
    decaying, spared = parameter_groups(model, 0.01, Method.decays_all)
    assert (decaying["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    found = {id(parameter) for parameter in spared["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in found) == any(part in name for part in SPARED), name
    assert len(decaying["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_minillm_decays_all_parameters_as_the_authors_do():
    (everything,) = parameter_groups(tiny_gpt2(0), 1e-6, MiniLLM.decays_all)
    assert everything["weight_decay"] == 1e-6
    assert len(everything["params"]) == len(list(tiny_gpt2(0).parameters()))


def test_norms_of_other_families_do_not_decay_and_adapters_do():
    model = llama()
    _, spared = parameter_groups(model, 0.1, False)
    norms = [p for name, p in model.named_parameters() if "norm" in name]
    assert {id(p) for p in spared["params"]} == {id(p) for p in norms} and len(norms) == 5
    add_lora(model, {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": None}, name="any", seed=1)
    (adapters,) = parameter_groups(model, 0.1, False)
    assert all(parameter.requires_grad for parameter in adapters["params"])


def test_making_the_copy_reads_no_parameter():
    """A model whose parameters have no values at all is as good."""
    model = tiny_gpt2(0).to("meta")
    copied = _unfilled(model, torch.float16, torch.device("meta"))
    assert all(parameter.is_meta for parameter in copied.parameters())
