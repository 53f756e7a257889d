"""The code as it runs on a card, on a pretended one: nothing mixes devices, and results are the CPU's.

A step of decoding keeps to a budget of kernels, transfers and waits.
"""

import contextlib
import copy
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from models_for_tests import context, tiny_gpt2
from pretended_cuda import CUDA, CardTensor, PretendedCard
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from workspace import COMMON, DECODING, SETTINGS, STUDENT, TEACHER, Workspace

from takd.decoding import gumbel, sampling
from takd.decoding.amounts import AHEAD as AHEAD_BY_DEVICE
from takd.decoding.kv_cache import RaggedCache
from takd.decoding.sampling import Decoding, Prompt, draw
from takd.evaluation import evaluate, likelihoods, log_likelihoods
from takd.evaluation.log_likelihoods import Text
from takd.methods import abkd, distillm, gkd, kd, minillm, seqkd, sft, skd
from takd.models.logits import freeze, unchanged
from takd.models.precision import torch_dtype
from takd.runtime.stage import Stage
from takd.teacher_cache import outputs
from takd.training import train

VOCABULARY = 40
METHODS: dict[str, Any] = {
    "sft": sft, "kd": kd, "seqkd": seqkd, "gkd": gkd, "distillm": distillm, "abkd": abkd,
    "skd": skd, "minillm": minillm,
}  # fmt: skip


def llama(seed: int, layers: int = 2) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2(seed: int, layers: int = 2) -> PreTrainedModel:
    model = tiny_gpt2(seed, VOCABULARY, layers=layers)
    # as `load_model` does it
    for block in model.transformer.h:
        block.mlp.act = torch.nn.GELU("tanh")
    return model.eval()


FAMILIES = {"gpt2": gpt2, "llama": llama}


# What the pretended card refuses and counts -------------------------------------------------------


def test_mixed_devices_are_refused():
    with PretendedCard():
        here, there = torch.ones(3), torch.ones(3, device=CUDA)
        for mixed in (
            lambda: there + here,
            lambda: here.add_(there),
            lambda: torch.cat([here, there]),
            lambda: here[there.long()],
            lambda: torch.nn.functional.linear(there, here),
            lambda: there.numpy(),
            lambda: there.__setitem__(torch.tensor([0, 1]), here[:2]),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                mixed()
        # as on a card: a number may be anywhere, and an index is fetched
        assert (there + torch.tensor(1.0)).tolist() == [2.0, 2.0, 2.0]
        assert there[torch.tensor([0, 1])].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("what", "kernels", "syncs", "transfers"),
    [
        (lambda x: x + 1, 1, 0, (0, 0)),
        (lambda x: x[1:].view(1, -1).T, 0, 0, (0, 0)),
        (lambda x: x.sum().item(), 1, 1, (0, 0)),
        (lambda x: bool((x > 0).all()), 2, 1, (0, 0)),
        (lambda x: x.tolist(), 0, 1, (0, 1)),
        (lambda x: x.cpu(), 0, 1, (0, 1)),
        (lambda x: x.copy_(torch.zeros(4)), 0, 0, (1, 0)),
        (lambda x: x[x > 0], 2, 1, (0, 0)),
        (lambda x: x.nonzero(), 1, 1, (0, 0)),
        (lambda x: x[[0, 2]], 1, 0, (1, 0)),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), 0, 0, (1, 0)),
        (lambda x: x.half(), 1, 0, (0, 0)),
        (lambda x: x.__setitem__(0, 5.0), 2, 0, (0, 0)),
    ],
)
def test_what_is_counted(what, kernels, syncs, transfers):
    with PretendedCard() as card:
        x = torch.ones(4, device=CUDA)
        card.reset()
        what(x)
        assert card.kernels.total() == kernels
        assert card.syncs.total() == syncs
        assert (card.transfers["uploads"], card.transfers["downloads"]) == transfers


