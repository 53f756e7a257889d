"""Every divergence and objective against formulas of papers and of public implementations (docs/oracle.md)."""

import importlib
from functools import partial

import numpy as np
import oracle
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

from takd.decoding.mixing import speculative
from takd.decoding.sampling import Decoding, Prompt, draw
from takd.experiment.schema import load_schema
from takd.losses import divergences
from takd.losses.divergences import alpha_mixture, coarsen, forward_kl, reverse_kl
from takd.methods.base import Example
from takd.methods.minillm import MiniLLM, Rollout
from takd.methods.policy_gradient import importance_weights, policy_loss, returns
from takd.methods.policy_gradient import rewards as rewards_of
from takd.methods.taid import Taid
from takd.metrics import exposure_bias

INFINITE = float("inf")
EDGES = (0.0, 0.1, 0.5, 0.9, 1.0)


def _pairs():
    """Logits of student and teacher, (tokens, vocabulary) each."""
    rng = np.random.default_rng(7)
    random = [2 * rng.standard_normal((6, 9)) for _ in range(2)]
    near = np.log([[1 - 1e-12, 1e-12, 1e-300], [1e-12, 1 - 1e-9, 1e-9], [1 / 3, 1 / 3, 1 / 3]])
    big = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, -1e4]])
    ordinary = {
        "random": random,
        "sharp": [30 * z for z in random],
        "one token": [z[:1] for z in random],
        "vocabulary of 2": [z[:, :2] for z in random],
        "near 0 and 1": [near, near[[1, 2, 0]]],
        "logits of 10,000": [big, big[[1, 2, 0]]],
        "equal": [random[0], random[0] + 3.0],
    }
    both, only = (np.array(random[0]) for _ in range(2))
    both[:, 4] = only[:, 2] = -INFINITE
    ruled_out = {
        "ruled out by both": [both, np.where(np.isinf(both), both, random[1])],
        "ruled out by the teacher": [random[1], only],
        "ruled out by the student": [only, random[1]],
    }
    return ordinary, ruled_out


ORDINARY, RULED_OUT = _pairs()
PAIRS = {**ORDINARY, **RULED_OUT}
AMID = {
    f"amid({of}, {share}, {alpha})": (of, share, alpha)
    for of in ("teacher", "student")
    for share in (0.1, 0.5)
    for alpha in (-5.0, -1.0, 0.0, 1.0, 3.0)
}


def _amid(log_q, log_p, of, share, alpha):
    return forward_kl(
        alpha_mixture(log_p, log_q, share, alpha), log_p if of == "teacher" else log_q
    )


def _taid(log_q, log_p, target):
    method = Taid.__new__(Taid)
    method.target = target
    return method.divergence(log_q, log_p)


def _case(name, **settings):
    return partial(getattr(divergences, name), **settings), partial(
        getattr(oracle, name), **settings
    )


# name: (takd's, of log-probabilities; the paper's, of logits)
PAPERS = {
    "forward_kl": _case("forward_kl"),
    "reverse_kl": _case("reverse_kl"),
    "total_variation": _case("total_variation"),
    **{f"jensen_shannon({b})": _case("jensen_shannon", beta=b) for b in EDGES},
    **{
        f"{name}({skew})": _case(name, skew=skew)
        for name in ("skewed_forward_kl", "skewed_reverse_kl")
        for skew in EDGES[:-1]
    },
    **{
        f"alpha_beta({a}, {b})": _case("alpha_beta", alpha=a, beta=b)
        for a in (0.0, 0.2, 0.5, 1.0, 2.0)
        for b in (0.0, 0.3, 0.5, 1.0)
        if a + b
    },
    **{f"taid({t})": (partial(_taid, target=t), partial(oracle.taid, target=t)) for t in EDGES},
    **{
        name: (
            partial(_amid, of=of, share=share, alpha=alpha),
            partial(oracle.amid, of=of, share=share, alpha=alpha, least=oracle.LEAST),
        )
        for name, (of, share, alpha) in AMID.items()
    },
}


def value(divergence, s, t):
    """A divergence of takd at logits, (tokens,)."""
    log_q, log_p = (torch.from_numpy(np.array(z)).log_softmax(-1) for z in (s, t))
    return divergence(log_q, log_p).numpy()


def same(found, expected, rtol=1e-9, atol=1e-11):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


