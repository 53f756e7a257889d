"""What models say of texts, against Markov chains whose every number is known."""

import itertools
import math

import numpy as np
import pytest
import torch
from models_for_tests import END, tiny_gpt2, token_log_probabilities
from transformers import GPT2Config, GPT2LMHeadModel

from takd.decoding.sampling import Decoding, Prompt, draw
from takd.evaluation import log_likelihoods
from takd.evaluation.log_likelihoods import Text
from takd.metrics import calibration, exposure_bias

# probabilities of the next token after each token, in multiples of 1/8; token 0 ends the text
TEACHER = np.array([[8, 0, 0, 0], [2, 2, 2, 2], [4, 2, 2, 0], [2, 0, 4, 2]]) / 8
MODEL = np.array([[8, 0, 0, 0], [2, 4, 1, 1], [2, 2, 2, 2], [1, 2, 4, 1]]) / 8
START = 1


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL of each row."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0.0).sum(-1)


def expected_errors(
    contexts: np.ndarray, length: int, p: np.ndarray = TEACHER, q: np.ndarray = MODEL
) -> np.ndarray:
    """Σ_{t ≤ l} E KL(p ‖ q) at the contexts of a chain, l = 1 ... length, by its powers."""
    errors = kl(p, q)
    here, total, found = np.eye(len(p))[START], 0.0, []
    for _ in range(length):
        total += here @ errors
        found.append(total)
        here = here @ contexts
    return np.array(found)


def all_texts(chain: np.ndarray, length: int) -> list[list[int]]:
    """Texts of at most so many tokens, each as often as the chain writes it, in multiples of 8 ** -length."""
    found = []
    for text in itertools.product(range(4), repeat=length):
        ends = text.index(END) + 1 if END in text else length
        if any(token != END for token in text[ends:]):
            continue
        steps = zip((START, *text[: ends - 1]), text[:ends], strict=True)
        share = math.prod(chain[a, b] for a, b in steps)
        found += [list(text[:ends])] * round(share * 8**length)
    assert len(found) == 8**length
    return found


def errors_of(text: list[int]) -> list[float]:
    contexts = [START, *text[:-1]]
    return kl(TEACHER, MODEL)[contexts].tolist()


def test_exposure_bias_of_two_markov_chains():
    """Over all texts, each as often as it is written, the sums are those of the chains' powers."""
    length = 3
    regret = exposure_bias.accumulated([errors_of(t) for t in all_texts(MODEL, length)], length)
    oracle = exposure_bias.accumulated([errors_of(t) for t in all_texts(TEACHER, length)], length)
    assert regret == pytest.approx(expected_errors(MODEL, length), abs=1e-12)
    assert oracle == pytest.approx(expected_errors(TEACHER, length), abs=1e-12)
    excess = exposure_bias.excess_accumulated_error(regret, oracle)
    assert excess[0] == 0, "after the prompt both contexts are the same"
    assert excess[-1] == pytest.approx(100 * (regret[-1] / oracle[-1] - 1))


def test_the_oracles_error_is_the_divergence_of_whole_texts():
    """l ε(l) is KL(p ‖ q) of the first l tokens (chain rule)."""
    length = 3
    total = 0.0
    for text in {tuple(text) for text in all_texts(TEACHER, length)}:
        steps = list(zip((START, *text[:-1]), text, strict=True))
        p, q = (math.prod(chain[a, b] for a, b in steps) for chain in (TEACHER, MODEL))
        total += p * math.log(p / q)
    assert expected_errors(TEACHER, length)[-1] == pytest.approx(total)


def test_a_model_that_errs_alike_everywhere_has_no_exposure_bias():
    texts = [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    same = exposure_bias.accumulated(texts, 3)
    assert exposure_bias.excess_accumulated_error(same, same).tolist() == [0, 0, 0]
    none = np.zeros(3)
    assert np.isnan(exposure_bias.excess_accumulated_error(none, none)).all()


def test_who_stops_early_saves_no_errors_while_running():
    """The same error at every step: ending sooner makes the sum smaller, but not the error of those that run."""
    early, late = [[0.5], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]]
    sums = [exposure_bias.accumulated(side, 3).tolist() for side in (early, late)]
    assert sums == [[0.5, 0.75, 0.75], [0.5, 1, 1]]
    running = [exposure_bias.accumulated_while_running(side, 3) for side in (early, late)]
    for found in running:
        assert found[:2].tolist() == [0.5, 1] and np.isnan(found[2])


