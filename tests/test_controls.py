"""Controls of a chain: what each trains, under which names, from which start, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from models_for_tests import END, MINILLM_REFERENCE, context, tiny_gpt2, token_log_probabilities
from test_experiment import GOOD, edit, read
from test_methods_on_policy import PLAIN, VOCABULARY, Interruptible, make
from workspace import STUDENT, TEACHER, TIMED, Workspace

from takd.decoding.sampling import Decoding, draw
from takd.experiment import controls, specs
from takd.experiment.experiment import Experiment
from takd.experiment.labels import full_text
from takd.experiment.lineage import Node
from takd.methods.base import permutation
from takd.methods.kd import Kd
from takd.methods.minillm import MiniLLM
from takd.methods.other_prompts import other_prompts
from takd.runtime.errors import InputError
from takd.runtime.stage import Interrupted
from takd.training import train as training

DIRECT = "models: [teacher, student], methods: [minillm]"
CHAINS = GOOD[GOOD.index("  - {models: [teacher, student]") : GOOD.index("seeds:")]


def with_chains(folder: Path, *chains: str, text: str = GOOD) -> Experiment:
    lines = "".join(f"  - {{{chain}}}\n" for chain in (DIRECT, *chains))
    return read(folder, edit(CHAINS, lines, text))


# -- the chains that are trained -------------------------------------------------------------------


def test_each_control_is_a_model_of_its_own_from_the_start_of_the_student(tmp_path: Path) -> None:
    names = ("self_teacher", "shuffled_prompts", "constant_advantage")
    experiment = with_chains(tmp_path, *(f"{DIRECT}, control: {name}" for name in names))
    lineages = [chain["lineage"] for chain in experiment.chains]
    assert lineages == [
        "teacher-sft__student-minillm",
        "student-sft__student+self-minillm",
        "teacher-sft__student+shuffled-minillm",
        "teacher-sft__student+constant-minillm",
    ]
    # one supervised start for all, for each seed; the teacher with the first seed alone
    assert experiment.heads == ["teacher"]
    assert sorted(n for n in experiment.nodes if n.lineage.endswith("-sft")) == [
        *(Node("student-sft", seed) for seed in (1, 2)),
        Node("teacher-sft", 1),
    ]
    plain, *found = (specs.train(experiment, lineage, 2) for lineage in lineages)
    assert [spec["teacher"] for spec in found] == [
        ["student-sft", 2],
        ["teacher-sft", 1],
        ["teacher-sft", 1],
    ]
    changed = [
        {},
        {"teacher_prompts": "shuffled"},
        {
            "advantage": "constant",
            "teacher_mix": 0.0,
            "single_step_weight": 0.0,
            "lm_teacher_share": 0.0,
        },
    ]
    for spec, settings in zip(found, changed, strict=True):
        assert spec["settings"] == plain["settings"] | settings
        assert (spec["init"], spec["model"]) == (["student-sft", 2], "student")
    assert experiment.trained_with("student-sft", 2, lineages[1]) == ["student-sft", 2]
    compared = specs.likelihoods(experiment, lineages[1], 2, "heldout")["teachers"]
    assert compared == {role: ["student-sft", 2] for role in ("direct", "first")}
    assert [full_text(lineage) for lineage in lineages[1:]] == [
        "MiniLLM (self-taught): student → student",
        "MiniLLM (shuffled prompts): teacher → student",
        "MiniLLM (constant advantage): teacher → student",
    ]
    assert specs.card(experiment, lineages[2], 1)["models"].keys() == {"teacher", "student"}


def test_settings_of_the_student_are_those_of_its_controls(tmp_path: Path) -> None:
    own = "    training: {minillm: {steps: 7, teacher_mix: 0.4}}\n"
    text = edit("  hub.model:", f"{own}  hub.model:")
    experiment = with_chains(tmp_path, f"{DIRECT}, control: constant_advantage", text=text)
    settings = experiment.training("student+constant", "minillm")
    assert (settings["steps"], settings["teacher_mix"]) == (7, 0.0)


def test_through_assistants_only_the_last_hop_is_a_control(tmp_path: Path) -> None:
    chain = "models: [teacher, assistant, student], methods: [[kd, minillm], minillm]"
    experiment = with_chains(
        tmp_path, chain, f"{chain}, control: shuffled_prompts", f"{chain}, control: self_teacher"
    )
    assert experiment.lineages[3:] == [
        "teacher-sft__assistant-kd__student+shuffled-minillm",
        "teacher-sft__assistant-minillm__student+shuffled-minillm",
        "student-sft__student+self-minillm",
    ]
    through, _, shuffled, _, taught = experiment.lineages[1:]
    assert controls.controls(through, shuffled) and controls.controls(through, taught)
    direct = experiment.lineages[0]
    assert controls.controls(direct, taught) and not controls.controls(direct, shuffled)
    assert not controls.controls(taught, taught) and not controls.controls("student-sft", taught)
    assert controls.controls(direct, "student+sft-sft")
    assert not controls.controls("teacher-sft__assistant-kd", "student+sft-sft")


def test_sft_of_the_same_cost_takes_a_budget(tmp_path: Path) -> None:
    chain = "models: [teacher, student], methods: [minillm, kd], control: sft"
    text = f"{GOOD}budget: {{flops: 1.0e+15}}\n"
    experiment = with_chains(tmp_path, chain, f"{DIRECT}, control: self_teacher", text=text)
    assert experiment.lineages[1:] == ["student+sft-sft", "student-sft__student+self-minillm"]
    assert experiment.ends == set(experiment.lineages)
    # beside the baseline, of every seed, from the same starting weights and with the same settings
    assert {node.lineage for node in experiment.nodes if node.seed == 2} == {
        *experiment.lineages, "student-sft",
    }  # fmt: skip
    found, plain = (
        specs.train(experiment, f"{name}-sft", 2) for name in ("student+sft", "student")
    )
    assert found["budget"] == {"flops": 1e15} and found["model"] == plain["model"] == "student"
    assert found["settings"] == plain["settings"] | {"steps": None, "epochs": None}
    assert full_text("student+sft-sft") == "SFT (same FLOPs): student"
    compared = specs.likelihoods(experiment, "student+sft-sft", 2, "heldout")["teachers"]
    assert compared == {"first": ["teacher-sft", 1]}
    # a control that has the steps of its settings needs some
    with pytest.raises(InputError, match="neither steps nor epochs for the model 'student'"):
        lines = CHAINS, f"  - {{{DIRECT}, control: self_teacher}}\n"
        read(
            tmp_path,
            edit(*lines, GOOD).replace(
                "minillm: {steps: 20", "minillm: {steps: null, epochs: null"
            ),
        )


KD = "models: [teacher, student], methods: [kd]"
REFUSED = {
    "of one model": ("models: [student], control: self_teacher", "has one model, 'student'"),
    "no such control": (f"{DIRECT}, control: shuffled", "did you mean 'shuffled_prompts'?"),
    "sft without a budget": (f"{DIRECT}, control: sft", "control is sft, but the experiment has no budget"),
    "an advantage of kd": (f"{KD}, control: constant_advantage", "'kd' cannot be; it goes with minillm."),
    "twice": (
        f"{DIRECT}, control: self_teacher}}\n  - {{{DIRECT}, label: b, control: self_teacher",
        "gives student-sft__student+self-minillm again, which chains[1].methods[0] gives",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_control_is_refused(case: str, tmp_path: Path) -> None:
    chain, said = REFUSED[case]
    with pytest.raises(InputError) as raised:
        with_chains(tmp_path, chain)
    assert "mine.yaml, line 2" in str(raised.value) and said in str(raised.value)


@pytest.mark.parametrize(
    ("control", "settings", "said"),
    [
        ("shuffled_prompts", "teacher_outputs: top_k", "reads outputs/train/top_k from the"),
        ("shuffled_prompts", "responses: teacher", "reads generations from the teacher cache"),
        ("self_teacher", "teacher_outputs: hidden", "of which nothing is stored"),
    ],
)
def test_stored_outputs_of_the_teacher_are_refused(
    control: str, settings: str, said: str, tmp_path: Path
) -> None:
    text = edit("kd: {epochs: 2}", f"kd: {{epochs: 2, {settings}}}")
    with pytest.raises(InputError, match=said):
        with_chains(tmp_path, f"{KD}, control: {control}", text=text)
    # the setting itself is refused as the control is
    if control == "shuffled_prompts":
        text = edit("kd: {epochs: 2", "kd: {epochs: 2, teacher_prompts: shuffled", text)
        with pytest.raises(
            InputError, match=r"training\.kd\.teacher_prompts is shuffled, but reads"
        ):
            with_chains(tmp_path, KD, text=text)
    else:
        assert with_chains(tmp_path, f"{KD}, control: {control}").lineages[1] == (
            "student-sft__student+self-kd"
        )


# -- a teacher of other prompts --------------------------------------------------------------------


def rows_of(prompts: list[list[int]]) -> Any:
    return Dataset.from_dict({"prompt_ids": prompts})


def test_every_row_gets_the_prompt_of_another_row() -> None:
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(1, 4, (1 + i % 5,), generator=generator).tolist() for i in range(40)]
    train, order = rows_of(prompts), permutation(40, 1)
    for step in range(20):
        asked = [prompts[(3 * step + i * 7) % 40] for i in range(8)]
        others = other_prompts(asked, train, order, step)
        assert others == other_prompts(asked, train, order, step)
        for own, other in zip(asked, others, strict=True):
            assert own != other and len(own) == len(other)
    assert other_prompts(asked, train, order, 20) != others


def test_a_longer_prompt_is_cut_and_a_shorter_one_filled_on_the_left() -> None:
    order = torch.arange(3)
    train = rows_of([[1, 2, 3, 4, 5], [6], [7, 8]])
    assert other_prompts([[9, 9, 9]], train, order, 0) == [[3, 4, 5]]
    # draw 1 begins at the second row; the further rows stand before it
    assert other_prompts([[9] * 4], train, order, 1) == [[5, 7, 8, 6]]
    # a prompt that is equal, or becomes so by the cut, is the row's own
    assert other_prompts([[4, 5]], train, order, 0) == [[8, 6]]
    assert other_prompts([[6]], train, order, 1) == [[8]]
    assert other_prompts([[6, 6]], rows_of([[6], [6, 6], [7]]), order, 0) == [[7, 6]]

    # the only other prompt fills as often as it takes
    assert other_prompts([[1, 2]], rows_of([[2], [1, 2]]), torch.arange(2), 0) == [[2, 2]]


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_of_one_prompt_have_no_other(rows: int) -> None:
    with pytest.raises(InputError, match="training rows with different prompts"):
        other_prompts([[1, 2]], rows_of([[1, 2]] * rows), torch.arange(rows), 0)


def asked_of(method: Any, prompts: list[list[int]], draw_: int) -> list[list[int]]:
    train = method.context.train
    return other_prompts(prompts, train, permutation(len(train), method.context.seed, 3), draw_)


def expected_loss(method: Any, student: Any, rows: Any, step: int, plain: Any) -> torch.Tensor:
    """Mean over tokens of a divergence, with the teacher's distributions under the other prompts."""
    found = []
    others = asked_of(method, [row.prompt for row in rows], step)
    for row, asked in zip(rows, others, strict=True):
        p, q = (
            model(torch.tensor([[*prompt, *row.response]])).logits[0, len(prompt) - 1 : -1]
            for model, prompt in ((method.teacher, asked), (student, row.prompt))
        )
        tokens = zip(p.softmax(-1), q.softmax(-1), strict=True)
        found += [float(plain(p_v, q_v)) for p_v, q_v in tokens]
    return torch.tensor(found).mean()