# -- divergences -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("name", PAPERS)
def test_divergences_are_those_of_their_papers(name, temperature):
    ours, papers = PAPERS[name]
    for s, t in PAIRS.values():
        s, t = s / temperature, t / temperature
        same(value(ours, s, t), papers(s, t))


def test_a_target_of_tokens_that_both_rule_out_has_a_gradient():
    logits, teacher = (torch.from_numpy(z) for z in RULED_OUT["ruled out by both"])
    logits.requires_grad_()
    _taid(logits.log_softmax(-1), teacher.log_softmax(-1), 0.4).sum().backward()
    assert logits.grad.isfinite().all() and (logits.grad[:, 4] == 0).all()


@pytest.mark.parametrize("name", AMID)
def test_a_mixture_without_a_floor_is_the_same_where_no_probability_is_below_it(name):
    of, share, alpha = AMID[name]
    s, t = PAIRS["random"]
    same(value(PAPERS[name][0], s, t), oracle.amid(s, t, share, alpha, of, least=0.0))


@pytest.mark.parametrize(
    "name", ["forward_kl", "reverse_kl", "jensen_shannon(0.5)", "total_variation"]
)
@pytest.mark.parametrize("kept", [1, 2, 8, 9])
def test_the_rest_as_one_token(name, kept):
    """9 of 9 tokens leave an empty rest."""
    s, t = PAIRS["random"]
    tokens = np.argsort(-t, -1)[:, :kept]
    ours, papers = PAPERS[name]

    def coarse(log_q, log_p):
        return ours(*(coarsen(x, torch.from_numpy(tokens)) for x in (log_q, log_p)))

    same(value(coarse, s, t), papers(*(oracle.grouped(z, tokens) for z in (s, t))), 1e-9, 1e-9)


# -- divergences of public implementations ---------------------------------------------------------


def pairs(*names):
    return pytest.mark.parametrize("pair", [ORDINARY[n] for n in names], ids=names)


HUGE = "logits of 10,000"
IN_RANGE = [name for name in ORDINARY if name != HUGE]


@pairs(*ORDINARY)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_distilbert_multiplies_by_the_squared_temperature(pair, temperature):
    s, t = pair
    ours = value(forward_kl, s / temperature, t / temperature)
    same(oracle.distilbert(s, t, temperature), temperature**2 * ours)


@pairs(*IN_RANGE)
def test_cross_entropies_are_higher_by_the_teachers_entropy(pair):
    """KD of MiniLLM's authors and of OpenRLHF; DistiLLM's skewed forward KL."""
    s, t = pair
    same(oracle.minillm_kd(s, t), value(forward_kl, s, t) + oracle.entropy(t))
    ours = value(partial(divergences.skewed_forward_kl, skew=0.1), s, t)
    same(oracle.distillm_skewed_forward(s, t, 0.1), ours + oracle.entropy(t))


@pytest.mark.parametrize("skew", [0.0, 0.1])
def test_a_cross_entropy_has_the_gradient_of_its_divergence(skew):
    s, t = (torch.from_numpy(z) for z in PAIRS["random"])
    s = s.requires_grad_()
    log_q, log_p = s.log_softmax(-1), t.log_softmax(-1)
    p = log_p.exp()
    theirs = -(p * (skew * p + (1 - skew) * log_q.exp()).log()).sum()
    ours = divergences.skewed_forward_kl(log_q, log_p, skew).sum()
    both = [torch.autograd.grad(x, s, retain_graph=True)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*both)


@pairs(*ORDINARY)
@pytest.mark.parametrize("weight", EDGES)
def test_generalised_jensen_shannon_of_trl_and_of_distillm(pair, weight):
    """DistiLLM's λ is 1 - β, and vanishes at its ends, where TRL has the two KL."""
    s, t = pair
    ours = partial(divergences.jensen_shannon, beta=weight)
    same(oracle.trl_gkd(s, t, weight), value(ours, s, t))
    if 0 < weight < 1 and pair is not ORDINARY[HUGE]:
        same(oracle.distillm_js(s, t, 1 - weight), value(ours, s, t))


@pairs(*IN_RANGE)
def test_distillm_skewed_reverse_kl(pair):
    s, t = pair
    ours = value(partial(divergences.skewed_reverse_kl, skew=0.1), s, t)
    same(oracle.distillm_skewed_reverse(s, t, 0.1), ours)


