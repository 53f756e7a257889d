"""Methods that may learn from responses of the student: their losses, and where a step's responses come from."""

import functools
import importlib
import json
import math
from collections import Counter
from dataclasses import dataclass

import loss_adaptive  # noqa: F401 - a method of the tests
import oracle
import pytest
import torch
from models_for_tests import END, context, tiny_gpt2
from safetensors.torch import load_file, save_file
from workspace import STUDENT, TEACHER, TIMED, Workspace

from takd.decoding.sampling import Decoding, Response, draw
from takd.experiment.schema import load_schema
from takd.methods.abkd import Abkd
from takd.methods.amid import Amid
from takd.methods.base import Example, batch_indices, packed, prompts_of, unpacked
from takd.methods.distillm import DistiLLM
from takd.methods.gkd import Gkd
from takd.methods.seqkd import SeqKd
from takd.methods.skd import Skd
from takd.methods.taid import Taid
from takd.runtime.stage import Interrupted, Stage
from takd.training import train as training

VOCABULARY = 11
SETTINGS = {
    "batch_size": 4,
    "steps": 1000,
    "epochs": None,
    "on_policy": "mixed",
    "temperature": 0.7,
    "on_policy_share": 0.5,
    "initial_share": 0.0,
    "share_step": 0.1,
    "loss_rise": 0.25,
    "capacity": 10,
    "ratio": 1.0,
}
METHODS = {
    "gkd": (Gkd, {"beta": 0.3}),
    "distillm": (DistiLLM, {"divergence": "skewed_forward_kl", "skew": 0.1}),
    "distillm, reverse": (DistiLLM, {"divergence": "skewed_reverse_kl", "skew": 0.1}),
    "abkd": (Abkd, {"alpha": 0.2, "beta": 0.7}),
    "taid": (Taid, {"target_start": 0.4, "target_alpha": 5e-4, "target_beta": 0.99}),
    "amid": (Amid, {"from": "teacher", "skew": 0.1, "alpha": 0.0}),
    "amid, student": (Amid, {"from": "student", "skew": 0.3, "alpha": 3.0}),
    "skd": (Skd, {"divergence": "forward_kl", "teacher_top_k": 3}),
    "skd, reverse": (Skd, {"divergence": "reverse_kl", "teacher_top_k": VOCABULARY}),
}


def of(paper, **settings):
    """A paper's divergence of a teacher's and a student's probabilities at one token."""
    return lambda p, q: paper(
        *(x.detach().double().log().numpy()[None] for x in (q, p)), **settings
    )[0]


PLAIN = {
    "gkd": of(oracle.jensen_shannon, beta=0.3),
    "distillm": of(oracle.skewed_forward_kl, skew=0.1),
    "distillm, reverse": of(oracle.skewed_reverse_kl, skew=0.1),
    "abkd": of(oracle.alpha_beta, alpha=0.2, beta=0.7),
    "taid": of(oracle.taid, target=0.4),
    "amid": of(oracle.amid, share=0.1, alpha=0.0),
    "amid, student": of(oracle.amid, of="student", share=0.3, alpha=3.0),
    "skd": of(oracle.forward_kl),
    "skd, reverse": of(oracle.reverse_kl),
}
every = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def pair():
    """Student and teacher."""
    return tiny_gpt2(1, VOCABULARY), tiny_gpt2(2, VOCABULARY, width=32)


def make(name="gkd", teacher=None, seed=5, **settings):
    kind, own = METHODS[name]
    teacher = teacher or any_teacher()
    return kind(context({**SETTINGS, **own, **settings}, teacher, VOCABULARY, seed=seed))


@functools.cache
def any_teacher():
    return tiny_gpt2(2, VOCABULARY)


