"""What docs/methods.md and docs/measures.md say of the authors' code, against its formulas written down anew."""

import numpy as np
import pytest
import torch
from models_for_tests import (
    MINILLM_REFERENCE,
    all_responses,
    context,
    teacher_hidden,
    tiny_gpt2,
    token_log_probabilities,
)

from takd.decoding.sampling import Decoding, Prompt, draw
from takd.losses.divergences import alpha_beta, forward_kl, skewed_forward_kl
from takd.methods.minillm import MiniLLM, Rollout
from takd.metrics import exposure_bias

VOCABULARY, SLOTS, PROMPT = 4, 3, [1, 2]
RESPONSES = [all_responses(VOCABULARY, SLOTS)[place] for place in (0, 1, 3, 5, 9, 14, 22, 31)]


@pytest.fixture(scope="module")
def models():
    """Student that drew, student that learns, teacher; in float64."""
    return tuple(tiny_gpt2(s, VOCABULARY, width=8, layers=1).double() for s in (1, 2, 3))


@pytest.fixture
def float64(monkeypatch):
    """Logits are made float32 in production; here all digits are compared."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self.double())


def drawn(student, teacher, responses):
    rows = []
    for response in responses:
        with torch.no_grad():
            q = token_log_probabilities(student, PROMPT, response)
            p = token_log_probabilities(teacher, PROMPT, response)
            hidden = teacher_hidden(teacher, PROMPT, response)
        mixed = torch.log(0.2 * p.exp() + 0.8 * q.exp())
        rows.append(Rollout(0, 0, PROMPT, response, q, p, mixed, hidden))
    return rows


def padded(values):
    return torch.stack([torch.nn.functional.pad(v, (0, SLOTS - len(v))) for v in values])


def reference_advantages(rows):
    """Discounted sums from behind, over the count of the tokens left, before whitening, (rows, slots)."""
    mask = padded([torch.ones(len(row.response)).double() for row in rows])
    reward = padded([(row.teacher - row.student) / 0.5 for row in rows]).clamp(-100, 100)
    running, sums = torch.zeros(len(rows)).double(), []
    for t in reversed(range(SLOTS)):
        running = reward[:, t] + 0.95 * running
        sums.insert(0, running)
    left = mask.flip(1).cumsum(1).flip(1).clamp(min=1)
    return torch.stack(sums, 1) / left, mask


def whitened(values, over):
    """By the mean and the biased variance over all slots of `over`."""
    return (values - over.mean()) * torch.rsqrt(over.var(unbiased=False) + 1e-8)


def test_minillm_has_the_loss_of_the_authors_code(models, float64):
    """Responses of 1 to 3 tokens, of an older student, so that ratios are not 1."""
    old, student, teacher = models
    rows = drawn(old, teacher, RESPONSES)
    assert {len(row.response) for row in rows} == {1, 2, 3}
    settings = {**MINILLM_REFERENCE, "batch_size": len(rows), "rollouts_per_round": len(rows)}
    method = MiniLLM(context(settings, teacher, VOCABULARY))
    method.round, method.rollouts = 0, rows
    (part,) = method.parts(0)
    ours, _ = part.loss(student, part.rows)

    returns, mask = reference_advantages(rows)
    advantage = whitened(returns, returns)
    new = [token_log_probabilities(student, PROMPT, row.response) for row in rows]
    ratio = padded([n - row.student for n, row in zip(new, rows, strict=True)]).exp()
    weighted = ratio * padded([(row.student - row.mixed).exp() for row in rows])
    plain, clipped = -advantage * weighted, -advantage * weighted.clamp(0.8, 1.2)
    policy = (torch.maximum(plain, clipped) * mask).sum() / mask.sum()
    single = 0.0
    for row in rows:
        ids = torch.tensor([[*PROMPT, *row.response]])
        log_q, log_p = (m(ids).logits[0, 1:-1].log_softmax(-1) for m in (student, teacher))
        single = single + (log_q.exp() * (log_q - log_p)).sum()
    theirs = policy + single / mask.sum()
    assert ours.item() == pytest.approx(
        theirs.item(), rel=1e-8
    )  # powers of the discount are float32
    gradients = [torch.autograd.grad(x, student.transformer.wte.weight)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def test_whitening_is_over_all_devices_there_and_over_the_whole_batch_here(models):
    """Two devices of one micro-batch each: statistics of both together, not of each."""
    old, _, teacher = models
    rows = drawn(old, teacher, RESPONSES)
    method = MiniLLM(context(MINILLM_REFERENCE, teacher, VOCABULARY))
    ours = padded([row.advantage for row in method.with_advantages(rows)])
    returns, mask = reference_advantages(rows)
    of_both = torch.cat([whitened(half, returns) for half in (returns[:4], returns[4:])])
    of_each = torch.cat([whitened(half, half) for half in (returns[:4], returns[4:])])
    torch.testing.assert_close(ours, of_both * mask)
    assert not torch.allclose(ours, of_each * mask, atol=1e-3)


def test_the_teacher_of_a_rollout_has_the_temperature_of_the_student():
    """The authors' reward has it at 1, and the two agree where the temperature is 1."""
    student, teacher = (tiny_gpt2(seed, VOCABULARY) for seed in (1, 2))
    for temperature in (1.0, 2.0):
        decoding = Decoding(SLOTS, temperature=temperature)
        (response,) = draw(
            student, [Prompt(PROMPT, 0, 7)], decoding,
            end_token=0, vocabulary=VOCABULARY, micro_batch=1, teacher=teacher, teacher_mix=0.2,
        )  # fmt: skip
        tokens = response.tokens.tolist()
        logits = teacher(torch.tensor([[*PROMPT, *tokens]])).logits[0, 1:-1]
        log_p = (logits / temperature).log_softmax(-1).gather(-1, response.tokens[:, None])[:, 0]
        assert response.teacher.tolist() == pytest.approx(log_p.tolist(), abs=1e-6)
        at_one = token_log_probabilities(teacher, PROMPT, tokens).tolist()
        assert (response.teacher.tolist() == pytest.approx(at_one, abs=1e-4)) == (temperature == 1)