def test_mixtures_of_probabilities_that_underflow():
    """The authors' is nan where both do; here the token contributes nothing."""
    s, t = ORDINARY[HUGE]
    for theirs, name in (
        (oracle.distillm_skewed_forward, "skewed_forward_kl"),
        (oracle.distillm_skewed_reverse, "skewed_reverse_kl"),
    ):
        ours = value(partial(getattr(divergences, name), skew=0.1), s, t)
        assert np.isnan(theirs(s, t, 0.1)).any() and np.isfinite(ours).all()


def test_distillm_2_takes_half_of_each_skewed_kl():
    taught, own = PAIRS["random"], PAIRS["sharp"]
    parts = [
        value(partial(getattr(divergences, name), skew=0.1), *pair).mean()
        for name, pair in (("skewed_forward_kl", taught), ("skewed_reverse_kl", own))
    ]
    assert oracle.distillm2(taught, own, 0.1) == pytest.approx(sum(parts) / 2)


@pairs("random", "one token", "vocabulary of 2", "equal")
@pytest.mark.parametrize("number", [0.5, 0.7, 1.0, 2.0])
def test_the_edges_of_abkd_differ_by_a_factor(pair, number):
    s, t = pair
    for zero, settings in (
        ("beta", {"alpha": number, "beta": 0.0}),
        ("alpha", {"alpha": 0.0, "beta": number}),
    ):
        ours = value(partial(divergences.alpha_beta, **settings), s, t)
        same(oracle.abkd_edge(s, t, number, zero), number * ours)


@pytest.mark.parametrize("kept", [1, 3, 8])
def test_top_k_of_others(kept):
    """DistillKit's rest as one is ours; a teacher of its top k alone is matched by no student like the teacher."""
    s, t = PAIRS["random"]
    tokens = np.argsort(-t, -1)[:, :kept]

    def coarse(log_q, log_p):
        return forward_kl(*(coarsen(x, torch.from_numpy(tokens)) for x in (log_q, log_p)))

    ours = value(coarse, s, t)
    same(oracle.distillkit_top_k(s, t, tokens, "symmetric_uniform"), ours)
    assert (ours > 0).all() and (value(coarse, t, t) == 0).all()
    # all of the student's mass on the teacher's tokens
    narrow = np.full_like(t, -1e4)
    np.put_along_axis(narrow, tokens, np.take_along_axis(t, tokens, -1), -1)
    rest = np.exp(oracle.grouped(t, tokens)[:, -1])
    for theirs in (
        partial(oracle.distillkit_top_k, rest="zero"),
        partial(oracle.nemo_rl_top_k, direction="forward"),
        partial(oracle.nemo_rl_top_k, direction="reverse"),
    ):
        same(theirs(narrow, t, tokens), 0, atol=1e-9)
        assert (theirs(t, t, tokens) > rest / 2).all()
    same(oracle.nemo_rl_top_k(t, t, tokens, "forward"), -np.log(1 - rest))
    same(
        oracle.distillkit_top_k(s, t, tokens, "zero"),
        oracle.nemo_rl_top_k(s, t, tokens, "forward"),
    )


def test_tokens_that_are_ruled_out():
    """Others leave them out, or get nan; here they contribute what the divergence says."""
    s, t = RULED_OUT["ruled out by the student"]
    assert np.isfinite(oracle.minillm_kd(s, t)).all()
    assert np.isinf(value(forward_kl, s, t)).all()
    s, t = RULED_OUT["ruled out by the teacher"]
    assert np.isfinite(oracle.distillm_skewed_reverse(s, t, 0.1)).all()
    ours = value(partial(divergences.skewed_reverse_kl, skew=0.1), s, t)
    # the token that is left out has log q - log m = -log λ
    left_out = np.exp(oracle.log_softmax(s))[:, 2] * -np.log(0.1)
    same(ours, oracle.distillm_skewed_reverse(s, t, 0.1) + left_out)
    s, t = RULED_OUT["ruled out by both"]
    log_q, log_p = (torch.from_numpy(oracle.log_softmax(z)) for z in (s, t))
    kl_div = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True)
    assert kl_div.sum(-1).isnan().all() and np.isfinite(value(forward_kl, s, t)).all()


# -- objectives on given responses -----------------------------------------------------------------

