"""Losses with the product with the vocabulary inside: equal to the plain formula, in chunks of any size."""

import copy

import pytest
import torch
from models_for_tests import tiny_gpt2

from takd.losses import amounts, chunked
from takd.losses.chunked import chunk_size, sum_over_tokens
from takd.losses.divergences import reverse_kl
from takd.models.logits import project

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
    gradients = torch.autograd.grad(loss.sum(), [hidden, *model.lm_head.parameters()])
    return loss.sum(), {name: value.sum() for name, value in statistics.items()}, gradients


def with_bias(model):
    """The same model with a bias of its output embedding, as phi and gpt-j have one."""
    model.lm_head.bias = torch.nn.Parameter(torch.randn(VOCABULARY + 5))


@pytest.mark.parametrize("head", ["plain", "biased"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_any_chunk_equals_the_plain_formula(case, chunk, head):
    model, hidden, columns = case
    if head == "biased":
        with_bias(model)
    expected, statistics, gradients = plain(model, hidden, columns)
    total, sums = sum_over_tokens(by_token, model, hidden, columns, VOCABULARY, chunk=chunk)
    torch.testing.assert_close(total, expected)
    assert set(sums) == set(statistics)
    for name, value in sums.items():
        torch.testing.assert_close(value, statistics[name].detach())
    # a loss is scaled before its backward pass: shares of a mean, loss scaling
    ours = torch.autograd.grad(total * 0.25, [hidden, *model.lm_head.parameters()])
    for mine, theirs in zip(ours, gradients, strict=True):
        torch.testing.assert_close(mine, theirs * 0.25)
    for mine in ours[1:]:
        assert mine[VOCABULARY:].abs().max() == 0


def test_the_head_is_passed_once_whatever_the_number_of_chunks(case):
    """ZeRO-3 gathers its weight for each pass: processes with other numbers of chunks would wait for each other."""
    model, hidden, columns = case
    passes = []
    model.lm_head.register_forward_pre_hook(lambda *_: passes.append("forward"))
    model.lm_head.register_full_backward_pre_hook(lambda *_: passes.append("backward"))
    none = {name: column[:0] for name, column in columns.items()}
    for rows, kept, chunk in ((hidden, columns, 1), (hidden, columns, 100), (hidden[:0], none, 3)):
        total, _ = sum_over_tokens(by_token, model, rows, kept, VOCABULARY, chunk=chunk)
        total.backward()
        assert passes == ["forward", "backward"]
        passes.clear()
    # and what is borrowed for it is given back
    torch.testing.assert_close(model.lm_head(hidden), hidden @ model.lm_head.weight.T)


def test_a_chunk_is_projected_once_and_is_all_that_there_is(case, monkeypatch):
    model, hidden, columns = case
    seen = []

    def spy(logits_mv, pieces):
        seen.append((tuple(logits_mv.shape), len(pieces["target"])))
        return by_token(logits_mv, pieces)

    total, _ = sum_over_tokens(spy, model, hidden, columns, VOCABULARY, chunk=3)
    total.backward()
    assert seen == [((3, VOCABULARY), 3), ((3, VOCABULARY), 3), ((1, VOCABULARY), 1)]


def test_without_gradients_there_is_the_value_alone(case, monkeypatch):
    model, hidden, columns = case
    expected, *_ = plain(model, hidden, columns)

    def differentiated(*_):
        raise AssertionError("a loss without gradients costs three times as much where it has them")

    monkeypatch.setattr(torch.autograd, "grad", differentiated)
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


HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("autocast", [True, False])
def test_logits_are_not_rounded_to_half_precision(case, dtype, autocast):
    """Around -65, where GPT-2's are, neighbours in bfloat16 are 0.5 apart."""
    model, hidden, _ = case
    with torch.no_grad():
        model.lm_head.weight[:, 0] = 1.0
        hidden[:, 0] = -65.0
    rounded = copy.deepcopy(model).to(dtype)
    exact = hidden.to(dtype).double() @ rounded.lm_head.weight[:VOCABULARY].double().T
    seen = []

    def spy(logits_mv, pieces):
        seen.append(logits_mv.detach().clone())
        return logits_mv[:, 0], {}

    with torch.autocast("cpu", dtype, enabled=autocast), torch.no_grad():
        half = model if autocast else rounded
        told = project(half, hidden, VOCABULARY)
        sum_over_tokens(spy, half, hidden, {}, VOCABULARY, chunk=4)
    for logits in (told, torch.cat(seen)):
        assert logits.dtype == torch.float32
        error = (logits.double().log_softmax(-1) - exact.log_softmax(-1)).abs().max()
        assert error < 1e-4


@pytest.mark.parametrize("size", [1e-7, 1.0, 1e5])
def test_gradients_of_any_size_pass_through_float16(case, size, monkeypatch):
    """No loss scale has been applied yet when a chunk is differentiated, so that none can keep them in range.

    Weights of 1e5 are those of a response whose importance is a product over many tokens.
    """
    monkeypatch.setattr(chunked, "HEAD_ROWS", 4)
    model, hidden, columns = case
    _, _, gradients = plain(model, hidden, columns)

    def sized(logits_mv, pieces):
        loss_m, statistics = by_token(logits_mv, pieces)
        return loss_m * size, statistics

    with torch.autocast("cpu", torch.float16):
        total, _ = sum_over_tokens(sized, model, hidden, columns, VOCABULARY, chunk=3)
    ours = torch.autograd.grad(total / size, [hidden, model.lm_head.weight])
    for mine, theirs in zip(ours, gradients, strict=True):
        assert (mine - theirs).norm() < 5e-3 * theirs.norm()


def test_a_gradient_that_is_not_finite_stays_so(case):
    """The loop skips the step, or the loss scale falls: it has to be seen."""
    model, hidden, columns = case

    def broken(logits_mv, pieces):
        return logits_mv[:, 0] * torch.inf, {}

    with torch.autocast("cpu", torch.float16):
        total, _ = sum_over_tokens(broken, model, hidden, columns, VOCABULARY)
    total.backward()
    assert not hidden.grad.isfinite().all() and not model.lm_head.weight.grad.isfinite().all()


def test_a_cpu_computes_a_chunks_losses_block_by_block(case, monkeypatch):
    """Blocks change no bit, and what is prepared for a chunk is computed once."""
    model, hidden, columns = case
    chunks, blocks, found = [], [], []

    def prepared(piece):
        chunks.append(len(piece["target"]))
        return {**piece, "teacher": piece["teacher"] + 0.5}

    def spy(logits_mv, piece):
        blocks.append(len(logits_mv))
        assert torch.equal(
            piece["teacher"].logsumexp(-1).round(decimals=3), torch.full((len(logits_mv),), 0.5)
        )
        return by_token(logits_mv, piece)

    monkeypatch.setattr(amounts, "LEAST_BLOCK", 2)
    for size in (1, 2**20):
        monkeypatch.setattr(amounts, "BLOCK_BYTES", size)
        how = {"chunk": 5, "prepared": prepared}
        total, sums = sum_over_tokens(spy, model, hidden, columns, VOCABULARY, **how)
        gradients = torch.autograd.grad(total, [hidden, model.lm_head.weight])
        found.append([total, *sums.values(), *gradients])
    assert blocks == [2, 2, 1, 2, 5, 2]
    assert chunks == [5, 2, 5, 2]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_blocks_fit_into_a_cpus_cache():
    assert 700 * 4 * amounts.block_tokens(700, "cpu") <= amounts.BLOCK_BYTES
    assert amounts.block_tokens(50257, "cpu") == amounts.LEAST_BLOCK
    assert amounts.block_tokens(50257, "cuda") == 0  # all of a chunk


@pytest.mark.parametrize("chunk", [500, 2000])
def test_a_sum_beyond_half_precision_is_scaled_before_it_is_rounded(case, chunk):
    """Float16 weights (DeepSpeed on a V100): the head's gradient of one token is 40, that of the batch 80,000."""
    model, *_ = case
    model.lm_head.weight.data = model.lm_head.weight.data.half()
    hidden = torch.full((2000, WIDTH), 40.0, dtype=torch.float16, requires_grad=True)

    def first(logits_mv, columns):
        return logits_mv[:, 0], {}

    total, _ = sum_over_tokens(first, model, hidden, {}, VOCABULARY, chunk=chunk)
    (gradient,) = torch.autograd.grad(total / 2000, [model.lm_head.weight])
    assert gradient.dtype == torch.float16
    assert gradient[0].tolist() == [40.0] * WIDTH


def test_no_tokens_sum_to_nothing(case):
    model, _, columns = case
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    none = {name: column[:0] for name, column in columns.items()}
    total, _ = sum_over_tokens(by_token, model, hidden, none, VOCABULARY)
    total.backward()
    assert total.item() == 0


def test_chunks_are_bounded_in_bytes():
    cpu = torch.device("cpu")
    assert chunk_size(50257, cpu) * 50257 * 4 <= amounts.CHUNK_BYTES["cpu"]
    assert chunk_size(10**9, cpu) == 16