def test_a_model_that_leaves_its_teachers_contexts_errs_more():
    """It goes to token 2 five times as often as the teacher, and errs most there."""
    p = np.array([[1, 0, 0], [0, 0.9, 0.1], [0, 0.9, 0.1]])
    q = np.array([[1, 0, 0], [0, 0.5, 0.5], [0, 0.1, 0.9]])
    regret, oracle = (expected_errors(chain, 6, p, q) for chain in (q, p))
    excess = exposure_bias.excess_accumulated_error(regret, oracle)
    assert excess[0] == 0 and (np.diff(excess) > 0).all()
    # and the other way round: below 0 in truth, where the teacher goes to what the model cannot do, and the model not
    p[1], q[1] = q[1].copy(), p[1].copy()
    regret, oracle = (expected_errors(chain, 6, p, q) for chain in (q, p))
    assert exposure_bias.excess_accumulated_error(regret, oracle)[1] < 0


def markov_gpt2(chain: np.ndarray, least: float = 1e-9) -> GPT2LMHeadModel:
    """A GPT-2 whose layer does nothing and whose next token depends on the last one only, by given probabilities."""
    size = len(chain)
    config = GPT2Config(
        vocab_size=size, n_layer=1, n_embd=2 * size, n_head=1, n_positions=32, tie_word_embeddings=False,
        embd_pdrop=0.0, bos_token_id=END, eos_token_id=END,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        body = model.transformer
        for silent in (body.wpe, body.h[0].attn.c_proj, body.h[0].mlp.c_proj):
            silent.weight.zero_()
        body.wte.weight.copy_(torch.eye(size, 2 * size))
        body.ln_f.weight.fill_(1), body.ln_f.bias.zero_()
        hidden = body.ln_f(body.wte.weight).double()
        logits = torch.tensor(np.log(np.maximum(chain, least)))
        # not lstsq, whose solution on a CPU is now and then another one (torch 2.13)
        model.lm_head.weight.copy_((torch.linalg.pinv(hidden) @ logits).T)
    return model


def test_divergences_and_likelihoods_of_markov_chains():
    model, teacher = markov_gpt2(MODEL), markov_gpt2(TEACHER)
    responses = [[1, 2, 0], [2, 1], [1, 1, 1, 1, 2, 0], [0]]
    texts = [Text(row, 7, [2, 2, START][row % 3 :], r) for row, r in enumerate(responses)]
    found = log_likelihoods.comparison(model, teacher, texts, vocabulary=4, steps=True)
    sums = log_likelihoods.comparison(model, teacher, texts, vocabulary=4, steps=False)
    alone = log_likelihoods.likelihoods(model, texts, vocabulary=4)
    forward, reverse = kl(TEACHER, MODEL), kl(MODEL, np.maximum(TEACHER, 1e-9))
    for text, record, total, own in zip(texts, found, sums, alone, strict=True):
        contexts = [text.prompt[-1], *text.response[:-1]]
        assert (record["row"], record["index"]) == text.key
        assert record["tokens"] == len(text.response)
        assert record["forward_kl"] == pytest.approx(forward[contexts].tolist(), abs=2e-5)
        assert total["forward_kl"] == pytest.approx(sum(record["forward_kl"]), rel=1e-6)
        assert record["reverse_kl"] == pytest.approx(reverse[contexts].sum(), rel=1e-4)
        for name, chain in (("nll", MODEL), ("teacher_nll", TEACHER)):
            expected = -np.log(np.maximum(chain, 1e-9)[contexts, text.response]).sum()
            assert record[name] == pytest.approx(expected, rel=1e-4)
        assert own["nll"] == pytest.approx(record["nll"], rel=1e-6)


def test_exposure_bias_of_sampled_markov_chains():
    """All the way: texts that models drew, what they say of them, and the sums, against the chains' powers."""
    model, teacher = markov_gpt2(MODEL), markov_gpt2(TEACHER)
    count, length = 3000, 5
    curves = []
    for writer, chain in ((model, MODEL), (teacher, TEACHER)):
        prompts = [Prompt([START], key, 3) for key in range(count)]
        drawn = draw(
            writer, prompts, Decoding(length), end_token=END, vocabulary=4, micro_batch=500
        )
        texts = [Text(i, 3, [START], r.tokens.tolist()) for i, r in enumerate(drawn)]
        records = log_likelihoods.comparison(model, teacher, texts, vocabulary=4, steps=True)
        errors = [record["forward_kl"] for record in records]
        curve = exposure_bias.accumulated(errors, length)
        noise = np.std([sum(e) for e in errors]) / math.sqrt(count)
        assert np.abs(curve - expected_errors(chain, length)).max() < 4 * noise + 1e-5
        curves.append(curve)
    excess = exposure_bias.excess_accumulated_error(*curves)
    assert abs(excess[0]) < 1e-3
    truth = exposure_bias.excess_accumulated_error(
        *(expected_errors(c, length) for c in (MODEL, TEACHER))
    )
    assert excess == pytest.approx(truth, abs=4)


def test_a_batch_changes_nothing():
    model, teacher = tiny_gpt2(1, scale=2), tiny_gpt2(2, scale=2)
    texts = [Text(i, 0, [1 + i % 5] * (1 + i % 4), [2, 3, 4, END][i % 3 :]) for i in range(7)]
    together = log_likelihoods.comparison(model, teacher, texts, vocabulary=11, steps=False)
    for text, record in zip(texts, together, strict=True):
        (one,) = log_likelihoods.comparison(model, teacher, [text], vocabulary=11, steps=False)
        assert one == pytest.approx(record, rel=1e-4)
        nll = -token_log_probabilities(model, list(text.prompt), list(text.response)).sum().item()
        assert one["nll"] == pytest.approx(nll, rel=1e-4)


def test_a_model_is_no_distance_from_itself():
    model = tiny_gpt2(1)
    (found,) = log_likelihoods.comparison(
        model, model, [Text(0, 0, [1, 2], [3, 4, END])], vocabulary=11, steps=True
    )
    assert found["forward_kl"] == [0, 0, 0] and found["reverse_kl"] == 0


def test_calibration_error_by_hand():
    # bin (3/15, 4/15]: two of 0.25, one right; bin (14/15, 1]: three of 1.0, two right
    confidence = np.array([0.25, 0.25, 1.0, 1.0, 1.0])
    counts = calibration.count(confidence, np.array([1, 0, 1, 1, 0]))
    assert counts[0, 3] == 2 and counts[0, 14] == 3 and counts[0].sum() == 5
    expected = 2 / 5 * abs(1 / 2 - 0.25) + 3 / 5 * abs(2 / 3 - 1)
    assert calibration.expected_calibration_error(counts) == pytest.approx(expected)
    assert (calibration.unpacked(calibration.packed(counts)) == counts).all()


def test_an_edge_belongs_to_the_bin_below():
    edges = np.arange(1, 16) / 15
    assert calibration.count(edges, np.ones(15))[0].tolist() == [1] * 15


def test_a_calibrated_model_has_no_calibration_error():
    """A Markov chain that predicts its own texts: sure of ½, right in half of the cases."""
    chain = np.array([[0.5, 0.25, 0.125, 0.125]] * 4)
    texts = [Text(i, 0, [1], [token]) for i, token in enumerate([0, 0, 0, 0, 1, 1, 2, 3])]
    records = log_likelihoods.likelihoods(markov_gpt2(chain), texts, vocabulary=4)
    counts = sum(calibration.unpacked(record["bins"]) for record in records)
    assert counts[0].sum() == 8 and counts[1].sum() == 4
    assert calibration.expected_calibration_error(counts) == pytest.approx(0, abs=1e-5)
    # the same model on other texts is sure of ½ and never right
    wrong = log_likelihoods.likelihoods(markov_gpt2(chain), [Text(0, 0, [1], [3])], vocabulary=4)
    counts = calibration.unpacked(wrong[0]["bins"])
    assert calibration.expected_calibration_error(counts) == pytest.approx(0.5, abs=1e-5)