class Student:
    """Answers every prompt with tokens that tell which noise it had, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, temperature, teacher_mix):
        assert teacher_mix is None, "the teacher has no part in the drawing"
        self.asked.append((temperature, list(prompts)))
        none = torch.zeros(0)
        texts = [[1 + p.seed % 10, 1 + p.key % 10, END][p.key % 2 :] for p in prompts]
        return [Response(torch.tensor(text), True, none, none, none, none) for text in texts]


def never(prompts, temperature, teacher_mix):
    raise AssertionError("nothing is to be drawn")


def drawing(student, teacher=None):
    """Responses of a real model, and of its teacher where it takes part."""

    def sample(prompts, temperature, teacher_mix, teacher_top_k=0):
        decoding = Decoding(6, temperature=temperature, teacher_top_k=teacher_top_k)
        options = {"end_token": END, "vocabulary": VOCABULARY, "micro_batch": 8}
        assert (teacher_mix is None) == (teacher_top_k == 0)
        helper = None if teacher_mix is None else teacher or any_teacher()
        return draw(student, prompts, decoding, **options, teacher=helper)

    return sample


def rows_of(method, step, sample):
    method.prepare(step, sample)
    (part,) = method.parts(step)
    return part.rows


def labelled(step, seed=5):
    """Ids of the training rows of a step; the made-up rows are numbered by place."""
    return batch_indices(4, 4, step, seed)


def probabilities(model, row):
    """(response tokens, vocabulary) by one unpadded pass."""
    ids = torch.tensor([[*row.prompt, *row.response]])
    return model(ids).logits[0, len(row.prompt) - 1 : -1].softmax(-1)


def plain_loss(name, pair, rows, ratio):
    total, tokens = 0.0, 0
    for row in rows:
        student, teacher = (probabilities(model, row) for model in pair)
        for q, p, label in zip(student, teacher, row.response, strict=True):
            total += ratio * PLAIN[name](p, q) - (1 - ratio) * q[label].log().item()
            tokens += 1
    return total / tokens


# -- losses ----------------------------------------------------------------------------------------


@every
def test_loss_on_responses_of_the_student_is_the_divergence_alone(name, pair):
    """They are no labels, whatever the ratio."""
    method = make(name, pair[1], on_policy_share=1.0, ratio=0.3)
    method.prepare(0, drawing(*pair))
    (part,) = method.parts(0)
    loss, _ = part.loss(pair[0], part.rows)
    assert sorted(row.id for row in part.rows) == [0, 1, 2, 3]
    assert loss.item() == pytest.approx(plain_loss(name, pair, part.rows, 1.0), rel=1e-4)


@every
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(name):
    student, teacher = tiny_gpt2(1, VOCABULARY), tiny_gpt2(1, VOCABULARY)
    method = make(name, teacher, on_policy_share=1.0)
    method.prepare(0, drawing(student, teacher))
    (part,) = method.parts(0)
    loss, _ = part.loss(student, part.rows)
    loss.backward()
    assert loss.abs() < 1e-5
    assert max(p.grad.abs().max() for p in student.parameters()) < 1e-4
    assert all(p.grad is None for p in teacher.parameters())


def test_sequence_level_distillation_takes_the_rows_as_labels(pair):
    """The teacher's responses stand where labels do; the teacher itself is not needed."""
    method = SeqKd(context({"batch_size": 4}, None, VOCABULARY))
    (part,) = method.parts(0)
    loss, _ = part.loss(pair[0], part.rows)
    assert sorted(row.id for row in part.rows) == [0, 1, 2, 3]
    assert loss.item() == pytest.approx(plain_loss("gkd", pair, part.rows, 0.0), rel=1e-4)


def test_modules_are_found_by_the_names_of_their_methods():
    found = {
        name: importlib.import_module(f"takd.methods.{name}").METHOD
        for name in METHODS
        if "," not in name
    }
    rivals = {"taid": Taid, "amid": Amid, "skd": Skd}
    assert found == {"gkd": Gkd, "distillm": DistiLLM, "abkd": Abkd, **rivals}
    assert importlib.import_module("takd.methods.seqkd").METHOD is SeqKd


def test_shares_are_logged_as_means_over_the_batch(pair):
    """Sums over micro-batches of any size."""
    for share, drawn in ((0.0, 0.0), (1.0, 1.0)):
        method = make("gkd", pair[1], on_policy_share=share)
        rows = rows_of(method, 0, drawing(pair[0]))
        (part,) = method.parts(0)
        pieces = [part.loss(pair[0], piece)[1] for piece in (rows[:1], rows[1:])]
        for name, expected in (("student_share", share), ("student_responses", drawn)):
            assert sum(piece[name].item() for piece in pieces) == pytest.approx(expected)


# -- off and mixed --------------------------------------------------------------------------------


def test_off_takes_the_labelled_rows():
    method = make(on_policy="off", on_policy_share=1.0, initial_share=1.0)
    for step in range(5):
        rows = rows_of(method, step, never)
        assert [row.id for row in rows] == labelled(step)
        assert [row.index for row in rows] == labelled(step)