def test_products_of_half_precision_with_a_wider_result_and_autocast_by_cudas_lists():
    with PretendedCard():
        half = torch.full((2, 2), 1.001, device=CUDA, dtype=torch.bfloat16)
        wide = torch.mm(half, half, out_dtype=torch.float32)
        assert (wide.dtype, wide.tolist()[0][0]) == (torch.float32, 2.0)
        with pytest.raises(RuntimeError):
            torch.mm(wide, wide, out_dtype=torch.float32)
        with torch.autocast("cuda", torch.bfloat16):
            assert (wide @ wide).dtype == torch.bfloat16
            assert half.softmax(-1).dtype == (half.exp() + half).dtype == torch.float32
            with torch.autocast("cuda", enabled=False):
                assert (half @ half).dtype == torch.bfloat16 != (wide @ wide).dtype


def test_tied_weights_stay_tied_and_nothing_is_pretended_afterwards():
    model = gpt2(1)
    with PretendedCard():
        model.to(CUDA)
        assert model.lm_head.weight is model.transformer.wte.weight
        assert model.device == CUDA
        assert isinstance(model.lm_head.weight, CardTensor)
    assert not torch.cuda.is_available()
    with pytest.raises(RuntimeError, match="gone"):
        model.lm_head.weight + 1


# A step of decoding keeps to its budget -----------------------------------------------------------


AHEAD = AHEAD_BY_DEVICE["cuda"]


@dataclass(frozen=True)
class Budget:
    """Most kernels that a step may take, on average over those between two looks at the tokens.

    Attributes:
        block, outside: in each block of the model, and in all the rest; of two models, of both.
        models: of those outside, what the models do themselves: embeddings, the last norm, rotary positions.
    """

    block: float
    outside: float
    models: int = 0


# By family and use: "half" is an evaluation, "autocast" a student in training, "mixed" this one with a half teacher.
# The numbers were counted when the code was last changed, and may only fall: a change that needs less lowers them. Of
# each model's kernels in a block, two are this package's: the writes of keys and values.
BUDGETS = {
    ("gpt2", "half"): Budget(12, 10, 4),
    ("gpt2", "autocast"): Budget(14, 11, 4),
    ("gpt2", "mixed"): Budget(26, 22.5, 8),
    ("gpt2", "replaced"): Budget(26, 30, 8),
    ("llama", "half"): Budget(40, 25, 19),
    ("llama", "autocast"): Budget(43, 21, 14),
    ("llama", "mixed"): Budget(83, 47.5, 33),
}
TRAINING = Budget(63, 113)  # of a pass of MiniLLM, forward and backward


def counted_steps(family: str, use: str, layers: int) -> dict[str, Counter[str]]:
    """What the steps between two looks take: the difference between draws of three and of two times so many tokens."""
    make = FAMILIES[family]
    found: list[dict[str, Counter[str]]] = []
    with PretendedCard() as card:
        kind = torch.bfloat16 if use == "half" else torch.float32
        student = make(1, layers).to(CUDA, kind)
        taught = use in ("mixed", "replaced")
        teacher = freeze(make(2, layers).to(CUDA, torch.bfloat16)) if taught else None
        decoding = Decoding(3 * AHEAD, teacher_top_k=5 if use == "replaced" else 0)
        for length in (AHEAD, 2 * AHEAD, 3 * AHEAD):  # the first fills caches
            prompts = [Prompt([2 + i, *[3] * i], i, 1, limit=length) for i in range(4)]
            card.reset()
            with torch.autocast("cuda", torch.bfloat16, enabled=use != "half"):
                draw(
                    student, prompts, decoding, end_token=-1, vocabulary=VOCABULARY,
                    micro_batch=4, teacher=teacher, teacher_mix=0.2 if use == "mixed" else 0.0,
                )  # fmt: skip
            kinds = ("kernels", "syncs", "host", "transfers")
            found.append({kind: getattr(card, kind) for kind in kinds})
    _, two, three = found
    return {kind: three[kind] - two[kind] for kind in three}