ROWS = [
    Example(0, 0, [1, 2, 3], [4, 5, 0]),
    Example(1, 1, [7], [8, 0]),
    Example(2, 2, [2, 2], [0]),
]
VOCABULARY = 11
OFF = {
    "batch_size": 4,
    "steps": 10,
    "epochs": None,
    "on_policy": "off",
    "on_policy_share": 0.0,
    "initial_share": 0.0,
    "capacity": 1,
    "temperature": 1.0,
}
KD = ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation")
# method, its settings, and the paper's divergence
OBJECTIVES = [
    *[("kd", {"divergence": d, "teacher_outputs": "live"}, getattr(oracle, d)) for d in KD],
    *[
        ("kd", {"divergence": d, "teacher_outputs": "top_k"}, f"{d}, top 3")
        for d in ("forward_kl", "total_variation")
    ],
    *[("skd", {"divergence": d, "teacher_top_k": 3}, getattr(oracle, d)) for d in KD],
    *[("gkd", {"beta": b}, partial(oracle.jensen_shannon, beta=b)) for b in EDGES],
    *[
        ("distillm", {"divergence": d, "skew": 0.1}, partial(getattr(oracle, d), skew=0.1))
        for d in ("skewed_forward_kl", "skewed_reverse_kl")
    ],
    *[
        ("abkd", {"alpha": a, "beta": b}, partial(oracle.alpha_beta, alpha=a, beta=b))
        for a, b in ((0.2, 0.7), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.5, 0.0))
    ],
    *[("taid", {"target_start": x}, partial(oracle.taid, target=x)) for x in (0.0, 0.4, 1.0)],
    *[
        (
            "amid",
            {"from": of, "skew": share, "alpha": alpha},
            partial(oracle.amid, of=of, share=share, alpha=alpha),
        )
        for of, share, alpha in AMID.values()
    ],
]


@pytest.fixture
def float64(monkeypatch):
    """Logits are made float32 in production; here all digits are compared."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self.double())


@pytest.fixture(scope="module")
def pair():
    """Student and teacher, in float64."""
    return tuple(tiny_gpt2(seed, VOCABULARY, width=8, layers=1).double() for seed in (1, 2))


def logits(model, row):
    """Of one unpadded pass, (response tokens, vocabulary)."""
    ids = torch.tensor([[*row.prompt, *row.response]])
    with torch.no_grad():
        return model(ids).logits[0, len(row.prompt) - 1 : -1].numpy()


class TopThree:
    """Stored log-probabilities of the teacher's three likeliest tokens."""

    def __init__(self, teacher):
        self.teacher = teacher

    def read(self, indices):
        logs = [oracle.log_softmax(logits(self.teacher, ROWS[i])) for i in indices]
        log_nv = torch.from_numpy(np.concatenate(logs))
        values, tokens = log_nv.topk(3)
        return {"tokens": tokens, "log_probabilities": values}


def expected_loss(pair, divergence, ratio):
    """(1 - λ)(-log q(y)) + λ D, a mean over the tokens of all rows."""
    values = []
    for row in ROWS:
        s, t = (logits(model, row) for model in pair)
        label = -oracle.log_softmax(s)[range(len(row.response)), row.response]
        if isinstance(divergence, str):
            tokens = np.argsort(-t, -1)[:, :3]
            plain = getattr(oracle, divergence.removesuffix(", top 3"))
            found = plain(*(oracle.grouped(z, tokens) for z in (s, t)))
        else:
            found = divergence(s, t) if ratio else 0.0
        values.append((1 - ratio) * label + ratio * found)
    return np.concatenate(values).mean()


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("number", range(len(OBJECTIVES)))
def test_objectives_on_rows_of_one_to_three_tokens(number, ratio, pair, float64):
    name, settings, divergence = OBJECTIVES[number]
    kind = importlib.import_module(f"takd.methods.{name}").METHOD
    more = {**OFF, "ratio": ratio, **settings}
    method = kind(context(more, pair[1], VOCABULARY, stored={"train": TopThree(pair[1])}))
    method.step, method.drawn = 0, None
    loss, statistics = method.loss(sum(len(row.response) for row in ROWS))(pair[0], ROWS)
    assert loss.item() == pytest.approx(expected_loss(pair, divergence, ratio), rel=1e-9)
    for logged, of_ratio in (("label_loss", 0.0), ("divergence", 1.0)):
        expected = expected_loss(pair, divergence, of_ratio)
        assert statistics[logged].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["sft", "seqkd"])