def test_mixed_lets_the_student_answer_the_prompts_of_the_step():
    method, student = make(on_policy_share=1.0), Student()
    fixed = make(on_policy="off")
    for step in range(3):
        rows, data = rows_of(method, step, student), rows_of(fixed, step, never)
        temperature, prompts = student.asked[-1]
        assert temperature == 0.7
        assert [p.tokens for p in prompts] == [row.prompt for row in rows]
        assert [row.prompt for row in rows] == [row.prompt for row in data]
        assert [row.id for row in rows] == [p.key for p in prompts] == labelled(step)
        answers = [[1 + p.seed % 10, 1 + p.key % 10, END][p.key % 2 :] for p in prompts]
        assert [row.response for row in rows] == answers
        # stored outputs are of the data's responses
        assert {row.index for row in rows} == {-1}
    assert len(student.asked) == 3
    assert not method.buffer, "a checkpoint need not hold what is never read again"


def test_a_prompt_gets_other_noise_whenever_it_is_drawn():
    method, student = make(on_policy_share=1.0), Student()
    for step in range(50):
        rows_of(method, step, student)
    seeds = [prompt.seed for _, prompts in student.asked for prompt in prompts]
    assert len(set(seeds)) == len(seeds) == 200
    twice = prompts_of([Example(3, -1, [1], [2])] * 2, 5, 0)
    assert twice[0].seed != twice[1].seed


def test_mixed_draws_in_a_share_of_the_steps():
    count, share = 4000, 0.3
    method = make(on_policy_share=share)
    drawn = torch.tensor([float(method.source(step) == "student") for step in range(count)])
    deviation = (share * (1 - share) / count) ** 0.5
    assert abs(drawn.mean() - share) < 4 * deviation
    # one step says nothing of the next
    both = (drawn[1:] * drawn[:-1]).mean()
    assert abs(both - share**2) < 4 * (share**2 / count) ** 0.5
    again, other = make(on_policy_share=share), make(on_policy_share=share, seed=6)
    same = [float(again.source(step) == "student") for step in reversed(range(count))]
    assert same[::-1] == drawn.tolist()
    assert [float(other.source(step) == "student") for step in range(count)] != drawn.tolist()
    nothing = make(on_policy_share=0.0)
    assert {nothing.source(step) for step in range(200)} == {"data"}
    always = make(on_policy_share=1.0)
    assert {always.source(step) for step in range(200)} == {"student"}


def test_mixed_takes_the_labelled_rows_in_the_other_steps():
    method, student = make(), Student()
    sources = Counter()
    for step in range(40):
        rows = rows_of(method, step, student)
        sources[method.source(step)] += 1
        if method.source(step) == "data":
            assert [row.index for row in rows] == labelled(step)
        else:
            assert {row.index for row in rows} == {-1}
    assert sources["student"] == len(student.asked) > 5
    assert sources["data"] > 5


def test_responses_are_those_of_the_student_of_now(pair):
    student = tiny_gpt2(3, VOCABULARY)
    method = make(on_policy_share=1.0)
    for step in range(3):
        rows = rows_of(method, step, drawing(student))
        data = make(on_policy="off")
        prompts = prompts_of(rows_of(data, step, never), 5, step)
        now, before = (
            [r.tokens.tolist() for r in drawing(model)(prompts, 0.7, None)]
            for model in (student, tiny_gpt2(3, VOCABULARY))
        )
        assert [row.response for row in rows] == now
        assert (now == before) == (step == 0)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))


def test_a_step_is_prepared_once():
    method, student = make(on_policy_share=1.0), Student()
    rows = rows_of(method, 0, student)
    assert rows_of(method, 0, never) == rows
    with pytest.raises(AssertionError):
        method.parts(1)


# -- adaptive --------------------------------------------------------------------------------------


def test_the_share_grows_where_the_dev_loss_has_risen_enough_since_it_grew_last():
    method = make("distillm", on_policy="adaptive")
    # loss_rise is 0.25; a loss that falls moves nothing, not even the mark
    seen = [
        *[(0, 2.0, 0.0), (10, 2.125, 0.0), (20, 2.25, 0.1), (30, 2.375, 0.1), (40, 1.0, 0.1)],
        *[(50, 2.25, 0.1), (60, 2.5, 0.2), (70, float("nan"), 0.2), (80, 3.0, 0.3)],
    ]
    for step, loss, share in seen:
        method.observe(step, loss)
        assert method.student_share() == pytest.approx(share), step
    for step in range(90, 200):
        method.observe(step, float(step))
    assert method.student_share() == 1.0


