"""From logits to tokens by torch.compile: what the operations one by one find, and going on without where it fails.

torch.compile writes C++ here in place of the Triton kernels of a GPU, from the same function.
"""

import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from models_for_tests import tiny_gpt2
from scipy import stats
from test_decoder import assert_same, drawn, with_graphs
from torch._inductor import metrics

from takd.decoding import amounts, compiled, gumbel, next_tokens, replay
from takd.decoding.compiled import Compiled, Kind, from_logits
from takd.decoding.gumbel import negative_noise, negative_noise_, noise_words
from takd.decoding.memory import KeptDecoder
from takd.decoding.mixing import shares

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"
)
VOCABULARY = 2500  # three chunks, the last not full


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Compiles from the first step, on the CPU too, in a process that has not failed yet."""
    monkeypatch.setattr(Compiled, "works", True)
    monkeypatch.setattr(Compiled, "drawn", 0.0)
    monkeypatch.setattr(compiled, "WORTH_COMPILING", 0.0)
    monkeypatch.setattr(next_tokens, "served", lambda device: True)
    monkeypatch.setitem(amounts.AHEAD, "cpu", 8)
    monkeypatch.setattr(replay, "ATTEMPTS", 0)


@pytest.fixture
def pair():
    return tiny_gpt2(1, VOCABULARY, width=8, scale=3), tiny_gpt2(2, VOCABULARY, width=16, scale=3)


@pytest.fixture
def uncompiled(monkeypatch):
    """The same function without a compiler, which takes no time."""
    monkeypatch.setattr(compiled, "_compiled", from_logits)


@pytest.fixture
def used(monkeypatch):
    """Numbers of rows of each call of the compiled function."""
    calls, plain = [], Compiled.__call__

    def counted(self, *tensors):
        calls.append(tensors[0].shape[1])
        return plain(self, *tensors)

    monkeypatch.setattr(Compiled, "__call__", counted)
    return calls


def drawn_plainly(monkeypatch, *args, **kwargs):
    with monkeypatch.context() as patch:
        patch.setattr(next_tokens, "served", lambda device: False)
        return drawn(*args, **kwargs)


# The same tokens and scores -----------------------------------------------------------------------


USES = [
    {"mix": 0.3},
    {"mix": 0.3, "temperature": 0.7},
    {"mix": 0.0},
    {"mix": 0.3, "sample": False},
]


@pytest.mark.parametrize("use", USES)
def test_texts_and_scores_are_those_of_operations_one_by_one(
    pair, use, uncompiled, used, monkeypatch
):
    expected = drawn_plainly(monkeypatch, pair, 40, vocabulary=VOCABULARY, **use)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Decoding goes on")
        found = drawn(pair, 40, vocabulary=VOCABULARY, **use)
    assert_same(found, expected, bits=False)
    assert len(used) > 20


@pytest.mark.slow
@needs_compiler
def test_compiled_draws_find_the_same_with_few_compilations(pair, used, monkeypatch):
    """Rows that become fewer down to one, and graphs of eight steps."""
    expected = drawn_plainly(monkeypatch, pair, 40, 8, vocabulary=VOCABULARY)
    captures = []

    def capture(function):
        captures.append(function())
        return function

    with_graphs(monkeypatch, capture)
    monkeypatch.setattr("takd.decoding.kv_cache.columns_seen", lambda last, device: 64)
    torch._dynamo.utils.counters.clear()
    kept = KeptDecoder()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Decoding goes on")
        for _ in range(2):
            found = drawn(pair, 40, 8, vocabulary=VOCABULARY, kept=kept)
            assert_same(found, expected, bits=False)
    assert len(used) > 50
    assert len(set(used)) > 2
    assert len(captures) > 1
    # one row, and any number of rows
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.slow
@needs_compiler
def test_compiled_noise_is_that_of_the_operations():
    """Products that overflow, shifts of negative numbers: the same integers; in vectors and in what is left over."""
    words_2n = noise_words(*(torch.arange(7)[:, None] * 2**29 + i for i in range(3)))[..., 0]
    ids_v, expected_nv = torch.arange(5001, dtype=torch.int32), torch.empty(7, 5001)

    def both(ids_v, words_2n1):
        words_v = gumbel._mix_(ids_v + 1)
        return gumbel._bits(words_v, words_2n1), negative_noise(ids_v, words_2n1)

    bits_nv, noise_nv = torch.compile(both, fullgraph=True)(ids_v, words_2n[..., None])
    assert torch.equal(bits_nv, both(ids_v, words_2n[..., None])[0])
    assert (words_2n < 0).any()
    assert len(bits_nv.unique()) > 0.99 * bits_nv.numel()
    negative_noise_(expected_nv, words_2n)
    torch.testing.assert_close(noise_nv, expected_nv, atol=2e-6, rtol=1e-6)


def one_step(kind, logits_kbv, words_2b, mix=0.3, function=from_logits):
    shares_k11 = shares(mix, torch.device("cpu")).to(logits_kbv)
    return function(kind)(logits_kbv, shares_k11, words_2b)


@pytest.mark.slow
@needs_compiler
def test_compiled_draws_have_the_distribution_of_the_mixture():
    """20,000 draws of one row, of tokens in all chunks, one of which the teacher alone allows."""
    rows, allowed = 20_000, [0, 1, 1023, 1024, 1500, VOCABULARY - 1]
    logits_kv = torch.full((2, VOCABULARY), -torch.inf)
    logits_kv[:, allowed] = torch.tensor([[0.0, 1, 2, 0.5, 1.5, -torch.inf], [2, 0, 1, 1, 0, 0.5]])
    expected_v = 0.7 * logits_kv[0].softmax(-1) + 0.3 * logits_kv[1].softmax(-1)
    seeds = torch.full((rows, 1), 3), torch.arange(rows)[:, None], torch.zeros(1, 1).long()
    words_2b = noise_words(*seeds)[..., 0]
    counts_v, kind = torch.zeros(VOCABULARY), Kind(VOCABULARY, 2, 1.0, True, True)
    for part_2b in words_2b.split(500, 1):
        logits_kbv = logits_kv[:, None].expand(-1, 500, -1).contiguous()
        tokens_b, scores_3b = one_step(kind, logits_kbv, part_2b, function=compiled._compiled)
        counts_v += tokens_b.bincount(minlength=VOCABULARY)
        torch.testing.assert_close(scores_3b[2].exp(), expected_v[tokens_b])
    assert counts_v.sum() == counts_v[allowed].sum() == rows
    assert stats.chisquare(counts_v[allowed], rows * expected_v[allowed]).pvalue > 1e-4


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("kind", "most"),
    [(Kind(5000, 2, 1.0, True, True), 8.2), (Kind(5000, 1, 0.7, True, False), 3.2)],
    ids=["mixed", "alone"],
)
def test_a_compiled_step_reads_logits_and_writes_next_to_nothing(kind, most):
    """By the compiler's own count, which takes the look-up of scores for one more pass over all logits.

    In C++ it stores the sum of log-probabilities and noise for the argmax, 2 passes that its Triton
    kernels do without (benchmarks/step_bytes.py).
    """
    logits_kbv = torch.randn(kind.models, 8, kind.vocabulary)
    words_2b = torch.arange(16, dtype=torch.int32).view(2, 8)
    torch._logging.set_logs(inductor_metrics=True)
    metrics.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        one_step(kind, logits_kbv, words_2b, function=lambda kind: torch.compile(from_logits(kind)))
    torch._logging.set_logs()
    assert 0.9 <= metrics.num_bytes_accessed / logits_kbv[0].nbytes <= most


# Going on without ---------------------------------------------------------------------------------


def wrong_tokens(kind):
    right = from_logits(kind)
    return lambda logits_kbv, shares_k11, words_2b: right(logits_kbv, shares_k11, words_2b ^ 1)


def wrong_scores(kind):
    right = from_logits(kind)

    def function(*tensors):
        tokens_b, scores_3b = right(*tensors)
        scores_3b[2, 0] += 0.01
        return tokens_b, scores_3b

    return function


def outside(kind):
    right = from_logits(kind)

    def function(*tensors):
        tokens_b, scores_3b = right(*tensors)
        return tokens_b + VOCABULARY, scores_3b

    return function


def fails(kind):
    def function(*tensors):
        raise torch._inductor.exc.GPUTooOldForTriton(
            SimpleNamespace(name="Tesla P100", major=6, minor=0), lambda: None
        )

    return function


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (wrong_tokens, r"[1-5] of 5 compiled tokens differ"),
        (wrong_scores, r"compiled log-probabilities of 5 rows differ by 0.01"),
        (outside, r"5 of 5 compiled tokens differ"),
        (fails, r"Tesla P100 which is too old"),
    ],
)
def test_decoding_goes_on_one_by_one_where_it_has_to(pair, function, reason, used, monkeypatch):
    expected = drawn_plainly(monkeypatch, pair, vocabulary=VOCABULARY)
    monkeypatch.setattr(compiled, "_compiled", function)
    with pytest.warns(UserWarning, match="goes on without torch.compile.*" + reason) as warned:
        for _ in range(2):
            assert_same(drawn(pair, vocabulary=VOCABULARY), expected)
    assert len(warned) == 1
    assert len(used) == 1


def test_two_tokens_within_rounding_are_as_good():
    """Rows of logits whose two best are equal, or next to each other; the compiled function takes the other."""
    noisy_bv = torch.tensor([[0.0, 3, 3], [1, 2, 2 + 1e-6]])
    of, tokens_b, scores_4b = (
        Compiled(Kind(3, 1, 1.0, True, True)),
        torch.tensor([1, 2]),
        torch.zeros(4, 2),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Decoding goes on")
        of.compare(lambda: tokens_b.copy_(torch.tensor([2, 1])), noisy_bv, tokens_b, scores_4b)
    assert of.ready(2)
    with pytest.warns(UserWarning, match="1 of 2 compiled tokens differ"):
        of.compare(lambda: tokens_b.copy_(torch.tensor([0, 1])), noisy_bv, tokens_b, scores_4b)
    assert not of.ready(2)


def test_short_runs_and_repeatable_ones_do_not_compile(pair, uncompiled, used, monkeypatch):
    monkeypatch.setattr(compiled, "WORTH_COMPILING", 5.0 * VOCABULARY * 60)
    drawn(pair, 5, vocabulary=VOCABULARY)
    assert not used
    with monkeypatch.context() as patch:
        patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        for _ in range(4):
            drawn(pair, 5, vocabulary=VOCABULARY)
        assert not used
    drawn(pair, 5, vocabulary=VOCABULARY)
    assert used


def test_what_needs_other_operations_is_not_compiled(pair, used):
    for settings in ({"top_p": 0.9}, {"no_repeat_ngram": 2}, {"teacher_top_k": 3, "mix": 0.0}):
        drawn(pair, 5, vocabulary=VOCABULARY, **settings)
    assert not used


def test_a_model_in_double_precision_is_scored_in_it(uncompiled, used, monkeypatch):
    pair = [tiny_gpt2(seed, VOCABULARY, width=8, scale=3).double() for seed in (1, 2)]
    single = [tiny_gpt2(seed, VOCABULARY, width=8, scale=3) for seed in (1, 2)]
    expected = drawn_plainly(monkeypatch, single, vocabulary=VOCABULARY)
    for found in (
        drawn_plainly(monkeypatch, pair, vocabulary=VOCABULARY),
        drawn(pair, vocabulary=VOCABULARY),
    ):
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.tokens, other.tokens)
            for name in ("student", "teacher", "mixed"):
                torch.testing.assert_close(getattr(one, name), getattr(other, name))
    assert used