def test_supervised_objectives(name, pair, float64):
    kind = importlib.import_module(f"takd.methods.{name}").METHOD
    loss, _ = kind(context(OFF, None, VOCABULARY)).loss(6)(pair[0], ROWS)
    assert loss.item() == pytest.approx(expected_loss(pair, None, 0.0), rel=1e-9)


def test_the_target_of_taid_is_one_step_ahead_of_the_authors_code():
    losses, steps = [3.0, 2.0, 2.5, 1.0, 0.9, 0.9, 0.9, 0.8], 8
    for alpha in (0.0, 0.3):
        settings = {**OFF, "steps": steps, "target_start": 0.2, "ratio": 1.0}
        settings |= {"target_alpha": alpha, "target_beta": 0.5}
        method, ours = Taid(context(settings, None, VOCABULARY)), []
        for step, loss in enumerate(losses):
            ours.append(method.target)
            method.learned(step, {"divergence": loss, "gradient_norm": 1.0})
        theirs = oracle.taid_schedule(losses, steps, 0.2, alpha, 0.5)
        if alpha == 0:
            assert theirs == pytest.approx([ours[0], *ours[:-1]])
        assert ours[-1] > theirs[-1] and theirs[1] == 0.2


# -- MiniLLM and on-policy distillation ------------------------------------------------------------

WORDS, LONGEST, SLOTS, PROMPT = 4, 3, 5, [1, 2]
RESPONSES = [all_responses(WORDS, LONGEST)[place] for place in (0, 1, 3, 5, 9, 14, 22, 31)]
BATCHES = {
    "1 to 3 tokens": RESPONSES,
    "one end token": [[0]],
    "one response": RESPONSES[3:4],
    "cut at the limit": [r for r in RESPONSES if 0 not in r],
}
PRESETS = load_schema()["$defs"]["methods"]["properties"]["minillm"]["x-presets"]["objective"]
MINILLM = {
    "code": partial(oracle.minillm_code, slots=SLOTS),
    "paper": oracle.minillm_paper,
    "exact": oracle.minillm_exact,
    "opd": oracle.opd,
}


@pytest.fixture(scope="module")
def models():
    """Student that drew, student that learns, teacher; in float64."""
    return tuple(tiny_gpt2(s, WORDS, width=8, layers=1).double() for s in (1, 2, 3))


def drawn(student, teacher, responses, mix):
    rows = []
    for response in responses:
        with torch.no_grad():
            q = token_log_probabilities(student, PROMPT, response)
            p = token_log_probabilities(teacher, PROMPT, response)
            hidden = teacher_hidden(teacher, PROMPT, response)
        mixed = torch.log(mix * p.exp() + (1 - mix) * q.exp())
        rows.append(Rollout(0, 0, PROMPT, response, q, p, mixed, hidden))
    return rows


