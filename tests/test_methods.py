"""What methods share: batches as pure functions of the step, losses over labels and teacher."""

from collections import Counter

import pytest
import torch
from models_for_tests import END, MINILLM_REFERENCE, context, tiny_gpt2

from takd.decoding.sampling import Decoding, draw
from takd.losses.batch import RightPadded
from takd.losses.teacher_logits import LiveTeacher
from takd.methods.base import Example, batch_indices, laid_out, permutation
from takd.methods.kd import DIVERGENCES, Kd
from takd.methods.minillm import MiniLLM
from takd.methods.schedule import learning_rate
from takd.methods.sft import Sft
from takd.methods.token_losses import label_and_divergence_loss

VOCABULARY = 11
ROWS = [
    Example(0, 0, [1, 2, 3], [4, 5, END]),
    Example(1, 1, [7], [8, END]),
    Example(2, 2, [2, 2], [END]),
]
TOKENS = 6


@pytest.fixture(scope="module")
def pair():
    """Student and teacher."""
    return tiny_gpt2(1, VOCABULARY), tiny_gpt2(2, VOCABULARY, width=32)


def log_probabilities(model, row, vocabulary=VOCABULARY):
    """(response tokens, vocabulary) by one unpadded pass."""
    ids = torch.tensor([[*row.prompt, *row.response]])
    logits = model(ids).logits[0, len(row.prompt) - 1 : -1, :vocabulary]
    return logits.log_softmax(-1)


def test_every_row_once_an_epoch_in_an_order_of_its_own():
    steps = [batch_indices(10, 4, step, 3) for step in range(5)]
    whole = [index for step in steps for index in step]
    assert Counter(whole[:10]) == Counter(whole[10:]) == Counter(range(10))
    assert whole[:10] != whole[10:]
    assert batch_indices(10, 4, 3, 3) == steps[3]  # needs no step before it
    assert batch_indices(10, 4, 3, 4) != steps[3]


def test_a_batch_may_be_larger_than_the_data():
    assert Counter(batch_indices(3, 7, 0, 1)) in (
        {0: 2, 1: 2, 2: 3},
        {0: 2, 1: 3, 2: 2},
        {0: 3, 1: 2, 2: 2},
    )


def test_permutations_follow_their_whole_key():
    keys = [(1,), (2,), (1, 0), (0, 1), (1, 2), (2, 1)]
    seen = {tuple(permutation(50, *key).tolist()) for key in keys}
    assert len(seen) == len(keys)
    assert torch.equal(permutation(50, 1, 2), permutation(50, 1, 2))


def test_positions_that_predict_responses():
    batch = laid_out(ROWS, torch.device("cpu"))
    assert batch.ids_bt.shape == (3, 6)
    assert batch.targets_n.tolist() == [4, 5, END, 8, END, END]
    predicted_from = batch.ids_bt.flatten()[batch.places_n].tolist()
    assert predicted_from == [3, 4, 5, 7, 8, 2]
    assert RightPadded.of([([], [7, 8, 9])], torch.device("cpu")).targets_n.tolist() == [8, 9]


def teacher_loss(teacher, ratio=1.0, vocabulary=VOCABULARY, divergence="forward_kl"):
    view = LiveTeacher(teacher, vocabulary)
    return label_and_divergence_loss(view, DIVERGENCES[divergence], ratio, vocabulary, TOKENS)


def test_kd_from_itself_has_no_gradient():
    student, teacher = tiny_gpt2(1, VOCABULARY), tiny_gpt2(1, VOCABULARY)
    loss, _ = teacher_loss(teacher)(student, ROWS)
    loss.backward()
    assert loss.abs() < 1e-6
    assert max(p.grad.abs().max() for p in student.parameters()) < 1e-4
    assert all(p.grad is None for p in teacher.parameters())


def test_a_padded_vocabulary_is_cut(pair):
    """Two models of one tokenizer whose embeddings are padded to 16 and 13 entries."""
    student, teacher = tiny_gpt2(1, 16), tiny_gpt2(2, 13)
    loss, _ = teacher_loss(teacher)(student, ROWS)
    expected = 0.0
    for row in ROWS:
        q, p = log_probabilities(student, row), log_probabilities(teacher, row)
        expected += (p.exp() * (p - q)).sum().item()
    assert loss.item() == pytest.approx(expected / TOKENS, rel=1e-4)


def test_methods_train_on_labelled_rows(pair):
    student, teacher = pair
    settings = {
        "batch_size": 4,
        "ratio": 0.5,
        "divergence": "forward_kl",
        "teacher_outputs": "live",
    }
    parts = [m(context(settings, teacher, VOCABULARY)).parts(0) for m in (Sft, Kd)]
    for (part,) in parts:
        assert sorted(row.id for row in part.rows) == [0, 1, 2, 3]
    sft, kd = (part.loss(student, part.rows)[0].item() for (part,) in parts)
    assert sft != kd


def test_shares_of_micro_batches_add_up_to_the_batch(pair):
    student, teacher = pair
    loss = teacher_loss(teacher, 0.5)
    whole = loss(student, ROWS)[0].item()
    parts = sum(loss(student, [row])[0].item() for row in ROWS)
    assert parts == pytest.approx(whole, rel=1e-5)


def test_a_round_of_minillm_runs_the_teacher_once(monkeypatch):
    """One decoding of each model, and in the inner epochs the student alone."""
    student, teacher = tiny_gpt2(1, VOCABULARY, width=8), tiny_gpt2(2, VOCABULARY, width=8)
    counts = {"student": 0, "teacher": 0}
    for name, model in (("student", student), ("teacher", teacher)):

        def spy(*args, name=name, real=model.base_model.forward, **kwargs):
            counts[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(model.base_model, "forward", spy)
    method = MiniLLM(context({**MINILLM_REFERENCE, "batch_size": 2}, teacher, VOCABULARY))

    def sample(prompts, temperature, mix):
        more = {"end_token": END, "vocabulary": VOCABULARY, "micro_batch": 8}
        return draw(student, prompts, Decoding(3), **more, teacher=teacher, teacher_mix=mix)

    method.prepare(0, sample)
    drawing = dict(counts)
    longest = max(len(row.response) for row in method.rollouts)
    assert drawing == {"student": longest, "teacher": longest}
    for step in range(method.steps_per_round):
        method.prepare(step, sample)
        for part in method.parts(step):
            part.loss(student, part.rows)[0].backward()
    assert counts == {"student": longest + 8, "teacher": longest}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_learning_rate(schedule, expected):
    settings = {"learning_rate": 1.0, "warmup_steps": 2, "schedule": schedule}
    rates = [learning_rate(settings, step, 6) for step in range(6)]
    assert rates == pytest.approx(expected, abs=1e-5)
