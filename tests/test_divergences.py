"""Divergences: equal distributions, limits, ruled-out tokens, gradients, coarsening; values are in test_oracle.py."""

import math
from functools import partial

import pytest
import torch

from takd.losses.divergences import (
    alpha_beta,
    alpha_mixture,
    coarsen,
    expectation,
    forward_kl,
    jensen_shannon,
    log_tail,
    mixture,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    total_variation,
)

TEACHER, STUDENT = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]
INFINITE = float("inf")


def from_mixture(student_nv, teacher_nv, alpha):
    """AMiD's divergence of the teacher."""
    return forward_kl(alpha_mixture(teacher_nv, student_nv, 0.1, alpha), teacher_nv)


ALL = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "jensen_shannon(0.1)": partial(jensen_shannon, beta=0.1),
    "jensen_shannon(0)": partial(jensen_shannon, beta=0),
    "jensen_shannon(1)": partial(jensen_shannon, beta=1),
    "total_variation": total_variation,
    "skewed_forward_kl": partial(skewed_forward_kl, skew=0.1),
    "skewed_reverse_kl": partial(skewed_reverse_kl, skew=0.1),
    "skewed_forward_kl(0)": partial(skewed_forward_kl, skew=0),
    "skewed_reverse_kl(0)": partial(skewed_reverse_kl, skew=0),
    "alpha_beta": partial(alpha_beta, alpha=0.2, beta=0.7),
    "alpha_beta(1, 0)": partial(alpha_beta, alpha=1, beta=0),
    "alpha_beta(0, 1)": partial(alpha_beta, alpha=0, beta=1),
    "alpha_beta(0.5, 0)": partial(alpha_beta, alpha=0.5, beta=0),
    "alpha_beta(0, 0.5)": partial(alpha_beta, alpha=0, beta=0.5),
    **{
        f"alpha_mixture({alpha})": partial(from_mixture, alpha=alpha)
        for alpha in (-1.0, 0.0, 1.0, 3.0)
    },
}
# those that no -inf makes infinite
BOUNDED = [
    "jensen_shannon",
    "jensen_shannon(0.1)",
    "total_variation",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "alpha_beta",
]
every = pytest.mark.parametrize("name", ALL)


def logs(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def value(divergence, student=STUDENT, teacher=TEACHER):
    return divergence(logs(student), logs(teacher)).item()


def kl(a, b):
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


def mixed(a, b, share):
    return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]


def random_logs(seed, rows=4, choices=7):
    torch.manual_seed(seed)
    return (2 * torch.randn(rows, choices, dtype=torch.float64)).log_softmax(-1)


@every
def test_zero_for_equal_distributions_with_zero_gradient(name):
    logits = torch.tensor([TEACHER, STUDENT]).log().add(3.0).requires_grad_()
    found = ALL[name](logits.log_softmax(-1), logs(TEACHER, STUDENT).float())
    assert found.tolist() == pytest.approx([0, 0], abs=1e-6)
    found.sum().backward()
    assert logits.grad.abs().max() < 1e-6


@every
def test_positive_for_different_distributions(name):
    found = ALL[name](random_logs(1, 100), random_logs(2, 100))
    assert found.shape == (100,)
    assert (found > 1e-3).all()


@every
def test_gradients_numerically(name):
    logits, teacher = random_logs(1, 3, 5).requires_grad_(), random_logs(2, 3, 5)
    divergence = ALL[name]
    assert torch.autograd.gradcheck(lambda x: divergence(x.log_softmax(-1), teacher), logits)


