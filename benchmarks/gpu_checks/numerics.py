"""Agreement of GPU and CPU, and of half precision and float32."""

import copy
import math
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gpu_checks.families import random_model
from gpu_checks.running import Findings
from takd.decoding import decoder
from takd.decoding.graphs import Graphs
from takd.decoding.gumbel import gumbel_noise
from takd.decoding.memory import KeptDecoder
from takd.decoding.model_checks import check_model, decoded_and_at_once
from takd.decoding.sampling import Decoding, Prompt, Response, draw
from takd.losses.batch import RightPadded
from takd.losses.chunked import sum_over_tokens
from takd.methods.base import Example
from takd.methods.token_losses import label_loss
from takd.models.causal_lm import relative_error
from takd.models.logits import freeze, project

Shape = tuple[str, int, int, int]  # family, layers, width, vocabulary
SHAPES: list[Shape] = [
    ("gpt2", 12, 768, 50257),
    ("qwen2", 24, 896, 151936),
    ("gemma3", 26, 1152, 32000),
    ("llama", 22, 2048, 32000),
    ("gpt2", 48, 1600, 50257),
]
QUICK: list[Shape] = [("gpt2", 2, 64, 700), ("llama", 2, 64, 700), ("gemma3", 2, 64, 700)]
VOCABULARY = 5000
SHARPER = 3.0
FAR = -65.0  # where the logits of GPT-2 lie


ROWS = [12, 24]  # tokens of the texts whose decoding is measured


def gates(findings: Findings) -> None:
    """Run the checks that every stage makes of its models, at real widths in half precision, and record the errors."""
    for family, layers, width, vocabulary in QUICK if findings.quick else SHAPES:
        for dtype in findings.halves:
            name = f"{family} {layers}×{width} {_short(dtype)}"
            with findings.part(name):
                model = random_model(
                    *(family, layers, width),
                    vocabulary=vocabulary,
                    dtype=dtype,
                    device=findings.device,
                )
                check_model(model, name, max(ROWS))
                with torch.no_grad():
                    error = relative_error(*decoded_and_at_once(model, ROWS))
                findings.hold(f"{name}: error of decoding", error, most=0.1)
                del model
    if findings.gpu:
        findings.add("peak bytes", torch.cuda.max_memory_allocated())


def parity(findings: Findings) -> None:
    """Compare losses, gradients, noise, texts, and log q far from 0 with the CPU in double precision."""
    sizes = (2, 64) if findings.quick else (6, 512)
    double = random_model("gpt2", *sizes, vocabulary=VOCABULARY, dtype=torch.float64, seed=3)
    with findings.part("losses and gradients"):
        _gradients(findings, double)
    with findings.part("noise"):
        _noise(findings)
    with findings.part("texts"):
        _texts(findings, double)
    with findings.part("log q"):
        _far_logits(findings, double)