def slope(function, model):
    """Derivative along a random direction of the parameters, by differences, and the direction."""
    torch.manual_seed(0)
    parameters, step = list(model.parameters()), 1e-5
    along = [torch.randn_like(p) / p.numel() ** 0.5 for p in parameters]

    def moved(size):
        with torch.no_grad():
            for parameter, direction in zip(parameters, along, strict=True):
                parameter.add_(direction, alpha=size)

    moved(step)
    above = function()
    moved(-2 * step)
    below = function()
    moved(step)
    return (above - below) / (2 * step), along


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("objective", MINILLM)
def test_minillm_has_the_loss_and_the_gradient_of_its_formulas(objective, batch, models, float64):
    """Responses are of an older student, so that ratios are not 1."""
    old, student, teacher = models
    count = len(BATCHES[batch])
    settings = {**MINILLM_REFERENCE, **PRESETS[objective], "lm_weight": 0.0}
    settings |= {"batch_size": count, "rollouts_per_round": count}
    rows = drawn(old, teacher, BATCHES[batch], settings["teacher_mix"])
    method = MiniLLM(context(settings, teacher, WORDS, max_new_tokens=SLOTS))
    method.round, method.rollouts = 0, rows
    (part,) = method.parts(0)
    ours, _ = part.loss(student, part.rows)

    def formula():
        s, t = ([logits(model, row) for row in rows] for model in (student, teacher))
        now = [
            oracle.log_softmax(z)[range(len(row.response)), row.response]
            for z, row in zip(s, rows, strict=True)
        ]
        kept = [
            [getattr(r, name).numpy() for r in rows] for name in ("student", "teacher", "mixed")
        ]
        return MINILLM[objective](now, *kept, [*map(oracle.reverse_kl, s, t)])

    # powers of the discount are float32
    assert ours.item() == pytest.approx(formula(), rel=1e-7, abs=1e-12)
    gradients = torch.autograd.grad(ours, list(student.parameters()), allow_unused=True)
    expected, along = slope(formula, student)
    found = sum((g * d).sum() for g, d in zip(gradients, along, strict=True) if g is not None)
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_whitening_is_over_all_devices_there_and_over_the_whole_batch_here(models):
    """Two devices of one micro-batch each: statistics of both together, not of each."""
    old, _, teacher = models
    rows = drawn(old, teacher, RESPONSES, 0.2)
    method = MiniLLM(context(MINILLM_REFERENCE, teacher, WORDS, max_new_tokens=SLOTS))
    ours = oracle.padded([row.advantage.numpy() for row in method.with_advantages(rows)], SLOTS)
    mask = oracle.padded([np.ones(len(row.response)) for row in rows], SLOTS)
    reward = oracle.padded([(row.teacher - row.student).numpy() for row in rows], SLOTS)
    plain, of_all = oracle.minillm_code_advantages(reward, mask)
    of_each = np.concatenate([oracle.whitened(half, half) for half in (plain[:4], plain[4:])])
    same(ours, of_all * mask, 1e-6)
    assert not np.allclose(ours, of_each * mask, atol=1e-3)


def test_the_teacher_of_a_rollout_has_the_temperature_of_the_student():
    """The authors' reward has it at 1, and the two agree where the temperature is 1."""
    student, teacher = (tiny_gpt2(seed, WORDS) for seed in (1, 2))
    for temperature in (1.0, 2.0):
        (response,) = draw(
            student, [Prompt(PROMPT, 0, 7)], Decoding(LONGEST, temperature=temperature),
            end_token=0, vocabulary=WORDS, micro_batch=1, teacher=teacher, teacher_mix=0.2,
        )  # fmt: skip
        row = Example(0, 0, PROMPT, response.tokens.tolist())
        z, places = logits(teacher, row), range(len(row.response))
        found = response.teacher.tolist()
        assert found == pytest.approx(
            oracle.log_softmax(z / temperature)[places, row.response], abs=1e-6
        )
        at_one = oracle.log_softmax(z)[places, row.response]
        assert (found == pytest.approx(at_one, abs=1e-4)) == (temperature == 1)


@pairs("random", "sharp", "one token", "vocabulary of 2")
@pytest.mark.parametrize("kept", [1, 2])
def test_the_law_of_speculative_sampling(pair, kept):
    """Of two draws, here of one: the student's token if the teacher's top k has it, else the teacher's."""
    s, t = pair
    logs = torch.stack([torch.from_numpy(oracle.log_softmax(z)) for z in (s, t)])
    law, replaced = speculative(logs, kept)
    same(law.exp().sum(-1).numpy(), 1)
    same(law.exp().numpy(), oracle.skd_law(s, t, kept))
    outside = np.argsort(-t, -1)[:, kept:]
    q = np.exp(oracle.log_softmax(s))
    same(replaced.exp().numpy(), np.take_along_axis(q, outside, -1).sum(-1))


LENGTHS = [1, 2, 5, 8]


@pytest.fixture
def made_up():
    """Rewards of responses of 1 to 8 tokens, padded with zeros, and their mask."""
    rng = np.random.default_rng(3)
    rows = [rng.standard_normal(length) for length in LENGTHS]
    return oracle.padded(rows, 8), oracle.padded([np.ones(n) for n in LENGTHS], 8)


def ours_of(rewards, discount, include=True, normalise=False):
    tensors = torch.from_numpy(rewards), torch.tensor(LENGTHS)
    return returns(*tensors, discount, include, normalise).numpy()


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.95, 1.0])
def test_returns_of_the_cookbook_are_ours(discount, made_up):
    rewards, mask = made_up
    ours = ours_of(rewards, discount)
    same(ours * mask, oracle.tinker_advantages(rewards, discount) * mask, 1e-6)
    same(ours * mask, oracle.rewards_to_go(rewards, discount) * mask, 1e-6)