@every
def test_no_tokens_give_no_values(name):
    assert ALL[name](torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_jensen_shannon_is_symmetric_at_one_half_and_turns_around_elsewhere():
    student, teacher = random_logs(1), random_logs(2)
    assert jensen_shannon(student, teacher).tolist() == pytest.approx(
        jensen_shannon(teacher, student).tolist()
    )
    there, back = jensen_shannon(student, teacher, 0.1), jensen_shannon(teacher, student, 0.9)
    assert there.tolist() == pytest.approx(back.tolist())
    assert there.tolist() != pytest.approx(jensen_shannon(teacher, student, 0.1).tolist(), rel=0.01)


def test_jensen_shannon_goes_to_the_two_kl():
    """Divided by what makes it vanish; β = 0 and β = 1 are these limits."""
    student, teacher, near = random_logs(1), random_logs(2), 1e-6
    forward, reverse = forward_kl(student, teacher), reverse_kl(student, teacher)
    at_0 = jensen_shannon(student, teacher, near) / near
    at_1 = jensen_shannon(student, teacher, 1 - near) / near
    assert at_0.tolist() == pytest.approx(forward.tolist(), rel=1e-3)
    assert at_1.tolist() == pytest.approx(reverse.tolist(), rel=1e-3)
    assert torch.equal(jensen_shannon(student, teacher, 0), forward)
    assert torch.equal(jensen_shannon(student, teacher, 1), reverse)


def test_skewed_kl_goes_to_kl_and_never_above_its_bound():
    student, teacher = random_logs(1), random_logs(2)
    for skewed, plain in ((skewed_forward_kl, forward_kl), (skewed_reverse_kl, reverse_kl)):
        expected = plain(student, teacher)
        assert skewed(student, teacher, 1e-7).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
        assert torch.equal(skewed(student, teacher, 0), expected)
        # disjoint distributions reach the bound
        assert value(partial(skewed, skew=0.1), [1, 0], [0, 1]) == pytest.approx(-math.log(0.1))


def test_alpha_beta_holds_known_divergences():
    pairs = list(zip(TEACHER, STUDENT, strict=True))
    hellinger = sum((math.sqrt(p) - math.sqrt(q)) ** 2 for p, q in pairs) / 2
    squares = sum((p - q) ** 2 for p, q in pairs) / 2
    assert value(partial(alpha_beta, alpha=0.5, beta=0.5)) == pytest.approx(4 * hellinger)
    assert value(partial(alpha_beta, alpha=1, beta=1)) == pytest.approx(squares)
    assert value(partial(alpha_beta, alpha=1, beta=0)) == pytest.approx(kl(TEACHER, STUDENT))
    assert value(partial(alpha_beta, alpha=0, beta=1)) == pytest.approx(kl(STUDENT, TEACHER))


@pytest.mark.parametrize(
    "edge", [(1.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.0, 0.5), (1.5, 0.0), (0.0, 2.0)]
)
def test_alpha_beta_is_continuous_at_its_edges(edge):
    """The division by αβ has a limit where one of them is 0: nearby values go there."""
    student, teacher = random_logs(1), random_logs(2)
    near = [max(number, 1e-7) for number in edge]
    at, beside = alpha_beta(student, teacher, *edge), alpha_beta(student, teacher, *near)
    assert beside.tolist() == pytest.approx(at.tolist(), rel=1e-5)


def test_alpha_beta_turns_around():
    student, teacher = random_logs(1), random_logs(2)
    there, back = alpha_beta(student, teacher, 0.2, 0.7), alpha_beta(teacher, student, 0.7, 0.2)
    assert there.tolist() == pytest.approx(back.tolist())
    for same in (0.5, 1.0):
        there = alpha_beta(student, teacher, same, same)
        assert there.tolist() == pytest.approx(alpha_beta(teacher, student, same, same).tolist())


@every
def test_tokens_that_both_rule_out_contribute_nothing(name):
    logits = torch.tensor([[0.0, 1.0, -INFINITE]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -INFINITE]]).log_softmax(-1)
    found = ALL[name](logits.log_softmax(-1), teacher)
    without = logits.detach()[:, :2].requires_grad_()
    expected = ALL[name](without.log_softmax(-1), teacher[:, :2])
    assert found.item() == pytest.approx(expected.item())
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(logits.grad[:, :2], without.grad)
    assert logits.grad[0, 2] == 0


@pytest.mark.parametrize("name", [*BOUNDED, "forward_kl", "skewed_forward_kl(0)"])
def test_finite_where_the_teacher_rules_a_token_out(name):
    logits = torch.tensor([[0.3, 0.0, -0.2]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -INFINITE]]).log_softmax(-1)
    found = ALL[name](logits.log_softmax(-1), teacher)
    found.sum().backward()
    assert 0 < found.item() < INFINITE
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 2] > 0  # less of it would be better


