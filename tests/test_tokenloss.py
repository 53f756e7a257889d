"""Losses with the product with the vocabulary inside: equal to the plain formula, in chunks of any size."""

import pytest
import torch
from models_for_tests import tiny_gpt2

from takd import tokenloss
from takd.divergences import reverse_kl
from takd.tokenloss import chunk_size, sum_over_tokens

VOCABULARY, TOKENS, WIDTH = 11, 7, 16


def by_token(logits_mv, columns):
    """A loss with all that losses here have: labels, a divergence, weights, and statistics."""
    log_q = logits_mv.log_softmax(-1)
    label = -log_q.gather(-1, columns["target"][:, None])[:, 0]
    divergence = reverse_kl(log_q, columns["teacher"])
    loss = columns["weight"] * label.exp().clamp(max=50) + divergence
    return loss, {"label": label, "divergence": divergence}


@pytest.fixture
def case():
    torch.manual_seed(0)
    model = tiny_gpt2(
        1, VOCABULARY + 5, width=WIDTH
    )  # padded: the last 5 entries belong to no token
    columns = {
        "target": torch.randint(VOCABULARY, (TOKENS,)),
        "teacher": torch.randn(TOKENS, VOCABULARY).log_softmax(-1),
        "weight": torch.rand(TOKENS),
    }
    return model, torch.randn(TOKENS, WIDTH, requires_grad=True), columns


def plain(model, hidden, columns):
    loss, statistics = by_token(model.lm_head(hidden)[:, :VOCABULARY], columns)
    gradients = torch.autograd.grad(loss.sum(), [hidden, model.lm_head.weight])
    return loss.sum(), {name: value.sum() for name, value in statistics.items()}, gradients


@pytest.mark.parametrize("way", ["fused", "recomputed"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_any_chunk_equals_the_plain_formula(case, chunk, way):
    model, hidden, columns = case
    expected, statistics, gradients = plain(model, hidden, columns)
    if way == "recomputed":
        model.lm_head.weight.ds_id = 0  # as DeepSpeed marks the parts of ZeRO-3
    total, sums = sum_over_tokens(by_token, model, hidden, columns, VOCABULARY, chunk=chunk)
    torch.testing.assert_close(total, expected)
    assert set(sums) == set(statistics)
    for name, value in sums.items():
        torch.testing.assert_close(value, statistics[name].detach())
    # a loss is scaled before its backward pass: shares of a mean, loss scaling
    ours = torch.autograd.grad(total * 0.25, [hidden, model.lm_head.weight])
    for mine, theirs in zip(ours, gradients, strict=True):
        torch.testing.assert_close(mine, theirs * 0.25)
    assert ours[1][VOCABULARY:].abs().max() == 0


def test_a_chunk_is_projected_once_and_is_all_that_there_is(case, monkeypatch):
    model, hidden, columns = case
    seen = []

    def spy(logits_mv, pieces):
        seen.append((tuple(logits_mv.shape), len(pieces["target"])))
        return by_token(logits_mv, pieces)

    total, _ = sum_over_tokens(spy, model, hidden, columns, VOCABULARY, chunk=3)
    total.backward()
    assert seen == [((3, VOCABULARY), 3), ((3, VOCABULARY), 3), ((1, VOCABULARY), 1)]


def test_without_gradients_there_is_the_value_alone(case):
    model, hidden, columns = case
    expected, *_ = plain(model, hidden, columns)
    with torch.no_grad():
        total, _ = sum_over_tokens(by_token, model, hidden, columns, VOCABULARY)
    torch.testing.assert_close(total, expected.detach())
    assert not total.requires_grad


def test_a_frozen_head_gets_no_gradient(case):
    model, hidden, columns = case
    _, _, gradients = plain(model, hidden, columns)
    model.lm_head.weight.requires_grad_(False)
    total, _ = sum_over_tokens(by_token, model, hidden, columns, VOCABULARY)
    total.backward()
    torch.testing.assert_close(hidden.grad, gradients[0])
    assert model.lm_head.weight.grad is None


def test_half_precision_keeps_the_softmax_in_float32(case):
    model, hidden, columns = case
    expected, _, gradients = plain(model, hidden, columns)
    seen = []

    def spy(logits_mv, pieces):
        seen.append(logits_mv.dtype)
        return by_token(logits_mv, pieces)

    with torch.autocast("cpu", torch.bfloat16):
        total, _ = sum_over_tokens(spy, model, hidden, columns, VOCABULARY, chunk=3)
    ours = torch.autograd.grad(total, [hidden, model.lm_head.weight])
    assert set(seen) == {torch.float32}
    assert total.item() == pytest.approx(expected.item(), rel=0.05)
    for mine, theirs in zip(ours, gradients, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.05 * theirs.norm()


def test_a_sum_beyond_half_precision_is_scaled_before_it_is_rounded(case):
    """Float16 weights (DeepSpeed on a V100): the head's gradient of one token is 40, that of the batch 80,000."""
    model, *_ = case
    model.lm_head.weight.data = model.lm_head.weight.data.half()
    hidden = torch.full((2000, WIDTH), 40.0, dtype=torch.float16, requires_grad=True)

    def first(logits_mv, columns):
        return logits_mv[:, 0], {}

    total, _ = sum_over_tokens(first, model, hidden, {}, VOCABULARY, chunk=500)
    (gradient,) = torch.autograd.grad(total / 2000, [model.lm_head.weight])
    assert gradient.dtype == torch.float16
    assert gradient[0].tolist() == [40.0] * WIDTH


@pytest.mark.parametrize("way", ["fused", "recomputed"])
def test_no_tokens_sum_to_nothing(case, way):
    model, _, columns = case
    if way == "recomputed":
        model.lm_head.weight.ds_id = 0
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    none = {name: column[:0] for name, column in columns.items()}
    total, _ = sum_over_tokens(by_token, model, hidden, none, VOCABULARY)
    total.backward()
    assert total.item() == 0


def test_chunks_are_bounded_in_bytes():
    cpu = torch.device("cpu")
    assert chunk_size(50257, cpu) * 50257 * 4 <= tokenloss.CHUNK_BYTES["cpu"]
    assert chunk_size(10**9, cpu) == 16