def test_trl_discounts_by_the_position(made_up):
    """So returns lack a factor γ^t, which cancels where they are divided by the discounted count."""
    rewards, mask = made_up
    for discount in (0.5, 0.95, 1.0):
        powers = discount ** np.arange(8)
        theirs = oracle.trl_minillm_advantages(rewards, mask, discount, False)
        same(theirs * mask, powers * ours_of(rewards, discount) * mask, 1e-6)
        theirs = oracle.trl_minillm_advantages(rewards, mask, discount, True)
        counted = ours_of(np.maximum(mask, 1e-4), discount)
        same(theirs * mask, ours_of(rewards, discount) / counted * mask, 1e-6)
    # undiscounted, but for the 1e-4 of each padded slot
    ours = ours_of(rewards, 1.0, normalise=True)
    same(theirs * mask, ours * mask, 1e-3)
    ours = ours_of(rewards, 0.95, normalise=True)
    theirs = oracle.trl_minillm_advantages(rewards, mask, 0.95, True)
    assert not np.allclose(theirs * mask, ours * mask, rtol=0.05)


def test_the_paper_divides_by_one_less_than_the_number_of_rewards(made_up):
    """1 / (T - t - 1) of T - t rewards; here by their number."""
    rewards, _ = made_up
    ours = ours_of(rewards, 1.0, include=False, normalise=True)
    length = LENGTHS[-1]
    for t in range(1, length - 1):  # its t begins at 1; at T - 1 it divides by 0
        paper = rewards[-1, t:].sum() / (length - t - 1)
        assert ours[-1, t - 1] == pytest.approx(paper * (length - t - 1) / (length - t))


@pytest.mark.parametrize("clip", [0.0, 0.2, 1.0])
def test_the_clipped_loss(clip):
    rng = np.random.default_rng(5)
    log_ratio, weight, advantage = rng.standard_normal((3, 50))
    weight = np.exp(weight)
    tensors = map(torch.from_numpy, (log_ratio, weight, advantage))
    found = policy_loss(*tensors, clip, True).numpy()
    same(found, oracle.clipped(np.exp(log_ratio), advantage, weight, clip))


def test_rewards_and_weights_of_extreme_log_probabilities():
    q, p = np.array([-1e4, -1e-12, -3.0, 0.0]), np.array([-1e-12, -1e4, -3.0, -50.0])
    found = rewards_of(torch.from_numpy(q), torch.from_numpy(p), 0.5, 100.0)
    assert found.tolist() == [100.0, -100.0, 0.0, -100.0]
    mixed = np.logaddexp(np.log(0.2) + p, np.log(0.8) + q)
    weights = importance_weights(*map(torch.from_numpy, (q, mixed)), "token").numpy()
    same(weights, np.exp(q - mixed))
    assert (weights <= 1.25 + 1e-12).all()  # 1 / (1 - α)


def test_the_single_step_term_is_the_reverse_kl():
    s, t = PAIRS["random"]
    cross = -(np.exp(oracle.log_softmax(s)) * oracle.log_softmax(t)).sum(-1)
    same(cross - oracle.entropy(s), value(reverse_kl, s, t))  # as the authors write it


# -- measures of MiniLLM's scripts -----------------------------------------------------------------


def test_exposure_bias_of_running_texts_and_that_of_the_authors_script():
    """Equal, but for the first step and their 1e-3, where all texts are of one prompt; else another mean."""
    one = [[0.5, 1.0, 2.0], [0.5, 3.0], [0.5, 2.0, 4.0, 1.0]]
    first = 0.5
    ours = exposure_bias.accumulated_while_running(one, 4)[1:] - first
    assert ours == pytest.approx(oracle.minillm_accumulated([one]), rel=2e-3)
    other = [[0.5, 6.0]]
    ours = exposure_bias.accumulated_while_running([*one, *other], 4)[1:] - first
    theirs = oracle.minillm_accumulated([one, other])
    # at the second step: the mean of 4 texts; the mean of 2 and 6. At the third, the second prompt counts as 0
    assert ours[0] == pytest.approx(3) and theirs[0] == pytest.approx(4, rel=2e-3)
    assert ours[1] - ours[0] == pytest.approx(3)
    assert theirs[1] - theirs[0] == pytest.approx(1.5, rel=2e-3)