@pytest.mark.parametrize(("family", "use"), BUDGETS)
def test_a_step_of_decoding_keeps_to_its_budget(family, use):
    budget = BUDGETS[family, use]
    one, two = (counted_steps(family, use, layers) for layers in (1, 2))
    block = (two["kernels"].total() - one["kernels"].total()) / AHEAD
    outside = one["kernels"].total() / AHEAD - block
    assert 0 < block <= budget.block, two["kernels"] - one["kernels"]
    assert 0 < outside <= budget.outside, one["kernels"]
    assert outside - budget.models <= (22 if use == "replaced" else 15)
    for steps in (one, two):
        # one look at the tokens, whatever the number of blocks; and where they go, for each model and the noise
        assert steps["syncs"].total() == steps["transfers"]["downloads"] == 1
        assert steps["transfers"]["uploads"] <= 3
    # what computes on the CPU is what is written down there between two looks, whatever the number of blocks
    assert one["host"] == two["host"]


def test_a_step_moves_little_more_than_weights_keys_and_values():
    """The models of a round whose weights outweigh their vocabulary, as those of a large teacher do."""
    rows, asked, length = 8, 40, 3 * AHEAD
    moved = []
    with PretendedCard() as card:
        student, teacher = (
            tiny_gpt2(1, VOCABULARY, 128, layers=4),
            tiny_gpt2(2, VOCABULARY, 320, layers=6),
        )
        for model in (student, teacher):
            model.eval().to(CUDA, torch.bfloat16)
        for steps in (2 * AHEAD, length):
            prompts = [Prompt([2 + i, *[3] * (asked - 1)], i, 1, limit=steps) for i in range(rows)]
            card.reset()
            draw(
                student, prompts, Decoding(length), end_token=-1, vocabulary=VOCABULARY,
                micro_batch=rows, teacher=teacher, teacher_mix=0.2,
            )  # fmt: skip
            moved.append(card.bytes)
    floor = 0.0
    for model in (student, teacher):
        config = model.config
        weights = 12 * config.n_layer * config.n_embd**2 + VOCABULARY * config.n_embd
        cached = rows * (asked + 2.5 * AHEAD) * 2 * config.n_layer * config.n_embd
        floor += 2.0 * (weights + cached)
    assert (moved[1] - moved[0]).total() / AHEAD <= 1.5 * floor


def test_noise_is_that_of_the_cpu():
    keys_b = torch.arange(4)
    with PretendedCard():
        there_b = keys_b.to(CUDA)
        found = gumbel.gumbel_noise(there_b, there_b, there_b, VOCABULARY).cpu()
    assert torch.equal(found, gumbel.gumbel_noise(keys_b, keys_b, keys_b, VOCABULARY))


def test_noise_passes_over_its_numbers_are_few():
    with PretendedCard() as card:
        words_2n = torch.ones(2, 4, dtype=torch.int32, device=CUDA)
        noise_nv = torch.empty(4, 5000, device=CUDA)
        gumbel.negative_noise_(noise_nv, words_2n)
        card.reset()
        gumbel.negative_noise_(noise_nv, words_2n)
        assert card.bytes.total() <= 30.5 * noise_nv.nbytes
        assert card.kernels.total() <= 15
        assert not card.transfers


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_prompts_does_not_wait(family):
    with PretendedCard() as card:
        cache = RaggedCache(FAMILIES[family](1, 2).to(CUDA), 4)
        card.reset()
        with torch.no_grad():
            cache.read([[1, 2, 3], [2, 3], [2, 3]], [0, 2, 3])
        assert not card.syncs