@pytest.mark.parametrize("name", [*BOUNDED, "reverse_kl", "alpha_beta(0, 0.5)"])
def test_finite_where_the_student_rules_a_token_out(name):
    logits = torch.tensor([[1.0, 0.0, -INFINITE]], requires_grad=True)
    teacher = torch.tensor([[0.3, 0.0, -0.2]]).log_softmax(-1)
    found = ALL[name](logits.log_softmax(-1), teacher)
    found.sum().backward()
    assert 0 < found.item() < INFINITE
    assert torch.isfinite(logits.grad).all()


def test_support_decides_which_direction_is_infinite():
    narrow, wide = [0.5, 0.5, 0.0], [1 / 3] * 3
    assert value(forward_kl, wide, narrow) == pytest.approx(math.log(1.5))
    assert value(reverse_kl, wide, narrow) == INFINITE
    assert value(reverse_kl, narrow, wide) == pytest.approx(math.log(1.5))
    assert value(forward_kl, narrow, wide) == INFINITE


def test_expectation_takes_nothing_times_infinity_as_nothing():
    weights = torch.tensor([[0.0, 0.0, 0.25]], requires_grad=True)
    found = expectation(weights, torch.tensor([[INFINITE, math.nan, 4.0]]))
    assert found.tolist() == [1.0]
    found.backward()
    assert weights.grad.tolist() == [[0, 0, 4]]


def test_mixture_is_that_of_the_probabilities():
    found = mixture(logs(TEACHER), logs(STUDENT), 0.3)
    assert found.exp().tolist() == [pytest.approx(mixed(TEACHER, STUDENT, 0.3))]


KEPT = torch.tensor([[4, 0], [1, 2], [0, 6], [3, 5]])


def test_coarsened_distributions_keep_some_tokens_and_the_rest_as_one():
    log_nv = random_logs(1)
    coarse = coarsen(log_nv, KEPT)
    assert coarse.shape == (4, 3)
    for row, kept, found in zip(log_nv.exp(), KEPT.tolist(), coarse.exp(), strict=True):
        named = [row[token].item() for token in kept]
        assert found.tolist() == pytest.approx([*named, 1 - sum(named)])


@pytest.mark.parametrize(
    "name",
    [
        "forward_kl",
        "reverse_kl",
        "jensen_shannon",
        "jensen_shannon(0.1)",
        "total_variation",
        "skewed_forward_kl",
        "skewed_reverse_kl",
    ],
)
def test_coarsening_only_loses(name):
    """At most the whole divergence, and equal where the tail is empty."""
    student, teacher = random_logs(1), random_logs(2)
    whole = ALL[name](student, teacher)
    coarse = ALL[name](coarsen(student, KEPT), coarsen(teacher, KEPT))
    assert (coarse <= whole).all() and (coarse < 0.9 * whole).any() and (coarse > 0).all()
    everything = torch.arange(7).expand(4, 7)
    same = ALL[name](coarsen(student, everything), coarsen(teacher, everything))
    assert same.tolist() == pytest.approx(whole.tolist())


def test_coarsened_gradients_are_finite_where_nothing_is_left():
    """Rounding may leave less than nothing for the tail."""
    logits = torch.tensor([[8.0, 9.0, -100.0]], requires_grad=True)
    kept = torch.tensor([[0, 1]])
    teacher = torch.tensor([[9.0, 8.0, -100.0]]).log_softmax(-1)
    found = forward_kl(coarsen(logits.log_softmax(-1), kept), coarsen(teacher, kept))
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(logits.grad).all()
    assert found.item() == pytest.approx(math.tanh(0.5), rel=1e-5)  # KL of σ(1) to σ(-1)
    assert torch.isfinite(log_tail(torch.tensor([[math.log(0.7), math.log(0.4)]]))).all()


def test_alpha_mixtures_are_continuous_and_hold_that_of_distillm():
    teacher, student = logs(TEACHER), logs(STUDENT)
    at_1 = alpha_mixture(teacher, student, 0.3, 1)
    for near in (1.0 - 1e-6, 1.0 + 1e-6):
        beside = alpha_mixture(teacher, student, 0.3, near)
        torch.testing.assert_close(beside, at_1, rtol=1e-5, atol=0)
    mixed = forward_kl(alpha_mixture(teacher, student, 0.3, -1), teacher)
    torch.testing.assert_close(mixed, skewed_forward_kl(student, teacher, 0.3))
