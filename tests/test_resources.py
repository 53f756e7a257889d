"""What only costs or saves time and memory: gradient checkpointing, torch.compile."""

import shutil

import pytest
import torch
from models_for_tests import tiny_gpt2
from test_adapters import LORA, ROWS, model  # noqa: F401 - a fixture

from takd.decoding.model_checks import check_decoding
from takd.methods.base import Example
from takd.methods.token_losses import label_loss
from takd.models import causal_lm
from takd.models.causal_lm import checkpoint_activations, compile_training, hidden_states
from takd.models.lora import add_lora
from takd.runtime.errors import InputError


def loss_and_gradients(model, rows):  # noqa: F811
    model.train().zero_grad()
    torch.manual_seed(2)  # of dropout
    loss = label_loss(11, 5)(model, rows)[0]
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("lora", [None, LORA])
def test_gradient_checkpointing_changes_no_loss_and_no_gradient(model, lora):  # noqa: F811
    """Nor does a frozen embedding, whose output has no gradient, keep one from the adapters."""
    if lora:
        add_lora(model, lora, name="any", seed=1)
    before = loss_and_gradients(model, ROWS)
    checkpoint_activations(model, "any")
    after = loss_and_gradients(model, ROWS)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert any(gradient.abs().max() > 0 for gradient in after[1:])
    check_decoding(model.eval(), "any", longest=24)  # with a cache, as before


def test_gradient_checkpointing_keeps_fewer_activations():
    model = tiny_gpt2(0, layers=6, width=32, positions=64)  # noqa: F811
    ids = torch.ones(4, 64, dtype=torch.long)

    def kept():
        sizes = {}

        def pack(tensor):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden_states(model.train(), ids).sum()
        return sum(sizes.values())

    plain = kept()
    checkpoint_activations(model, "any")
    assert kept() < plain / 3


def test_a_family_without_gradient_checkpointing_is_refused():
    model = tiny_gpt2(0)  # noqa: F811
    model.supports_gradient_checkpointing = False
    with pytest.raises(InputError, match=r"model 'odd' \(gpt2\) has no gradient checkpointing"):
        checkpoint_activations(model, "odd")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_passes_equal_plain_ones():
    """Dropout's masks included; decoding does not go through the compiled body."""
    model = tiny_gpt2(0, layers=1, scale=1.0)  # noqa: F811
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.2
    batches = [ROWS, [*ROWS, Example(2, 2, [1, 2, 3, 4, 5, 6], [7, 8, 9, 10])]]
    plain = [loss_and_gradients(model, rows) for rows in batches]
    names = list(model.state_dict())
    compile_training(model, torch.device("cpu"))
    compiled = [loss_and_gradients(model, rows) for rows in batches]
    for ours, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert list(model.state_dict()) == names
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert counted > 0
    check_decoding(model.eval(), "any", longest=24)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == counted


def test_compiling_where_nothing_can_be_compiled_is_refused(monkeypatch):
    def broken(function, **how):
        def call(*arguments):
            raise RuntimeError("no g++ here\nat some length")

        return call

    monkeypatch.setattr(causal_lm.torch, "compile", broken)
    with pytest.raises(InputError, match=r"compile needs a C\+\+ compiler .*: no g\+\+ here\)\.$"):
        compile_training(tiny_gpt2(0), torch.device("cpu"))
