"""Divergences: zero for equal distributions, hand values, ruled-out tokens, chunks."""

import math

import pytest
import torch

from takd.divergences import cross_entropy, forward_kl, in_chunks, reverse_kl

P, Q = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]
INFINITE = float("inf")


def logits(*probabilities):
    return torch.tensor(probabilities).log() + 3.0  # any constant


def kl(a, b):
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_zero_for_equal_distributions_with_zero_gradient(divergence):
    student = logits(P, Q).requires_grad_()
    value = divergence(student, logits(P, Q))
    assert value.tolist() == pytest.approx([0, 0], abs=1e-6)
    value.sum().backward()
    assert student.grad.abs().max() < 1e-6


def test_hand_values():
    assert forward_kl(logits(Q), logits(P)).item() == pytest.approx(kl(P, Q), rel=1e-5)
    assert reverse_kl(logits(Q), logits(P)).item() == pytest.approx(kl(Q, P), rel=1e-5)
    loss = cross_entropy(logits(P, Q), torch.tensor([0, 2]))
    assert loss.tolist() == pytest.approx([-math.log(0.5), -math.log(0.6)])


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_tokens_that_both_rule_out_contribute_nothing(divergence):
    student = torch.tensor([[0.0, 1.0, -INFINITE]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -INFINITE]])
    value = divergence(student, teacher)
    expected = divergence(student[:, :2].detach(), teacher[:, :2])
    assert value.item() == pytest.approx(expected.item())
    value.sum().backward()
    assert torch.isfinite(student.grad).all()


def test_support_decides_which_direction_is_infinite():
    narrow, wide = torch.tensor([[0.0, 0.0, -INFINITE]]), torch.zeros(1, 3)
    assert forward_kl(wide, narrow).item() == pytest.approx(math.log(1.5))
    assert reverse_kl(wide, narrow).item() == INFINITE
    assert reverse_kl(narrow, wide).item() == pytest.approx(math.log(1.5))


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_gradients_numerically(divergence):
    torch.manual_seed(0)
    student = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: divergence(x, teacher), student)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_equal_the_whole_in_value_and_gradient(chunk):
    torch.manual_seed(0)
    head = torch.nn.Linear(4, 9)
    hidden = torch.randn(7, 4, requires_grad=True)
    teacher = torch.randn(7, 9)

    def both(h, t):
        return reverse_kl(head(h), t), forward_kl(head(h), t)

    whole = both(hidden, teacher)
    expected = torch.autograd.grad(sum(v.sum() for v in whole), [hidden, head.weight])
    parts = in_chunks(both, hidden, teacher, chunk=chunk)
    ours = torch.autograd.grad(sum(v.sum() for v in parts), [hidden, head.weight])
    for a, b in zip((*whole, *expected), (*parts, *ours), strict=True):
        torch.testing.assert_close(a, b)


def test_no_tokens_give_no_values():
    (empty,) = in_chunks(lambda h, t: (reverse_kl(h, t),), torch.zeros(0, 4), torch.zeros(0, 4))
    assert empty.shape == (0,)