def test_adaptive_begins_with_data_alone():
    method = make(on_policy="adaptive")
    method.observe(0, 2.0)
    assert {method.source(step) for step in range(300)} == {"data"}
    method.observe(300, 3.0)
    sources = Counter(method.source(step) for step in range(300, 2300))
    assert 140 < sources["student"] < 260  # a tenth


def test_new_responses_are_drawn_until_the_buffer_is_full_and_then_ever_less():
    method, student = make(on_policy="adaptive", initial_share=1.0), Student()
    fresh, said = [], []
    for step in range(1000):
        rows = rows_of(method, step, student)
        drawn = len(student.asked) > len(fresh)
        if drawn:
            fresh.append(step)
            said += rows
        else:
            # distinct places of what the student said last, never of the data
            assert all(any(row is kept for kept in said[-10:]) for row in rows)
            assert len({id(row) for row in rows}) == 4
        assert list(method.buffer) == said[-10:]
    # 1 - t/T: three quarters of the first half and one of the second, with room for 4 deviations
    early = sum(step < 500 for step in fresh)
    assert abs(early - 375) < 4 * 500**0.5 * 0.41
    assert abs(len(fresh) - early - 125) < 4 * 500**0.5 * 0.41


def test_nothing_is_taken_out_of_a_buffer_that_is_not_full():
    """Even late in a run, when almost nothing is drawn any more."""
    for seed in range(20):
        method, student = (
            make(on_policy="adaptive", initial_share=1.0, steps=5, seed=seed),
            Student(),
        )
        for step in range(5):
            rows_of(method, step, student)
            # the third draw fills the ten places
            assert len(student.asked) == step + 1 or step > 2


def test_replayed_rows_vary_from_step_to_step():
    method, student = make(on_policy="adaptive", initial_share=1.0, steps=10**9), Student()
    for step in range(3):
        rows_of(method, step, student)
    replays = [
        tuple(id(row) for row in rows_of(method, step, never)) for step in range(10**9 - 50, 10**9)
    ]
    assert len(set(replays)) > 40
    assert len({place for replay in replays for place in replay}) == 10


def test_the_student_takes_its_share_of_the_steps():
    method, student = make(on_policy="adaptive", initial_share=0.4), Student()
    taken = sum(
        {row.index for row in rows_of(method, step, student)} == {-1} for step in range(1000)
    )
    assert abs(taken - 400) < 4 * (1000 * 0.4 * 0.6) ** 0.5
    # and 1 - t/T of them draws, on average over the run a half
    assert abs(len(student.asked) - 200) < 4 * (1000 * 0.2 * 0.8) ** 0.5


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_policy", "stop"),
    [("off", 20), ("mixed", 20), ("adaptive", 1), ("adaptive", 20), ("adaptive", 41)],
)
def test_a_restored_method_goes_on_as_if_it_had_never_stopped(on_policy, stop, tmp_path):
    settings = {"on_policy": on_policy, "initial_share": 0.6, "steps": 60}

    def run(method, steps):
        student, taken = Student(), []
        for step in steps:
            taken.append(rows_of(method, step, student))
            method.observe(step + 1, 2.0 + 0.1 * step)
        return taken, len(student.asked)

    whole = make(**settings)
    whole.observe(0, 2.0)
    expected, _ = run(whole, range(60))
    first = make(**settings)
    first.observe(0, 2.0)
    run(first, range(stop))
    save_file(first.state(), tmp_path / "method.safetensors")
    second = make(**settings)
    second.restore(load_file(tmp_path / "method.safetensors"))
    # the step that the checkpoint was written after is still there
    assert rows_of(second, stop - 1, never) == rows_of(first, stop - 1, never)
    taken, _ = run(second, range(stop, 60))
    assert taken == expected[stop:]
    assert second.student_share() == whole.student_share()
    assert list(second.buffer) == list(whole.buffer)
    if on_policy == "adaptive":
        assert second.student_share() > 0.6


