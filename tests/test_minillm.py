"""MiniLLM against exact enumeration, and each of its settings against hand values."""

import functools
import itertools
import json
import math

import pytest
import torch
from datasets import Dataset
from models_for_tests import (
    END,
    MINILLM_PAPER,
    MINILLM_REFERENCE,
    all_responses,
    context,
    teacher_hidden,
    tiny_gpt2,
    token_log_probabilities,
)
from test_experiment import ROOT, edit, read

from takd.decoding.sampling import Response
from takd.experiment import specs
from takd.experiment.schema import load_schema
from takd.methods.minillm import MiniLLM, Rollout
from takd.methods.policy_gradient import (
    importance_weights,
    policy_loss,
    returns,
    rewards,
    whiten,
)

VOCABULARY, LONGEST, PROMPT = 4, 3, [1, 2]
OBJECTIVES = ("code", "paper", "exact", "opd")


@functools.cache
def models(*seeds):
    """Student and teacher in float64."""
    return tuple(tiny_gpt2(s, VOCABULARY, width=8, layers=1).double() for s in seeds)


@pytest.fixture(scope="module")
def pair():
    return models(1, 2)


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@functools.cache
def enumerated(student, teacher, mixing):
    """Every response as a rollout, with log p̃ of the whole response."""
    rows, logs = [], []
    for response in all_responses(VOCABULARY, LONGEST):
        with torch.no_grad():
            q = token_log_probabilities(student, PROMPT, response)
            p = token_log_probabilities(teacher, PROMPT, response)
            hidden = teacher_hidden(teacher, PROMPT, response)
        mixed = torch.log(mixing * p.exp() + (1 - mixing) * q.exp())
        rows.append(Rollout(0, 0, PROMPT, response, q, p, mixed, hidden))
        logs.append(mixed.sum())
    return rows, torch.stack(logs)


def estimator(student, teacher, mixing, **settings):
    """Expectation over y ~ p̃ of the loss that MiniLLM sums over the tokens of y."""
    method = MiniLLM(context({**MINILLM_PAPER, **settings}, teacher, VOCABULARY))
    rows, logs = enumerated(student, teacher, mixing)
    assert logs.exp().sum().item() == pytest.approx(1, abs=1e-12)
    losses = []
    for row in rows:
        (row,) = method.with_advantages([row])
        loss, _ = method.loss(1)(student, [row])
        losses.append(loss)
    return (logs.exp() * torch.stack(losses)).sum()


def exact_reverse_kl(student, teacher):
    """KL(q ‖ p) over whole responses, with the student's gradient."""
    total = torch.zeros((), dtype=torch.float64)
    for response in all_responses(VOCABULARY, LONGEST):
        q = token_log_probabilities(student, PROMPT, response).sum()
        p = token_log_probabilities(teacher, PROMPT, response).sum()
        total = total + q.exp() * (q - p.detach())
    return total


@functools.cache
def gradient_of_reverse_kl(student, teacher):
    return gradient(student, exact_reverse_kl(student, teacher))


def settings_of(objective, folder):
    """What an experiment with `objective` and nothing else said of MiniLLM trains with."""
    text = edit("steps: 20, learning_rate: 5e-5", f"objective: {objective}")
    return specs.train(read(folder, text), "teacher-sft__student-minillm", 1)["settings"]


def error(student, teacher, mixing, settings):
    """How far the expected gradient is from that of the reverse KL, as a share of its norm."""
    exact = gradient_of_reverse_kl(student, teacher)
    ours = gradient(student, estimator(student, teacher, mixing, **settings))
    return ((ours - exact).norm() / exact.norm()).item()