def _on(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    copied = copy.deepcopy(model)
    torch.nn.Module.to(copied, device, dtype)
    return copied


def _rows() -> list[Example]:
    return [Example(0, 0, list(range(5, 25 + i)), list(range(30, 60 + i))) for i in range(8)]


def _gradients(findings: Findings, double: PreTrainedModel) -> None:
    def measured(model: PreTrainedModel, half: torch.dtype | None = None) -> tuple[float, Tensor]:
        with torch.autocast(model.device.type, half, enabled=half is not None):
            value, _ = label_loss(VOCABULARY, 300)(model, _rows())
        value.backward()
        grads = [p.grad.double().cpu().flatten() for p in model.parameters() if p.grad is not None]
        return value.item(), torch.cat(grads)

    loss, gradient = measured(copy.deepcopy(double))
    cases: list[tuple[str, torch.dtype | None, float, float]] = [("fp32", None, 1e-5, 1e-3)]
    cases += [(f"autocast {_short(half)}", half, 1e-2, 5e-2) for half in findings.halves]
    for name, half, loss_bound, gradient_bound in cases:
        found, theirs = measured(_on(double, findings.device, torch.float32), half)
        findings.hold(f"{name}: relative error of the loss", abs(found / loss - 1), most=loss_bound)
        error = float((theirs - gradient).norm() / gradient.norm())
        findings.hold(f"{name}: relative error of the gradient", error, most=gradient_bound)


def _noise(findings: Findings) -> None:
    """Compare the noise: its random integers are equal on all devices, their logarithms may differ in the last bit."""
    keys = torch.arange(64) * 7919
    given = (keys, keys + 1, keys % 50)
    here = gumbel_noise(*given, VOCABULARY)
    there = gumbel_noise(*(x.to(findings.device) for x in given), VOCABULARY).cpu()
    findings.add("noise: share of equal bits", float((here == there).double().mean()))
    findings.hold("noise: farthest", float((here - there).abs().max()), most=1e-4)
    findings.hold(
        "noise: share of equal winners", _share(here.argmax(-1), there.argmax(-1)), least=1.0
    )


def _share(one: Tensor, other: Tensor) -> float:
    return float((one == other).double().mean())


def _texts(findings: Findings, double: PreTrainedModel) -> None:
    sharper = copy.deepcopy(double)
    with torch.no_grad():
        # new models' distributions are all but uniform, and then the noise alone decides
        for parameter in sharper.parameters():
            parameter.mul_(SHARPER)
    prompts = [Prompt(list(range(5, 15 + i)), i, 1) for i in range(32)]
    length = 12 if findings.quick else 40

    def drawn(model: PreTrainedModel, rows: int) -> list[tuple[int, ...]]:
        responses = draw(
            *(model, prompts, Decoding(length)),
            end_token=-1,
            vocabulary=VOCABULARY,
            micro_batch=rows,
        )
        return [tuple(response.tokens.tolist()) for response in responses]

    def share(one: Sequence[Any], other: Sequence[Any]) -> float:
        return sum(a == b for a, b in zip(one, other, strict=True)) / len(prompts)

    expected = drawn(_on(sharper, torch.device("cpu"), torch.float32), 32)
    if len(set(expected)) < len(prompts) / 2:
        raise RuntimeError("the texts that are compared are all alike")
    for dtype in (torch.float32, *findings.halves):
        model, name = _on(sharper, findings.device, dtype), _short(dtype)
        many, few = drawn(model, 32), drawn(model, 5)
        equal, alike = share(many, expected), share(many, few)
        if dtype == torch.float32:
            # a sum in another order may turn a near tie
            findings.hold(f"{name}: texts equal to the CPU's", equal, least=0.9)
            findings.hold(f"{name}: texts equal at 32 and at 5 rows", alike, least=0.9)
        else:
            findings.add(f"{name}: texts equal to the CPU's in float32", equal)
            findings.add(f"{name}: texts equal at 32 and at 5 rows", alike)


@torch.no_grad()
def _far_logits(findings: Findings, double: PreTrainedModel) -> None:
    """Measure the error of log q where logits are as far from 0 as GPT-2's."""
    model = _on(double, findings.device, torch.float32)
    model.transformer.wte.weight[:, 0] = 1.0
    model.transformer.ln_f.weight[0] = 0.0
    model.transformer.ln_f.bias[0] = FAR
    layout = RightPadded.of([(row.prompt, row.response) for row in _rows()], findings.device)
    hidden = layout.hidden(model)

    def log_q(half: torch.dtype | None) -> Tensor:
        with torch.autocast(findings.device.type, half, enabled=half is not None):
            logits = project(model, hidden, VOCABULARY)
        return logits.double().log_softmax(-1).gather(-1, layout.targets_n[:, None])

    true = (hidden.double() @ model.lm_head.weight.double().T).log_softmax(-1)
    true = true.gather(-1, layout.targets_n[:, None])
    findings.hold("fp32: sd of the error of log q", float((log_q(None) - true).std()), most=1e-3)
    for half in findings.halves:
        error = float((log_q(half) - true).std())
        findings.hold(f"{_short(half)}: sd of the error of log q", error, most=2e-2)


def overflow(findings: Findings) -> None:
    """Check the head's gradient in float16, where its unscaled sum over tokens exceeds the range of float16."""
    count, width, vocabulary, size = 1024, 64, 700, 300.0
    model = random_model("gpt2", 1, width, vocabulary=vocabulary, device=findings.device)
    columns = {"target": torch.full((count,), 7, device=findings.device)}
    generator = torch.Generator().manual_seed(1)
    hidden = (size * torch.rand(count, width, generator=generator)).to(findings.device)
    weight = model.lm_head.weight

    def of_tokens(
        logits_mv: Tensor, columns: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return -logits_mv.log_softmax(-1).gather(-1, columns["target"][:, None])[:, 0], {}

    def gradient(half: torch.dtype | None, scale: float) -> Tensor:
        weight.grad = None
        with torch.autocast(findings.device.type, half, enabled=half is not None):
            total, _ = sum_over_tokens(of_tokens, model, hidden, columns, vocabulary)
        # as the loop does it: a share of the mean, and a loss scale
        (total / count * scale).backward()
        return weight.grad.double() / scale

    expected = gradient(None, 1.0)
    largest = float(expected.abs().max()) * count
    findings.hold(
        "largest entry before it is scaled", largest, least=torch.finfo(torch.float16).max
    )
    for scale in (1.0, 1024.0):
        found = gradient(torch.float16, scale)
        error = float((found - expected).norm() / expected.norm())
        findings.hold(f"fp16, loss scale {scale:g}: relative error", error, most=2e-2)
        if not math.isfinite(error):
            raise RuntimeError("the head's gradient is not finite")


def _short(dtype: torch.dtype) -> str:
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return names[dtype]


# CUDA graphs --------------------------------------------------------------------------------------


def graphs(findings: Findings) -> None:
    """Compare texts and log-probabilities of decoding with CUDA graphs with those without, in three draws.

    The student's weights change between the draws: in place, as an optimizer changes them, and by other tensors.
    """
    sizes = (2, 64) if findings.quick else (12, 768)
    # texts, the longest one, and rows at a time, fewer than the texts: rows leave and come
    asked = (24, 12, 8) if findings.quick else (96, 44, 32)
    for family in ("gpt2", "llama"):
        for half in findings.halves:
            with findings.part(name := f"{family} {_short(half)}"):
                shape: dict[str, Any] = {"vocabulary": VOCABULARY, "device": findings.device}
                student = random_model(family, *sizes, seed=1, **shape)
                teacher = freeze(random_model(family, *sizes, seed=2, dtype=half, **shape))
                found = _three_draws(copy.deepcopy(student), teacher, half, Graphs, *asked)
                expected = _three_draws(student, teacher, half, WithoutGraphs, *asked)
                same = [
                    torch.equal(a.tokens, b.tokens) for a, b in zip(found, expected, strict=True)
                ]
                findings.hold(f"{name}: share of equal texts", sum(same) / len(same), least=1.0)
                farthest = max(
                    float((a.mixed - b.mixed).abs().max())
                    for a, b in zip(found, expected, strict=True)
                    if torch.equal(a.tokens, b.tokens)
                )
                findings.hold(f"{name}: farthest log p̃", farthest, most=1e-3)


class WithoutGraphs(Graphs):
    """Graphs that capture nothing."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.capture = None


def _three_draws(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    half: torch.dtype,
    kind: type[Graphs],
    texts: int,
    longest: int,
    rows: int,
) -> list[Response]:
    lengths = [4 + 11 * i % (longest - 4) for i in range(texts)]
    prompts = [
        Prompt(list(range(5, 9 + i % 17)), i, 1, limit=limit) for i, limit in enumerate(lengths)
    ]
    kept, found = KeptDecoder(), list[Response]()
    with mock.patch.object(decoder, "Graphs", kind), torch.autocast(student.device.type, half):
        for turn in range(3):
            found += draw(
                *(student, prompts, Decoding(longest)),
                end_token=-1,
                vocabulary=VOCABULARY,
                micro_batch=rows,
                teacher=teacher,
                teacher_mix=0.2,
                kept=kept,
            )
            with torch.no_grad():
                for parameter in student.parameters():
                    if turn == 0:
                        parameter.mul_(1.01)
                    else:
                        parameter.data = parameter.data * 1.01
    return found