@pytest.mark.parametrize("skew", [0.0, 0.1])
def test_logged_losses_differ_by_the_teachers_entropy_and_have_the_same_gradient(skew):
    torch.manual_seed(1)
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    log_p = torch.randn(5, 7, dtype=torch.float64).log_softmax(-1)
    log_q, p = logits.log_softmax(-1), log_p.exp()
    ours = skewed_forward_kl(log_q, log_p, skew) if skew else forward_kl(log_q, log_p)
    theirs = -(p * (skew * p + (1 - skew) * log_q.exp()).log()).sum(-1)
    entropy = -(p * log_p).sum(-1)
    torch.testing.assert_close(theirs, ours + entropy)
    both = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("number", [0.5, 0.7, 1.0, 2.0])
def test_the_edges_of_the_alpha_beta_divergence_differ_by_a_factor(number):
    torch.manual_seed(2)
    log_p, log_q = (torch.randn(5, 7).double().log_softmax(-1) for _ in range(2))
    for ours, large, small in (
        (alpha_beta(log_q, log_p, number, 0), log_p, log_q),
        (alpha_beta(log_q, log_p, 0, number), log_q, log_p),
    ):
        a, b = (number * large).exp(), (number * small).exp()
        theirs = (a * (a / b).log() - a + b).sum(-1) / number
        torch.testing.assert_close(theirs, number * ours)


def reference_accumulated(prompts):
    """Means over the texts of a prompt that run, added up, then over prompts; the first step left out."""
    longest = max(len(text) for texts in prompts for text in texts)
    curves = []
    for texts in prompts:
        errors, runs = np.zeros((2, longest - 1))
        for text in texts:
            errors[: len(text) - 1] += text[1:]
            runs[: len(text) - 1] += 1
        curves.append(np.cumsum(errors / (runs + 1e-3)))
    return np.mean(curves, 0)


def test_exposure_bias_of_running_texts_and_that_of_the_authors_script():
    """Equal, but for the first step and their 1e-3, where all texts are of one prompt; else another mean."""
    one = [[0.5, 1.0, 2.0], [0.5, 3.0], [0.5, 2.0, 4.0, 1.0]]
    first = 0.5
    ours = exposure_bias.accumulated_while_running(one, 4)[1:] - first
    assert ours == pytest.approx(reference_accumulated([one]), rel=2e-3)
    other = [[0.5, 6.0]]
    ours = exposure_bias.accumulated_while_running([*one, *other], 4)[1:] - first
    theirs = reference_accumulated([one, other])
    # at the second step: the mean of 4 texts; the mean of 2 and 6. At the third, the second prompt counts as 0
    assert ours[0] == pytest.approx(3) and theirs[0] == pytest.approx(4, rel=2e-3)
    assert ours[1] - ours[0] == pytest.approx(3)
    assert theirs[1] - theirs[0] == pytest.approx(1.5, rel=2e-3)