@pytest.mark.parametrize("name", PLAIN)
@torch.no_grad()
def test_the_teacher_reads_labels_under_other_prompts(name: str) -> None:
    student = tiny_gpt2(1, VOCABULARY)
    method = make(name, teacher_prompts="shuffled", on_policy="off")
    method.prepare(2, None)
    (part,) = method.parts(2)
    loss, _ = part.loss(student, part.rows)
    torch.testing.assert_close(loss, expected_loss(method, student, part.rows, 2, PLAIN[name]))
    # the control is another loss
    plain = make(name, on_policy="off")
    plain.prepare(2, None)
    (own,) = plain.parts(2)
    assert abs(own.loss(student, own.rows)[0] - loss) > 1e-3


@torch.no_grad()
def test_kd_and_responses_of_the_student_are_read_under_other_prompts() -> None:
    student, teacher = tiny_gpt2(1, VOCABULARY), tiny_gpt2(2, VOCABULARY)
    settings = {
        "batch_size": 3, "teacher_outputs": "live", "divergence": "reverse_kl", "ratio": 1.0,
        "teacher_prompts": "shuffled",
    }  # fmt: skip
    method: Any = Kd(context(settings, teacher, VOCABULARY))
    (part,) = method.parts(4)
    loss, _ = part.loss(student, part.rows)
    reverse = lambda p, q: (q * (q / p).log()).sum()  # noqa: E731
    torch.testing.assert_close(loss, expected_loss(method, student, part.rows, 4, reverse))
    # responses that are drawn now, and a method that resumes between drawing and learning
    method = make(teacher_prompts="shuffled", on_policy_share=1.0)
    method.prepare(3, sampler(student, teacher))
    (part,) = method.parts(3)
    resumed = make(teacher_prompts="shuffled", on_policy_share=1.0)
    resumed.restore(method.state())
    assert [row.asked for row in resumed.parts(3)[0].rows] == [row.asked for row in part.rows]
    loss, _ = part.loss(student, part.rows)
    torch.testing.assert_close(loss, expected_loss(method, student, part.rows, 3, PLAIN["gkd"]))


