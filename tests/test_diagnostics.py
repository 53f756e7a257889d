"""Diagnostics of on-policy distillation: their values, however they are computed, and that they change nothing."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
from models_for_tests import END, tiny_gpt2
from pretended_cuda import CUDA, PretendedCard
from test_methods_on_policy import train, workspace  # noqa: F401

from takd.decoding.prompts import Prompt
from takd.models.logits import freeze
from takd.training import dev
from takd.training import diagnostics as module
from takd.training.diagnostics import NAMES, diagnostics

VOCABULARY = 11
PROMPTS = [Prompt([2 + i % 5, *[3] * (i % 4)], i, 1) for i in range(9)]
# of 1 to 9 tokens: the first are too short for four quarters
TEXTS = [[*range(1, length), END] for length in range(1, 10)]
QUARTERS = [f"reverse_kl_quarter_{quarter}" for quarter in range(1, 5)]


@pytest.fixture
def pair():
    """Student and teacher."""
    return tiny_gpt2(1, VOCABULARY), freeze(tiny_gpt2(2, VOCABULARY, width=32))


def of_process(student, process=0, processes=1, reduce=lambda sums, how: sums, autocast=None):
    @contextlib.contextmanager
    def whole():
        half = autocast or torch.bfloat16
        with torch.no_grad(), torch.autocast(student.device.type, half, enabled=bool(autocast)):
            yield student

    accelerator = SimpleNamespace(
        device=student.device, process_index=process, num_processes=processes, reduce=reduce
    )
    return SimpleNamespace(accelerator=accelerator, whole=whole)


def measured(pair, texts=TEXTS, prompts=PROMPTS, micro_batch=4, max_tokens=0, **more):
    student, teacher = pair
    responses = [SimpleNamespace(tokens=torch.tensor(text)) for text in texts]
    sizes = VOCABULARY, micro_batch, max_tokens
    return diagnostics(
        of_process(student, **more), teacher, prompts[: len(texts)], responses, *sizes
    )


def expected(pair, likeliest, texts=TEXTS, prompts=PROMPTS):
    """The same numbers token by token, in Python."""
    found = {name: [] for name in (*NAMES, *QUARTERS)}
    for prompt, text in zip(prompts, texts, strict=False):
        ids = torch.tensor([[*prompt.tokens, *text]])
        with torch.no_grad():
            q_tv, p_tv = (
                model(ids).logits[0, len(prompt.tokens) - 1 : -1].double().softmax(-1).tolist()
                for model in pair
            )
        for at, (q, p) in enumerate(zip(q_tv, p_tv, strict=True)):
            own, other = (
                sorted(range(VOCABULARY), key=lambda v, of=of: -of[v])[:likeliest] for of in (q, p)
            )
            both = set(own) & set(other)
            kl = sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
            values = {
                "overlap": len(both) / likeliest,
                "overlap_student_mass": sum(q[v] for v in both),
                "overlap_teacher_mass": sum(p[v] for v in both),
                "disagreement": float(own[0] != other[0]),
                "reverse_kl": kl,
                "student_entropy": -sum(a * math.log(a) for a in q),
                "teacher_entropy": -sum(b * math.log(b) for b in p),
                f"reverse_kl_quarter_{1 + 4 * at // len(text)}": kl,
            }
            for name, value in values.items():
                found[name].append(value)
    return {name: sum(values) / len(values) for name, values in found.items() if values}


@pytest.mark.parametrize("likeliest", [1, 4, 16])
def test_values_are_those_of_their_definitions(pair, likeliest, monkeypatch):
    monkeypatch.setattr(module, "LIKELIEST", likeliest)
    exact = expected(pair, min(likeliest, VOCABULARY))
    assert measured(pair) == pytest.approx(exact, rel=1e-4, abs=1e-5)
    if likeliest == 1:
        assert exact["overlap"] == pytest.approx(1 - exact["disagreement"])
    if likeliest == 16:  # no more than there are
        assert exact["overlap"] == 1 and 0 < exact["disagreement"] < 1


def test_a_student_that_equals_its_teacher_agrees_in_everything(pair):
    found = measured((pair[0], pair[0]))
    assert found["overlap"] == 1 and found["disagreement"] == 0
    assert found["student_entropy"] == found["teacher_entropy"] > 0
    assert all(abs(found[name]) < 1e-6 for name in ("reverse_kl", *QUARTERS))


def test_quarters_without_tokens_have_no_value(pair):
    """A response of one token, and one after an empty prompt, whose first token nothing predicts."""
    assert [name for name in measured(pair, [[END]]) if name in QUARTERS] == QUARTERS[:1]
    empty = [Prompt([], 0, 1)]
    found = measured(pair, [[3, 4, END]], empty)
    assert [name for name in found if name in QUARTERS] == [QUARTERS[0], QUARTERS[2]]
    ids = torch.tensor([[3, 4, END]])
    with torch.no_grad():
        q, p = (model(ids).logits[0, :2].softmax(-1) for model in pair)
    assert found["reverse_kl"] == pytest.approx(((q / p).log() * q).sum(-1).mean().item(), rel=1e-4)


def test_neither_batches_nor_chunks_matter(pair, monkeypatch):
    whole = measured(pair)
    assert measured(pair, micro_batch=1) == pytest.approx(whole, rel=1e-5, abs=2e-6)
    assert measured(pair, max_tokens=10) == pytest.approx(whole, rel=1e-5, abs=2e-6)
    sizes = []
    project = module.project
    monkeypatch.setattr(module, "chunk_size", lambda vocabulary, device: 3)
    monkeypatch.setattr(
        module,
        "project",
        lambda model, at, count: sizes.append(len(at)) or project(model, at, count),
    )
    assert measured(pair) == pytest.approx(whole, rel=1e-5, abs=2e-6)
    assert max(sizes) == 3


@pytest.mark.parametrize("processes", [2, 12])
def test_processes_share_the_work(pair, processes):
    """Some of the twelve have nothing to read."""
    sums = []

    def collect(found, how):
        sums.append(found)
        return found

    for process in range(processes):
        measured(pair, process=process, processes=processes, reduce=collect)
    together = measured(pair, reduce=lambda found, how: sum(sums))
    assert together == pytest.approx(measured(pair), rel=1e-5, abs=2e-6)


def test_the_first_responses_stand_for_a_large_dev_set(pair, monkeypatch):
    monkeypatch.setattr(module, "DIAGNOSED", 4)
    assert measured(pair) == measured(pair, TEXTS[:4])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_teacher_in_half_precision_beside_a_student_under_autocast(pair, half):
    plain = measured(pair)
    teacher = freeze(tiny_gpt2(2, VOCABULARY, width=32).to(half))
    found = measured((pair[0], teacher), autocast=half)
    assert all(map(math.isfinite, found.values()))
    for name in (
        "student_entropy",
        "teacher_entropy",
        "overlap_teacher_mass",
        "overlap_student_mass",
    ):
        assert found[name] == pytest.approx(plain[name], abs=0.05)


def test_on_a_card_the_values_are_those_of_the_cpu(pair):
    expected_ = measured(pair)
    with PretendedCard():
        for model in pair:
            model.to(CUDA)
        assert measured(pair) == pytest.approx(expected_, rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gkd", "minillm"])
def test_a_training_is_the_same_without_them(method, workspace, monkeypatch):  # noqa: F811
    """With LoRA and dropout, which draws random numbers; dev alone has more fields."""
    settings = {"lora": {"rank": 2, "alpha": 8.0, "dropout": 0.1, "targets": None}}
    settings |= {"lm_weight": 0.0} if method == "minillm" else {}
    weights, lines = train(workspace, f"with-{method}", method, **settings)
    monkeypatch.setattr(dev, "diagnostics", lambda *inputs: {})
    others, without = train(workspace, f"without-{method}", method, **settings)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    for one, other in zip(lines, without, strict=True):
        more = one.keys() - other.keys()
        assert {name: one[name] for name in other} == other
        assert (one["kind"] == "dev") == ({*NAMES, QUARTERS[0]} <= more)
        assert more <= {*NAMES, *QUARTERS}


def test_a_training_without_a_teacher_has_none(workspace):  # noqa: F811
    _, lines = train(workspace, "none-seqkd", "seqkd")
    dev = [line for line in lines if line["kind"] == "dev"]
    assert len(dev) == 5 and all(line["length_ratio"] > 0 for line in dev)
    assert not any({*NAMES, *QUARTERS} & line.keys() for line in dev)