def test_the_target_follows_the_equations_of_its_paper():
    """Linear growth, or faster where the loss falls; a step without a finite gradient changes nothing."""
    start, alpha, beta, steps = 0.2, 0.3, 0.5, 10
    settings = {"target_start": start, "target_alpha": alpha, "target_beta": beta, "steps": steps}
    method = make("taid", **settings)
    losses = [3.0, 2.0, 2.5, 1.0, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8]
    expected, momentum, shares = start, 0.0, []
    for step, loss in enumerate(losses):
        assert method.target == pytest.approx(expected)
        shares.append(expected)
        method.learned(step, {"divergence": loss, "gradient_norm": math.nan})
        method.learned(step, {"divergence": loss, "gradient_norm": 1.0})
        if step:
            fall = (losses[step - 1] - loss) / losses[step - 1]
            momentum = beta * momentum + (1 - beta) * fall
        linear = start + (1 - start) * (step + 1) / steps
        more = alpha / (1 + math.exp(-momentum)) * (1 - expected)
        expected = min(1.0, max(linear, expected + more))
        if step == 4:
            again = make("taid", **settings)
            again.restore({**method.state()})
            method = again
    assert method.target == 1.0 and shares == sorted(shares)
    assert any(share > start + (1 - start) * at / steps + 1e-3 for at, share in enumerate(shares))


def test_a_teacher_replaces_what_it_finds_unlikely(pair):
    """The expected share is logged, and survives a checkpoint; at the whole vocabulary the teacher is not asked."""
    student, teacher = pair
    shares = []
    for top_k in (1, 3, 8, VOCABULARY):
        method = make("skd", teacher, on_policy_share=1.0, teacher_top_k=top_k, temperature=1.0)
        rows = rows_of(method, 0, drawing(student, teacher))
        (part,) = method.parts(0)
        expected = []
        for row in rows:
            p, q = probabilities(teacher, row), probabilities(student, row)
            likeliest = p.argsort(-1, descending=True)[:, :top_k]
            expected += (1 - q.gather(-1, likeliest).sum(-1)).tolist()
        shares.append(part.loss(student, rows)[1]["replaced"].item())
        assert shares[-1] == pytest.approx(sum(expected) / len(expected), abs=1e-5)
        again = make("skd", teacher, on_policy_share=1.0, teacher_top_k=top_k)
        again.restore(method.state())
        assert again.constants() == method.constants() and again.rows(0) == rows
    assert 1 > shares[0] > shares[1] > shares[2] > shares[3] == 0
    alone = rows_of(make("gkd", on_policy_share=1.0, temperature=1.0), 0, drawing(student))
    assert rows == alone
    method = make("skd", on_policy="off")
    rows_of(method, 0, never)
    assert method.constants()["replaced"] == 0


def test_a_teacher_that_replaces_reads_nothing_again(pair):
    """The hidden states of its decoding are kept; labels it reads once."""
    teacher = tiny_gpt2(2, VOCABULARY, width=32)
    passes, found = [], set()
    teacher.base_model.register_forward_hook(lambda *_: passes.append(0))
    method = make("skd", teacher)
    for step in range(8):
        rows = rows_of(method, step, drawing(pair[0], teacher))
        (part,) = method.parts(step)
        passes.clear()
        losses = [part.loss(pair[0], rows[start : start + 2])[0].item() for start in (0, 2)]
        expected = {"student": (0, "kept"), "data": (2, "")}[method.source(step)]
        assert (len(passes), part.outputs) == expected
        exact = plain_loss("skd", (pair[0], teacher), rows, 1.0)
        assert sum(losses) == pytest.approx(exact, rel=1e-4)
        found.add(method.source(step))
    assert found == {"student", "data"}


def test_no_gradient_flows_through_the_target(pair):
    student_nv = torch.randn(5, VOCABULARY, requires_grad=True)
    teacher_nv = torch.randn(5, VOCABULARY).log_softmax(-1)
    log_q_nv = student_nv.log_softmax(-1)
    make("taid", pair[1]).divergence(log_q_nv, teacher_nv).sum().backward()
    target_nv = (0.6 * log_q_nv + 0.4 * teacher_nv).detach().softmax(-1)
    # of a cross-entropy with a constant target
    torch.testing.assert_close(student_nv.grad, log_q_nv.detach().exp() - target_nv)


