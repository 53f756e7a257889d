"""Every family in the whole engine: sampling beside a teacher, losses, vocabularies padded to different sizes."""

import copy
import random

import pytest
import torch
from models_for_tests import END, token_log_probabilities, tokenizer_of
from test_models import FAMILIES
from transformers import AutoModelForCausalLM

from takd.decoding.sampling import Decoding, Prompt, draw
from takd.losses.divergences import forward_kl
from takd.losses.teacher_logits import LiveTeacher
from takd.methods.base import Example
from takd.methods.token_losses import label_and_divergence_loss
from takd.models.causal_lm import check_vocabulary

TOKENS = 13  # of the tokenizer; student and teacher have more rows than that, and not as many as each other
PADDED = {"student": 16, "teacher": 24}
LARGER = {"num_hidden_layers": 3, "hidden_size": 24}


def wider(family, vocabulary, **sizes):
    """A model of a family with a vocabulary padded to so many entries, its distributions far from uniform."""
    small = FAMILIES[family]().config
    config = copy.deepcopy(small)
    config.update({"vocab_size": vocabulary})
    for key, value in sizes.items():
        setattr(config, key, value)
    if "layer_types" in config.to_dict() and sizes:
        config.layer_types = [*config.layer_types, config.layer_types[-1]]
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model


@pytest.fixture(params=FAMILIES)
def pair(request):
    """Student and teacher of one family, different in size and in padding."""
    torch.manual_seed(1)
    sizes = {} if request.param == "opt-projected" else LARGER
    student = wider(request.param, PADDED["student"])
    teacher = wider(request.param, PADDED["teacher"], **sizes)
    for name, model in (("student", student), ("teacher", teacher)):
        assert model.get_output_embeddings().weight.shape[0] == PADDED[name]
        assert check_vocabulary(model, tokenizer_of(TOKENS), name) == TOKENS
    return student, teacher


def cut(model):
    """The same model without what its embeddings are padded with."""
    plain = copy.deepcopy(model)
    plain.resize_token_embeddings(TOKENS)
    return plain.eval()


def prompts(count):
    words = random.Random(3)
    return [
        Prompt([words.randrange(1, TOKENS) for _ in range(words.randrange(1, 9))], key, 7)
        for key in range(count)
    ]


def sample(pair, rows, micro_batch=16):
    student, teacher = pair
    return draw(
        student,
        rows,
        Decoding(10),
        end_token=END,
        vocabulary=TOKENS,
        micro_batch=micro_batch,
        teacher=teacher,
        teacher_mix=0.3,
    )


def test_text_and_its_probabilities_are_those_of_each_prompt_alone(pair):
    rows = prompts(24)
    drawn = sample(pair, rows)
    texts = [response.tokens.tolist() for response in drawn]
    assert len({tuple(text) for text in texts}) > 12
    order = random.Random(1).sample(range(24), 24)
    shuffled = sample(pair, [rows[at] for at in order], micro_batch=5)
    assert [response.tokens.tolist() for response in shuffled] == [texts[at] for at in order]
    plain = [cut(model) for model in pair]
    for prompt, response, text in zip(rows, drawn, texts, strict=True):
        for model, ours in zip(plain, (response.student, response.teacher), strict=True):
            with torch.no_grad():
                expected = token_log_probabilities(model, list(prompt.tokens), text)
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_padding_of_either_vocabulary_changes_no_text(pair):
    rows = prompts(12)
    padded = [response.tokens.tolist() for response in sample(pair, rows)]
    assert padded == [r.tokens.tolist() for r in sample([cut(model) for model in pair], rows)]


def test_padding_of_either_vocabulary_changes_no_loss_and_no_gradient(pair):
    rows = [Example(0, 0, [3, 4], [5, 6, END]), Example(1, 1, [7], [8, 12, 1, END])]

    def loss(student, teacher):
        view = LiveTeacher(teacher, TOKENS)
        value, _ = label_and_divergence_loss(view, forward_kl, 0.5, TOKENS, 7)(student, rows)
        value.backward()
        return value, {name: p.grad for name, p in student.named_parameters()}

    value, gradients = loss(*pair)
    plain_value, plain_gradients = loss(*(cut(model) for model in pair))
    torch.testing.assert_close(value, plain_value)
    assert gradients.keys() == plain_gradients.keys()
    cut_ones = 0
    for name, expected in plain_gradients.items():
        if expected is None:
            assert gradients[name] is None
            continue
        if len(gradients[name]) == PADDED["student"] != len(expected):
            assert not gradients[name][TOKENS:].any()
            cut_ones += 1
        torch.testing.assert_close(gradients[name][: len(expected)], expected, atol=1e-5, rtol=1e-4)
    assert cut_ones