@torch.no_grad()
def test_the_teacher_replaces_tokens_under_other_prompts() -> None:
    student, teacher = tiny_gpt2(1, VOCABULARY), tiny_gpt2(2, VOCABULARY)
    method = make("skd", teacher, teacher_prompts="shuffled", on_policy_share=1.0, teacher_top_k=2)
    said: list[Any] = []

    def sample(*asked: Any) -> Any:
        said[:] = sampler(student, teacher)(*asked)
        return said

    method.prepare(1, sample)
    others = asked_of(method, [row.prompt for row in method.drawn], 1)
    for row, asked, response in zip(method.drawn, others, said, strict=True):
        for at in range(len(row.response)):
            heard, own = (
                model(torch.tensor([[*prompt, *row.response[:at]]])).logits[0, -1].double()
                for model, prompt in ((teacher, asked), (student, row.prompt))
            )
            likeliest = (heard / 0.7).softmax(-1).topk(2).indices
            outside = 1 - (own / 0.7).softmax(-1)[likeliest].sum().item()
            assert response.replaced[at].item() == pytest.approx(outside, abs=1e-4)


def sampler(student: Any, teacher: Any, micro_batch: int | None = None) -> Any:
    def sample(prompts: Any, temperature: float, mix: float | None, top_k: int = 0) -> Any:
        return draw(
            *(student, prompts, Decoding(3, temperature=temperature, teacher_top_k=top_k)),
            end_token=END,
            vocabulary=VOCABULARY,
            teacher=None if mix is None else teacher,
            teacher_mix=mix or 0.0,
            micro_batch=micro_batch,
        )

    return sample


