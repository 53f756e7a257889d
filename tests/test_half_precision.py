"""Models as a GPU computes them: float32 masters under autocast, and teachers whose weights are half precision."""

import copy

import pytest
import torch
from models_for_tests import END, tiny_gpt2
from test_models import FAMILIES, GROUPED, WINDOW
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from takd.decoding.kv_cache import RaggedCache
from takd.decoding.sampling import Decoding, Prompt, draw
from takd.losses.batch import RightPadded
from takd.methods.base import Example
from takd.methods.token_losses import label_loss
from takd.models.causal_lm import hidden_states, load_model
from takd.models.logits import freeze, project
from takd.training.student import LossModule

HALVES = [torch.bfloat16, torch.float16]
VOCABULARY = 13
GEMMA3 = {
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**{**GROUPED, **WINDOW, "head_dim": 8}))
}


@pytest.fixture(params={**FAMILIES, **GEMMA3})
def student(request):
    """Float32 weights with distributions far from uniform."""
    torch.manual_seed(0)
    model = {**FAMILIES, **GEMMA3}[request.param]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.0 if request.param == "gpt2" else 4.0)
    return model


def teacher_of(student, dtype):
    """Another model of the family, with weights of a type."""
    other = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return freeze(other.to(dtype))


def off(found, expected):
    """Relative error of a whole vector."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@torch.no_grad()
@pytest.mark.parametrize("half", HALVES)
def test_decoding_under_autocast_is_reading_under_autocast(student, half):
    """Rotary positions leave keys in float32 and values in half precision."""
    texts = [[3, 4, 5, 6, 7, 8, 9, 2], [6, 7, 8, 9, 10, 11, 12, 2]]
    with torch.autocast("cpu", half):
        at_once = hidden_states(student, torch.tensor(texts))
        cache = RaggedCache(student, 2)
        assert off(cache.read([texts[0][:3], texts[1][:4]], [0, 1]), at_once[[0, 1], [2, 3]]) < 0.02
        for step in range(4):
            hidden = cache.step(torch.tensor([texts[0][3 + step], texts[1][4 + step]]))
            assert off(hidden, at_once[[0, 1], [3 + step, 4 + step]]) < 0.02
    assert {tensor.dtype for tensor in (*cache._keys, *cache._values)} == {half}


@torch.no_grad()
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("wide", [False, True])
def test_a_frozen_model_computes_the_same_within_the_autocast_of_another(student, half, wide):
    """In float32, too: what overflows in float16 is kept in float32 for this reason."""
    own = torch.float32 if wide else half
    teacher, ids = teacher_of(student, own), torch.tensor([[3, 4, 5, 6, 7, 8]])

    def all_of_it():
        cache = RaggedCache(teacher, 1)
        read = cache.read([[3, 4, 5]], [0])
        hidden = hidden_states(teacher, ids)
        return [read, cache.step(torch.tensor([6])), hidden, project(teacher, hidden, VOCABULARY)]

    expected = all_of_it()
    with torch.autocast("cpu", half):
        found = all_of_it()
    assert [tensor.dtype for tensor in found] == [own, own, own, torch.float32]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("top_k", [0, 3])
def test_probabilities_of_drawing_are_those_of_reading(student, half, top_k):
    """The ratios of policy gradients are 1 where no weight has changed."""
    teacher = teacher_of(student, half)
    prompts = [Prompt([1 + (3 * i + j) % 12 for j in range(1 + i)], i, 1) for i in range(6)]
    with torch.autocast("cpu", half):
        drawn = draw(
            *(student, prompts, Decoding(8, teacher_top_k=top_k)),
            end_token=END,
            vocabulary=VOCABULARY,
            micro_batch=4,
            teacher=teacher,
            teacher_mix=0.0 if top_k else 0.3,
        )
        texts = [(p.tokens, r.tokens.tolist()) for p, r in zip(prompts, drawn, strict=True)]
        layout = RightPadded.of(texts, student.device)
        for model, found in (
            (student, torch.cat([response.student for response in drawn])),
            (teacher, torch.cat([response.teacher for response in drawn])),
        ):
            logits = project(model, layout.hidden(model), VOCABULARY)
            read = logits.log_softmax(-1).gather(-1, layout.targets_n[:, None])[:, 0]
            assert (read - found).abs().max() < (0.2 if half == torch.bfloat16 else 0.03)
            assert (read - found).mean().abs() < 0.03
    assert {response.teacher_hidden.dtype for response in drawn} == {half}


def test_a_model_is_read_without_dropout_and_trained_with_it(tmp_path):
    """Whether it came from weights or was drawn at random: only a training pass has dropout, in every module."""
    tiny_gpt2(0).config.save_pretrained(tmp_path / "scratch")
    tiny_gpt2(0).save_pretrained(tmp_path / "weights")
    prompt = [Prompt([1, 2], 0, 0)]
    for name in ("scratch", "weights"):
        model = load_model(tmp_path / name, dropout=0.1)
        assert not any(module.training for module in model.modules())
        module, rows = LossModule(model), [Example(0, 0, [1, 2], [3, END])]
        with pytest.raises(AssertionError, match=r"Student\.train comes first"):
            module(
                label_loss(11, 2), rows
            )  # the wrapper is in training mode, the model in it is not
        module.train()
        losses = {module(label_loss(11, 2), rows)[0].item() for _ in range(3)}
        assert len(losses) == 3
        with pytest.raises(AssertionError, match="dropout is on"):
            draw(model, prompt, Decoding(2), end_token=END, vocabulary=11, micro_batch=1)