@pytest.mark.parametrize(
    ("more", "seen"),
    [
        (lambda tokens: tokens.max().item(), "syncs"),
        (lambda tokens: torch.zeros(4), "host"),
        (lambda tokens: tokens + torch.arange(len(tokens)).to(tokens.device), "uploads"),
    ],
)
def test_a_wait_and_a_tensor_on_the_cpu_in_the_step_are_seen(more, seen, monkeypatch):
    """The budgets hold because these break them."""
    plain = counted_steps("gpt2", "half", 1)
    append = RaggedCache.append

    def slower(cache: RaggedCache, tokens_b: Tensor, step: int = 0) -> Tensor:
        more(tokens_b)
        return append(cache, tokens_b, step)

    monkeypatch.setattr(RaggedCache, "append", slower)
    found = counted_steps("gpt2", "half", 1)
    kinds = {"uploads": "transfers"}
    count = [x[kinds.get(seen, seen)] for x in (plain, found)]
    before, after = (x[seen] if seen == "uploads" else x.total() for x in count)
    assert after == before + AHEAD


# The same results as on the CPU -------------------------------------------------------------------


def drawn(
    student: PreTrainedModel, teacher: PreTrainedModel | None, mix: float, rows: int, top_k: int = 0
) -> list[sampling.Response]:
    prompts = [Prompt([2 + i % 5, *[3] * (i % 4)], i, 1, limit=3 + i % 6) for i in range(12)]
    return draw(
        student, prompts, Decoding(8, top_p=0.95, no_repeat_ngram=2, teacher_top_k=top_k), end_token=0,
        vocabulary=VOCABULARY, micro_batch=rows, teacher=teacher, teacher_mix=mix,
    )  # fmt: skip