def minillm(teacher: Any, **settings: Any) -> MiniLLM:
    shape = {"steps": 8, "epochs": None, "batch_size": 4, "rollouts_per_round": 8}
    return MiniLLM(context({**MINILLM_REFERENCE, **shape, **settings}, teacher, VOCABULARY))


@pytest.mark.parametrize("mix", [0.0, 0.3])
@pytest.mark.parametrize("micro_batch", [None, 2])
@torch.no_grad()
def test_the_teacher_mixes_and_scores_under_other_prompts(mix: float, micro_batch: int) -> None:
    student, teacher = tiny_gpt2(1, VOCABULARY), tiny_gpt2(2, VOCABULARY)
    method = minillm(teacher, teacher_prompts="shuffled", teacher_mix=mix)
    method.prepare(0, sampler(student, teacher, micro_batch))
    asked = asked_of(method, [row.prompt for row in method.rollouts], 0)
    apart = []
    for row, other in zip(method.rollouts, asked, strict=True):
        q = token_log_probabilities(student, row.prompt, row.response)
        p = token_log_probabilities(teacher, other, row.response)
        torch.testing.assert_close(row.student, q, rtol=0, atol=1e-4)
        torch.testing.assert_close(row.teacher, p, rtol=0, atol=1e-4)
        mixed = torch.log(mix * p.exp() + (1 - mix) * q.exp())
        torch.testing.assert_close(row.mixed, mixed, rtol=0, atol=1e-4)
        apart.append(p - token_log_probabilities(teacher, row.prompt, row.response))
    assert torch.cat(apart).abs().max() > 0.1


# -- a constant advantage --------------------------------------------------------------------------


def constant(teacher: Any) -> MiniLLM:
    changed = dict(controls.CONTROLS["constant_advantage"].settings)
    return minillm(teacher, **changed)


def gradient(student: Any, loss: torch.Tensor) -> torch.Tensor:
    student.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in student.parameters()])