def test_rows_survive_a_checkpoint():
    rows = [Example(7, -1, [1, 2], [3]), Example(8, 4, [], [5, 6, END]), Example(9, 0, [1], [])]
    assert unpacked(packed(rows)) == rows
    assert unpacked({**packed(rows, "a."), **packed([], "b.")}, "a.") == rows
    assert unpacked(packed([])) == []


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"),
    [(7, None, 7), (None, 2.5, 4), (7, 2.5, 4), (3, 2.5, 3), (None, 0.01, 1)],
)
def test_the_shorter_of_steps_and_epochs_ends_a_run(steps, epochs, expected):
    """Four rows in batches of 3."""
    assert make(steps=steps, epochs=epochs, batch_size=3).total_steps() == expected


# what `objective: exact` sets
EXACT = {
    **load_schema()["$defs"]["methods"]["properties"]["minillm"]["x-presets"]["objective"]["exact"],
    "rollouts_per_round": 4,
    "lm_weight": 0.0,
}


# -- whole runs ------------------------------------------------------------------------------------


@dataclass
class Interruptible(Stage):
    """A stage that is asked to stop after some steps."""

    steps_left: float = math.inf

    def should_stop(self):
        self.steps_left -= 1
        return self.steps_left <= 0


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A prepared folder with a teacher and a start."""
    space = Workspace(tmp_path_factory.mktemp("workspace"))
    for name, part, seed, said in (
        ("trained-teacher", "model", 1, TEACHER),
        ("trained-student", "init", 2, STUDENT),
    ):
        tiny_gpt2(seed, len(space.tokenizer)).save_pretrained(space.folder / name / part)
        space.manifest(name, **said)
    return space


def train(space, name, method, stops=(), **settings):
    """Train in this process, in as many attempts as there are stops; weights, log, and what was said."""
    spec = space.spec(method, steps=16, evaluate_every=4, dropout=0.0, **settings)
    inputs = {"base": "student", "teacher": "trained-teacher", "init": "trained-student"}
    inputs |= {data: data for data in ("tokenizer", "train", "dev")}
    folder = space.folder / name
    outputs = {"model": "model", "metrics": "metrics.jsonl", "manifest": "manifest.json"}
    arguments = {
        "inputs": {key: [space.folder / f"{of}/manifest.json"] for key, of in inputs.items()},
        "outputs": {key: folder / file for key, file in outputs.items()},
    }
    for stop in stops:
        with pytest.raises(Interrupted):
            training.run(Interruptible(spec, "code", **arguments, steps_left=stop))
    training.run(Interruptible(spec, "code", **arguments))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if k not in TIMED} for line in lines]
    return load_file(folder / "model" / "model.safetensors"), lines


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("seqkd", {}),
        ("gkd", {}),
        ("distillm", {"initial_share": 0.7, "capacity": 8}),
        ("abkd", {}),
        ("taid", {"target_alpha": 0.05}),
        ("amid", {"on_policy": "mixed"}),
        ("skd", {"on_policy": "adaptive", "initial_share": 0.7, "capacity": 8}),
        ("loss_adaptive", {}),
        ("minillm", EXACT),
    ],
)
def test_a_run_in_pieces_ends_like_one_in_a_piece(method, settings, workspace):
    whole, lines = train(workspace, f"whole-{method}", method, **settings)
    pieces, in_pieces = train(workspace, f"pieces-{method}", method, (1, 5, 3), **settings)
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    assert lines == in_pieces
    steps = [line for line in lines if line["kind"] == "train"]
    assert len(steps) == 16
    if method == "taid":  # the loss is that from a target which moves away
        targets = [line["target"] for line in steps]
        assert targets == sorted(targets) and targets[0] == 0.4 and targets[-1] > 0.9
    else:
        falling = "single_step_kl" if method == "minillm" else "loss"
        assert sum(line[falling] for line in steps[-4:]) < sum(line[falling] for line in steps[:4])
    if method == "skd":
        assert 0 < min(line["replaced"] for line in steps if line["student_responses"]) < 1
    if method in ("gkd", "distillm", "skd"):
        assert 0 < sum(line["student_responses"] for line in steps) < 16
    if method == "loss_adaptive":
        shares = [line["share"] for line in steps]
        assert shares == sorted(shares) and len(set(shares)) > 8
        assert any(share > 0.1 * step / 16 + 0.01 for step, share in enumerate(shares[1:], 1))