@pytest.mark.parametrize(("mix", "top_k"), [(None, 0), (0.0, 0), (0.3, 0), (0.0, 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_texts_and_their_scores_are_those_of_the_cpu(family, mix, top_k):
    """Rows that leave, rows that take their place, and caches that shrink, on the card."""
    student, teacher = FAMILIES[family](1), FAMILIES[family](2) if mix is not None else None
    here = drawn(student, teacher, mix or 0.0, rows=12, top_k=top_k)
    with PretendedCard():
        student.to(CUDA)
        if teacher is not None:
            teacher.to(CUDA)
        there = drawn(student, teacher, mix or 0.0, rows=5, top_k=top_k)
        for response in there:  # the only part that stays on the card
            response.teacher_hidden = response.teacher_hidden.cpu()
    for one, other in zip(here, there, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.finished == other.finished
        for name in ("student", "teacher", "mixed", "teacher_hidden", "replaced"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("family", FAMILIES)
def test_likelihoods_are_those_of_the_cpu(family):
    model, teacher = FAMILIES[family](1), FAMILIES[family](2)
    texts = [Text(i, 0, [2] * (1 + i), [3 + i, 4, 0][: 1 + i % 3]) for i in range(5)]

    def read() -> list[Any]:
        return [
            *log_likelihoods.likelihoods(model, texts, vocabulary=VOCABULARY),
            *log_likelihoods.comparison(model, teacher, texts, vocabulary=VOCABULARY, steps=False),
        ]

    here = read()
    with PretendedCard():
        model.to(CUDA)
        teacher.to(CUDA)
        there = read()
    for one, other in zip(here, there, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if name != "bins":
                assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """A prepared folder with a model and a teacher far from uniform."""
    space = Workspace(tmp_path_factory.mktemp("workspace"))
    vocabulary = len(space.tokenizer)
    for name, width, said in (("model", 16, STUDENT), ("oracle", 32, TEACHER)):
        tiny_gpt2(width, vocabulary, width).save_pretrained(space.folder / name / "model")
        space.manifest(name, **said)
    return space


def stage(space: Workspace, name: str, spec: Any, inputs: dict[str, str], files: Any) -> Stage:
    """A stage that runs in this process."""
    folder: Path = space.folder / name
    folder.mkdir()
    return Stage(
        spec={"lineage": "student-sft", "seed": 3, **spec},
        code="",
        inputs={key: [space.folder / path] for key, path in inputs.items()},
        outputs={key: folder / file for key, file in files.items()},
        micro_batch=5,
    )


READ = {"data": "dev/manifest.json", "tokenizer": "tokenizer/manifest.json"}
SET = {"set": "dev", "seeds": [10, 20], "max_length": 16}


def evaluated(space: Workspace, name: str, model: str) -> Any:
    files = {
        "scores": "scores.json", "generations": "generations.jsonl",
        "answers": "answers.jsonl", "metrics": "metrics.jsonl",
    }  # fmt: skip
    inputs = {"model": f"{model}/manifest.json", **READ}
    evaluate.run(stage(space, name, {**SET, "decoding": DECODING}, inputs, files))
    return json.loads((space.folder / name / "scores.json").read_text())


@contextlib.contextmanager
def card_of(monkeypatch: pytest.MonkeyPatch, precision: str) -> Any:
    """A card on which a stage computes in this precision; in float32 it must find what the CPU finds."""
    with PretendedCard() as card, monkeypatch.context() as patch:
        patch.setattr("takd.decoding.loading.choose_precision", lambda *_, **__: precision)
        yield card


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_and_likelihoods_on_the_card(precision, space, monkeypatch):
    def measured(where: str) -> tuple[Any, Any]:
        scores = evaluated(space, f"model-{where}", "model")
        evaluated(space, f"oracle-{where}", "oracle")
        files = {
            "likelihoods": "likelihoods.json",
            "prompts": "prompts.jsonl",
            "metrics": "m.jsonl",
        }
        inputs = {
            "model": "model/manifest.json", "answers": f"model-{where}/answers.jsonl", **READ,
            "direct": "oracle/manifest.json", "direct_answers": f"oracle-{where}/answers.jsonl",
        }  # fmt: skip
        spec = {**SET, "teachers": {"direct": ["teacher-sft", 3], "first": ["teacher-sft", 3]}}
        likelihoods.run(stage(space, f"read-{where}", spec, inputs, files))
        return scores, json.loads((space.folder / f"read-{where}/likelihoods.json").read_text())

    with card_of(monkeypatch, precision) as card:
        scores, read = measured(f"card-{precision}")
        assert card.kernels.total() > 1000
    device = (space.folder / f"model-card-{precision}/metrics.jsonl").read_text()
    assert "Pretended A100" in device
    expected_scores, expected = measured(f"cpu-{precision}")
    if precision == "fp32":
        assert scores == expected_scores
    assert scores["n"] == expected_scores["n"]
    tolerance = {"fp32": 1e-4, "bf16": 0.1}[precision]
    for name in ("loss", "perplexity"):
        close = pytest.approx(expected["references"][name], rel=tolerance)
        assert read["references"][name] == close
    assert read["direct"]["own"]["reverse_kl"] > 0


@pytest.mark.parametrize("kind", ["hidden", "top_k"])
def test_teacher_outputs_on_the_card_are_those_of_the_cpu(kind, space, monkeypatch):
    def written(where: str) -> dict[str, Tensor]:
        name = f"outputs-{kind}-{where}"
        files = {
            "outputs": "outputs.safetensors",
            "metrics": "m.jsonl",
            "manifest": "manifest.json",
        }
        inputs = {"teacher": "oracle/manifest.json", **READ}
        spec = {"split": "dev", "kind": kind, "top_k": 4}
        outputs.run(stage(space, name, spec, inputs, files))
        return load_file(space.folder / name / "outputs.safetensors")

    with card_of(monkeypatch, "fp32") as card:
        there = written("card")
        assert card.transfers["downloads"] > 0
    here = written("cpu")
    assert there.keys() == here.keys()
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=1e-4, atol=1e-4)


# Training -----------------------------------------------------------------------------------------


def trained(
    name: str, student: PreTrainedModel, teacher: PreTrainedModel, precision: str
) -> tuple[list[float], list[Tensor]]:
    """Losses of two optimizer steps, and the weights after them."""
    settings = {
        **COMMON, **SETTINGS[name], "learning_rate": 1e-3, "responses": "labels",
        "rollouts_per_round": 4, "lm_weight": 0.0, "on_policy_share": 1.0, "initial_share": 1.0,
    }  # fmt: skip
    rows = context(settings, teacher, VOCABULARY)
    method = METHODS[name].METHOD(rows)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, fused=True)
    device, half = student.device.type, torch_dtype(precision)
    enabled = half != torch.float32
    losses = []

    def sample(prompts: Any, temperature: float, teacher_mix: float | None, top_k: int = 0) -> Any:
        decoding = Decoding(3, temperature=temperature, teacher_top_k=top_k)
        with torch.autocast(device, half, enabled=enabled):
            return draw(
                student.eval(), prompts, decoding, end_token=0,
                vocabulary=VOCABULARY, micro_batch=3,
                teacher=teacher if teacher_mix is not None else None, teacher_mix=teacher_mix or 0.0,
            )  # fmt: skip

    for step in range(2):
        method.prepare(step, sample)
        student.train()
        for part in method.parts(step):
            for start in range(0, len(part.rows), 2):
                with torch.autocast(device, half, enabled=enabled):
                    loss, _ = part.loss(student, part.rows[start : start + 2])
                loss.backward()
                losses.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return losses, [parameter.detach().cpu() for parameter in student.parameters()]


@pytest.mark.parametrize(
    ("name", "family"),
    # the family makes no difference to what the other methods add
    [*((name, "gpt2") for name in METHODS), *((name, "llama") for name in ("kd", "minillm"))],
)
def test_training_steps_on_the_card_are_those_of_the_cpu(name, family):
    student, teacher = FAMILIES[family](1), FAMILIES[family](2).requires_grad_(False)
    other, other_teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    losses, weights = trained(name, student, teacher, "fp32")
    with PretendedCard() as card:
        other.to(CUDA)
        other_teacher.to(CUDA)
        found_losses, found = trained(name, other, other_teacher, "fp32")
        assert card.kernels["_fused_adamw_"] == 2
    assert found_losses == pytest.approx(losses, rel=1e-4, abs=1e-5)
    names = [key for key, _ in student.named_parameters()]
    for key, one, another in zip(names, weights, found, strict=True):
        if key.endswith("c_attn.bias"):
            # a key's bias changes no attention: its gradient is rounding, which AdamW magnifies
            one, another = (torch.cat([*x.chunk(3)[::2]]) for x in (one, another))
        torch.testing.assert_close(one, another, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("kd", "gpt2"),
        ("kd", "llama"),
        ("minillm", "gpt2"),
        ("minillm", "llama"),
    ],
)
def test_training_steps_in_half_precision_on_the_card(name, family):
    """Weights stay in float32, products are in bfloat16, and so is the teacher."""
    student, teacher = FAMILIES[family](1), FAMILIES[family](2).requires_grad_(False)
    expected, _ = trained(name, copy.deepcopy(student), teacher, "fp32")
    with PretendedCard():
        student.to(CUDA)
        half = copy.deepcopy(teacher).to(CUDA, torch.bfloat16)
        losses, weights = trained(name, student, half, "bf16")
    assert len(losses) == len(expected)
    if name == "kd":  # what minillm draws in bfloat16 is not what it draws in float32
        assert losses == pytest.approx(expected, rel=0.05)
        assert losses != expected
    for weight in weights:
        assert weight.dtype == torch.float32
        assert weight.isfinite().all()


def counted_passes(layers: int) -> tuple[dict[str, Counter[str]], int]:
    """What a pass of MiniLLM's inner epochs takes, forward and backward, under autocast, and its tokens."""
    settings = {**COMMON, **SETTINGS["minillm"], "rollouts_per_round": 4, "lm_weight": 0.0}
    student, teacher = gpt2(1, layers), freeze(gpt2(2))
    with PretendedCard() as card:
        student.to(CUDA)
        teacher.to(CUDA, torch.bfloat16)
        method = minillm.METHOD(context(settings, teacher, VOCABULARY))

        def sample(prompts: Any, temperature: float, mix: float) -> Any:
            with torch.autocast("cuda", torch.bfloat16):
                return draw(
                    student.eval(), prompts, Decoding(9), end_token=-1, vocabulary=VOCABULARY,
                    teacher=teacher, teacher_mix=mix,
                )  # fmt: skip

        method.prepare(0, sample)
        student.train()
        (part,) = method.parts(0)
        found: list[dict[str, Counter[str]]] = []
        # the first pass of a step also casts the weights
        with torch.autocast("cuda", torch.bfloat16), unchanged(student):
            for _ in range(2):
                card.reset()
                loss, _ = part.loss(student, part.rows)
                with torch.autocast("cuda", enabled=False):
                    loss.backward()
                kinds = ("kernels", "syncs", "transfers")
                found.append({kind: getattr(card, kind) for kind in kinds})
    # later passes find the casts made; they add their gradients to those that are there
    assert found[0]["kernels"]["_to_copy"] > found[1]["kernels"]["_to_copy"]
    return found[1], sum(len(row) for row in part.rows)


def test_a_pass_of_training_keeps_to_its_budget():
    (one, tokens), (two, _) = (counted_passes(layers) for layers in (1, 2))
    block = two["kernels"].total() - one["kernels"].total()
    assert 0 < block <= TRAINING.block, two["kernels"] - one["kernels"]
    assert 0 < one["kernels"].total() - block <= TRAINING.outside, one["kernels"]
    for found in (one, two):
        # whether a divergence is finite, once a chunk
        assert found["syncs"].total() <= 1, found["syncs"]
        assert found["transfers"]["uploads"] <= 2
        assert not found["transfers"]["downloads"]
        # tokens and scores; the teacher's hidden states are on the card
        assert found["transfers"]["bytes up"] <= 64 * tokens


@pytest.fixture
def alone():
    """Accelerate keeps what it found in this process; a stage has a process of its own."""

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    forget()
    yield
    forget()


def stage_trained(space: Workspace, name: str, method: str, precision: str) -> list[Any]:
    """The journal of a whole training stage, in this process."""
    files = {"model": "model", "metrics": "metrics.jsonl", "manifest": "manifest.json"}
    inputs = {"base": "student/manifest.json", "train": "train/manifest.json", **READ}
    inputs["dev"] = inputs.pop("data")
    if method == "sft":
        files["init"] = "init"
    else:
        inputs["teacher"] = "oracle/manifest.json"
    settings = {"lm_weight": 0.0} if method == "minillm" else {}
    spec = space.spec(
        method, precision=precision, steps=2, evaluate_every=2, dropout=0.0, **settings
    )
    train.run(stage(space, name, spec, inputs, files))
    weights = load_file(space.folder / name / "model" / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    return [json.loads(line) for line in (space.folder / name / "metrics.jsonl").open()]


@pytest.mark.parametrize(
    ("method", "precision"),
    [("sft", "fp32"), ("sft", "bf16"), ("sft", "fp16"), ("minillm", "bf16")],
)
def test_a_whole_training_stage_on_the_card(method, precision, space, alone):
    """Accelerate, autocast and loss scaling, draws, dev, checkpoints and files: as on the CPU."""
    with PretendedCard():
        there = stage_trained(space, f"card-{method}-{precision}", method, precision)
    AcceleratorState._reset_state(reset_partial_state=True)
    here = stage_trained(space, f"cpu-{method}-{precision}", method, "fp32")
    assert there[-1]["device"] == "Pretended A100"
    assert there[-1]["precision"] == precision
    assert there[-1]["skipped"] == 0
    close = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}[precision]
    assert [line["kind"] for line in there] == [line["kind"] for line in here]
    for one, other in zip(there, here, strict=True):
        if one["kind"] in ("train", "dev") and (method == "sft" or one["step"] == 0):
            assert one["loss"] == pytest.approx(other["loss"], rel=close)