def test_a_constant_advantage_raises_the_likelihood_of_what_was_sampled() -> None:
    student, teacher, other = (tiny_gpt2(seed, VOCABULARY) for seed in (1, 2, 3))
    found = []
    for model in (teacher, other):
        method = constant(model)
        method.prepare(0, sampler(student, model))
        (part,) = method.parts(0)
        loss, _ = part.loss(student, part.rows)
        found.append(gradient(student, loss))
    # nothing of the teacher is in it
    assert torch.equal(*found)
    tokens = sum(len(row.response) for row in part.rows)
    logs = [token_log_probabilities(student, row.prompt, row.response) for row in part.rows]
    sum_of_logs = gradient(student, -torch.cat(logs).sum() / tokens)
    torch.testing.assert_close(found[0], sum_of_logs, rtol=1e-3, atol=1e-6)
    assert found[0].norm() > 0.1


def test_a_constant_advantage_ends_at_the_clip() -> None:
    student, moved, teacher = (tiny_gpt2(seed, VOCABULARY) for seed in (1, 4, 2))
    method = constant(teacher)
    method.prepare(0, sampler(student, teacher))
    (part,) = method.parts(1)
    loss, _ = part.loss(moved, part.rows)
    found = gradient(moved, loss)
    logs = torch.cat([token_log_probabilities(moved, r.prompt, r.response) for r in part.rows])
    ratio = (logs - torch.cat([row.student for row in part.rows])).exp()
    inside = ratio.detach() <= 1 + method.settings["ratio_clip"]
    assert 0 < inside.sum() < len(inside)
    expected = gradient(moved, -(ratio * inside).sum() / len(ratio))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


# -- trainings -------------------------------------------------------------------------------------


def stage(space: Workspace, name: str, control: str, **more: Any) -> Interruptible:
    """A training by MiniLLM as a control; without rounding in half precision, and without dropout."""
    spec = space.spec("minillm", steps=6, lm_weight=0.0, **controls.CONTROLS[control].settings)
    teacher = "trained-teacher"
    if control == "self_teacher":
        teacher, spec["teacher"] = "trained-student", spec["init"]
    read = {"base": "student", "teacher": teacher, "init": "trained-student"}
    read |= {data: data for data in ("tokenizer", "train", "dev")}
    files = {"model": "model", "metrics": "metrics.jsonl", "manifest": "manifest.json"}
    inputs = {key: [space.folder / of / "manifest.json"] for key, of in read.items()}
    outputs = {key: space.folder / name / file for key, file in files.items()}
    return Interruptible(spec, "code", inputs, outputs, checkpoint_seconds=0.0, **more)


def log(space: Workspace, name: str) -> list[dict[str, Any]]:
    lines = (space.folder / name / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    space = Workspace(tmp_path_factory.mktemp("workspace"))
    models = {"trained-teacher": {"model": 7}, "trained-student": {"model": 8, "init": 9}}
    for name, parts in models.items():
        for part, seed in parts.items():
            model = tiny_gpt2(seed, len(space.tokenizer))
            model.save_pretrained(space.folder / name / part)
        space.manifest(name, **(TEACHER if name == "trained-teacher" else STUDENT))
    return space


def test_a_self_taught_student_starts_at_zero_divergence_from_its_teacher(space: Workspace) -> None:
    training.run(stage(space, "self", "self_teacher"))
    first = next(line for line in log(space, "self") if line["kind"] == "train")
    assert abs(first["single_step_kl"]) < 1e-5 and abs(first["reward"]) < 1e-5
    # of another student's teacher it is not zero
    training.run(stage(space, "constant", "constant_advantage"))
    first = next(line for line in log(space, "constant") if line["kind"] == "train")
    assert abs(first["reward"]) > 0.1


def test_a_control_that_was_cut_off_ends_as_one_that_was_not(space: Workspace) -> None:
    training.run(stage(space, "whole", "shuffled_prompts"))
    with pytest.raises(Interrupted):
        training.run(stage(space, "cut", "shuffled_prompts", steps_left=3))
    training.run(stage(space, "cut", "shuffled_prompts"))
    assert log(space, "cut") == log(space, "whole")
    weights = [
        (space.folder / n / "model/model.safetensors").read_bytes() for n in ("cut", "whole")
    ]
    assert weights[0] == weights[1]


def test_two_processes_give_the_same_other_prompts(space: Workspace) -> None:
    settings = {"steps": 6, "lm_weight": 0.0, "teacher_prompts": "shuffled"}
    space.finished(space.train("two", "minillm", processes=2, **settings))
    training.run(stage(space, "one", "shuffled_prompts"))
    for one, two in zip(log(space, "one")[:-1], log(space, "two")[:-1], strict=True):
        assert one.pop("kind") == two.pop("kind")
        assert one == pytest.approx(two, rel=1e-4, abs=1e-4)