@pytest.fixture(autouse=True)
def float64(monkeypatch):
    """Logits are made float32 in production; enumeration needs all digits."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self.double())


def test_expected_gradient_is_that_of_the_reverse_kl(pair):
    student, teacher = pair
    exact = gradient(student, exact_reverse_kl(student, teacher))
    ours = gradient(student, estimator(student, teacher, 0.0))
    assert exact.abs().max() > 1e-2
    assert (exact - ours).abs().max() < 1e-8


@pytest.mark.parametrize("seeds", [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)])
@pytest.mark.parametrize("mixing", [0.0, 0.2, 0.7])
def test_objective_exact_has_the_gradient_of_the_reverse_kl_at_any_mixing(seeds, mixing, tmp_path):
    assert error(*models(*seeds), mixing, settings_of("exact", tmp_path)) < 1e-14


def test_objective_opd_has_the_gradient_of_the_reverse_kl_of_each_visited_token(pair, tmp_path):
    """Of KL(q(·|s) ‖ p(·|s)) at states s that the student visits, which are no part of the gradient."""
    student, teacher = pair
    total = torch.zeros((), dtype=torch.float64)
    for length in range(LONGEST):
        for prefix in itertools.product(range(VOCABULARY), repeat=length):
            if END in prefix:
                continue
            text = torch.tensor([[*PROMPT, *prefix]])
            log_q, log_p = (m(text).logits[0].log_softmax(-1) for m in (student, teacher))
            at = range(len(PROMPT) - 1, len(PROMPT) - 1 + length)
            visited = sum((log_q[i, token] for i, token in zip(at, prefix, strict=True)), 0 * total)
            kl = (log_q[-1].exp() * (log_q[-1] - log_p[-1].detach())).sum()
            total = total + visited.detach().exp() * kl
    exact = gradient(student, total)
    found = gradient(student, estimator(student, teacher, 0.0, **settings_of("opd", tmp_path)))
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


def test_objectives_change_what_the_documentation_says(tmp_path):
    """The table of docs/methods.md, line by line."""
    found = {name: settings_of(name, tmp_path / name) for name in OBJECTIVES}
    differing = {key for key in found["code"] if len({str(s[key]) for s in found.values()}) > 1}
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    table = text[text.index("| setting | `code`") :].split("\n\n")[0].splitlines()[2:]
    written = {}
    for line in table:
        keys, *values = (cell.strip() for cell in line.strip("|").split("|")[:5])
        for at, key in enumerate(keys.split(", ")):
            written[key.strip("`")] = [value.split(", ")[at] for value in values]
    shown = {True: "true", False: "false", None: "null"}
    for key in differing | set(written):
        values = [found[name][key] for name in OBJECTIVES]
        if key == "rollouts_per_round":
            assert values == [256, 64, 64, 64] and found["paper"]["batch_size"] == 64
            values[1:] = [None, None, None]
        texts = [shown[v] if isinstance(v, bool) or v is None else f"{v}" for v in values]
        assert [t.removesuffix(".0") for t in texts] == written[key], key


def test_the_file_comes_before_the_objective_and_a_model_before_its_method(tmp_path):
    text = edit(
        "steps: 20, learning_rate: 5e-5", "objective: exact, discount: 0.9, ratio_clip: 0.1"
    )
    text = edit(
        "{minillm: {batch_size: 32}}", "{minillm: {objective: code, whitening: tokens}}", text
    )
    experiment = read(tmp_path, text)
    names = (f"teacher-sft__{model}-minillm" for model in ("student", "assistant"))
    student, assistant = (specs.train(experiment, name, 1)["settings"] for name in names)
    assert (student["discount"], student["ratio_clip"], student["reward_clip"]) == (0.9, 0.1, None)
    assert "objective" not in student, "it is known by what it sets"
    code = settings_of("code", tmp_path)
    assert assistant == {**code, "whitening": "tokens"}


def test_an_objective_may_be_written_out(tmp_path):
    """What `objective` sets is accepted as the documentation writes it, `null` included."""
    written = "".join(
        f", {key}: {json.dumps(value)}"
        for key, value in load_schema()["$defs"]["methods"]["properties"]["minillm"]["x-presets"][
            "objective"
        ]["exact"].items()
    )
    text = edit("steps: 20, learning_rate: 5e-5", f"epochs: 10{written}")
    spec = specs.train(read(tmp_path, text), "teacher-sft__student-minillm", 1)["settings"]
    assert spec == settings_of("exact", tmp_path)


ERRORS = {
    "`exact`": {"importance": "per_decision", "single_step_importance": True},
    "`exact`, `single_step_importance: false`": {"importance": "per_decision"},
    "`exact`, `importance: token`": {"importance": "token", "single_step_importance": True},
    "`exact`, `importance: prefix`": {"importance": "prefix", "single_step_importance": True},
    "`exact`, `importance: none`": {"importance": "none"},
    "`exact`, `length_normalisation: true`": {
        "importance": "per_decision",
        "single_step_importance": True,
        "length_normalisation": True,
    },
    "`paper`": {"length_normalisation": True, "single_step_importance": True},
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_of_the_expected_gradient(name, pair):
    """The numbers of docs/methods.md."""
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    found = [100 * error(*pair, mixing, ERRORS[name]) for mixing in (0.2, 0.0)]
    shown = [f"{value:.1f} %" if value > 1e-9 else "0" for value in found]
    assert f"| {name} | {' | '.join(shown)} |" in text, shown


def test_token_weights_change_nothing_of_the_single_step_term_in_expectation(pair):
    student, teacher = pair
    weighted, plain = (
        gradient(student, estimator(student, teacher, 0.2, single_step_importance=value))
        for value in (True, False)
    )
    assert (weighted - plain).abs().max() < 1e-13


def test_each_batch_is_divided_by_its_tokens_or_its_responses(pair):
    student, teacher = pair
    rows, _ = enumerated(student, teacher, 0.2)
    sums = {}
    for mean_over in ("tokens", "responses"):
        settings = {**MINILLM_REFERENCE, "batch_size": 4, "mean_over": mean_over}
        method = MiniLLM(context(settings, teacher, VOCABULARY))
        method.round, method.rollouts = 0, rows[:4]
        (part,) = method.parts(0)
        sums[mean_over], statistics = part.loss(student, part.rows)
        assert statistics["ratio"].item() == pytest.approx(1), "a mean over tokens always"
    tokens = sum(len(row.response) for row in rows[:4])
    ratio = sums["responses"] / sums["tokens"]
    assert ratio.item() == pytest.approx(tokens / 4) and tokens != 4


def test_without_the_single_step_term_the_full_return_gives_the_same_gradient(pair):
    student, teacher = pair
    exact = gradient(student, exact_reverse_kl(student, teacher))
    policy = estimator(student, teacher, 0.0, single_step_weight=0.0, return_includes_current=True)
    assert (exact - gradient(student, policy)).abs().max() < 1e-8


def test_the_product_of_weights_turns_the_mixture_into_the_student(pair):
    """E_p̃[Π w f(y)] = E_q[f(y)] for any f, here the length."""
    student, teacher = pair
    rows, logs = enumerated(student, teacher, 0.2)
    products = torch.stack([importance_weights(r.student, r.mixed, "prefix")[-1] for r in rows])
    lengths = torch.tensor([float(len(r.response)) for r in rows]).double()
    on_policy = torch.stack([r.student.sum().exp() for r in rows])
    assert (logs.exp() * products * lengths).sum().item() == pytest.approx(
        (on_policy * lengths).sum().item(), abs=1e-10
    )
    assert (logs.exp() * lengths).sum() != pytest.approx((on_policy * lengths).sum().item())


def test_expectation_that_per_token_weights_do_have(pair):
    """α = 0.2: states drawn from p̃, one step corrected to q, the return as drawn (arXiv 2306.08543, eq. 6)."""
    student, teacher = pair
    ours = gradient(student, estimator(student, teacher, 0.2, single_step_weight=0.0))
    rows, logs = enumerated(student, teacher, 0.2)
    expected = torch.zeros((), dtype=torch.float64)
    for row, log in zip(rows, logs, strict=True):
        log_q = token_log_probabilities(student, PROMPT, row.response)
        reward = row.teacher - row.student
        for t in range(len(row.response)):
            weight = (row.student[t] - row.mixed[t]).exp()
            expected = expected - log.exp() * weight * reward[t + 1 :].sum() * log_q[t]
    assert (gradient(student, expected) - ours).abs().max() < 1e-8
    exact = gradient(student, exact_reverse_kl(student, teacher))
    assert (exact - ours).abs().max() > 1e-3  # an approximation, as the paper says


def test_identical_teacher_and_student_have_no_gradient():
    student, teacher = (tiny_gpt2(1, VOCABULARY, width=8, layers=1).double() for _ in range(2))
    assert gradient(student, estimator(student, teacher, 0.0)).abs().max() < 1e-10


def test_rewards_are_scaled_and_cut():
    values = rewards(torch.tensor([-1.0, -60.0]), torch.tensor([-2.0, -1.0]), scale=0.5, limit=100)
    assert values.tolist() == [-2.0, 100.0]
    uncut = rewards(torch.tensor([-60.0]), torch.tensor([-1.0]), scale=0.5, limit=None)
    assert uncut.tolist() == [118.0]


@pytest.mark.parametrize(
    ("include", "normalise", "expected"),
    [
        (True, False, [1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 4]),
        (True, True, [3 / 3, 4 / 2, 4]),
        (False, False, [2 + 0.5 * 4, 4, 0]),
        (False, True, [4 / 2, 4, 0]),
    ],
)
def test_returns(include, normalise, expected):
    padded = torch.tensor([[1.0, 2.0, 4.0, 0.0], [3.0, 1.0, 2.0, 5.0]])
    values = returns(padded, torch.tensor([3, 4]), 0.5, include, normalise)
    assert values[0, :3].tolist() == pytest.approx(expected)
    alone = returns(padded[1:], torch.tensor([4]), 0.5, include, normalise)
    assert values[1].tolist() == pytest.approx(alone[0].tolist())


def test_whitening_over_tokens_and_over_padded_slots():
    values = torch.tensor([1.0, 2.0, 3.0])
    tokens = whiten(values, 3)
    assert tokens.tolist() == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)])
    padded = torch.cat([values, torch.zeros(8)])
    reference = (padded - padded.mean()) / padded.std(unbiased=False)
    assert whiten(values, 11).tolist() == pytest.approx(reference[:3].tolist(), abs=1e-6)
    assert abs(whiten(values, 11).mean()) > 1  # padding shifts what is not padding


def test_importance_weights():
    student, mixed = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    assert importance_weights(student, mixed, "token").log().tolist() == pytest.approx([0.5, -1])
    assert importance_weights(student, mixed, "prefix").log().tolist() == pytest.approx([0.5, -0.5])
    assert importance_weights(student, mixed, "none").tolist() == [1, 1]


def test_policy_loss_clips_the_weighted_ratio_or_the_ratio():
    log_ratio = torch.log(torch.tensor([1.5, 1.5, 0.5, 0.5]))
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    weight = torch.full((4,), 2.0)
    weighted = policy_loss(log_ratio, weight, advantage, 0.2, True)
    assert weighted.tolist() == pytest.approx([-1.2, 3.0, -1.0, 1.0])
    alone = policy_loss(log_ratio, weight, advantage, 0.2, False)
    assert alone.tolist() == pytest.approx([-2.4, 3.0, -1.0, 1.6])
    plain = policy_loss(log_ratio, weight, advantage, None, True)
    assert plain.tolist() == pytest.approx([-3.0, 3.0, -1.0, 1.0])


def test_no_gradient_flows_through_the_advantage(pair):
    student, teacher = pair
    method = MiniLLM(context({**MINILLM_REFERENCE}, teacher, VOCABULARY))
    rows, _ = enumerated(student, teacher, 0.2)
    for row in method.with_advantages(rows[:4]):
        assert not row.advantage.requires_grad


def test_a_round_is_split_over_its_steps_and_seen_inner_epochs_times(pair):
    teacher = pair[1]
    settings = {**MINILLM_REFERENCE, "batch_size": 2}
    method = MiniLLM(context(settings, teacher, VOCABULARY))
    assert method.steps_per_round == 8

    rounds = []

    def sample(prompts, temperature, mix):
        assert (mix, temperature) == (0.2, 1.0)
        rounds.append([prompt.seed for prompt in prompts])
        log, hidden = torch.tensor([-1.0, -2.0]), torch.randn(2, 8)
        response = (torch.tensor([1, END]), True, log, log - 0.5, log - 0.1, hidden)
        return [Response(*response) for _ in prompts]

    seen = []
    for step in range(8):
        method.prepare(step, sample)
        seen += [row.id for row in method.parts(step)[0].rows]
    assert len(rounds) == 1
    assert sorted(seen) == sorted([0, 1, 2, 3] * 4)
    restored = MiniLLM(context(settings, teacher, VOCABULARY))
    restored.restore(method.state())
    again = [row for step in range(8) for row in restored.parts(step)[0].rows]
    assert [row.id for row in again] == seen
    by_id = {row.id: row for row in method.rollouts}
    for row in again:
        assert (row.prompt, row.response) == (by_id[row.id].prompt, by_id[row.id].response)
        assert torch.equal(row.teacher_hidden, by_id[row.id].teacher_hidden)
        assert torch.equal(row.mixed, by_id[row.id].mixed)
    restored.prepare(7, sample)
    assert len(rounds) == 1
    restored.prepare(8, sample)
    assert len(rounds) == 2 and not set(rounds[0]) & set(rounds[1])


def test_language_modelling_term_mixes_labels_and_teacher(pair):
    student, teacher = pair
    corpus = Dataset.from_dict({"input_ids": [[1, 2, 3, 1], [2, 2, 1, 0]]})
    settings = {**MINILLM_PAPER, "lm_weight": 2.0, "lm_teacher_share": 0.25, "lm_batch_size": 2}
    method = MiniLLM(context(settings, teacher, VOCABULARY, corpus=corpus))
    assert method.part_sizes() == [4, 2]
    part = method.language_modelling(0)
    loss, statistics = part.loss(student, part.rows)
    ids = torch.tensor(corpus["input_ids"])
    q = student(ids).logits[:, :-1].log_softmax(-1)
    p = teacher(ids).logits[:, :-1].log_softmax(-1)
    label = -q.gather(-1, ids[:, 1:, None]).mean()
    divergence = (p.exp() * (p - q)).sum(-1).mean()
    assert loss.item() == pytest.approx((2 * (0.75 * label + 0.25 * divergence)).item())
    assert statistics["lm_loss"].item() == pytest.approx(loss.item() / 2)
