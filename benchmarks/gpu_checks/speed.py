"""Speed against the rates of the GPU, against `transformers`, and against the plan."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import decoding as decoding_benchmark
import minillm_round
import torch
from harness import timed
from lengths import dolly_lengths
from models import VOCABULARY, random_texts
from reference_schedule import Settings, reference_optimizer, reference_round
from steps import adamw, labelled_rows, optimizer_step, settings
from training_step import Case
from transformers import PreTrainedModel

from gpu_checks.facts import memory_rate, product
from gpu_checks.families import config, random_model
from gpu_checks.running import Findings
from takd.decoding.decoder import Decoder
from takd.decoding.memory import token_bytes
from takd.decoding.sampling import Decoding, draw
from takd.methods.base import Context
from takd.methods.sft import Sft
from takd.models import shapes
from takd.models.logits import freeze
from takd.preflight import flops, memory
from takd.preflight.gpus import CPU, Gpu, find_gpu
from takd.preflight.memory import Resources, Texts
from takd.runtime.errors import InputError

COMPILING = 35.0  # seconds that `generate` takes to compile its step for a static cache


def decoding(findings: Findings) -> None:
    """Measure tokens a second of GPT-2 124M in bfloat16, with several numbers of rows, against `generate`."""
    quick = findings.quick
    layers, width, vocabulary = (2, 64, 700) if quick else (12, 768, VOCABULARY)
    rows = (8, 16) if quick else (128, 32, 256)
    case = decoding_benchmark.Case(
        *(layers, width, vocabulary, rows),
        repeats=1, prompts=16 if quick else 256, longest=16 if quick else 256,
    )  # fmt: skip
    model = random_model(
        *("gpt2", layers, width),
        vocabulary=vocabulary,
        dtype=torch.bfloat16,
        device=findings.device,
    )
    prompts = decoding_benchmark.asked(case)
    tokens = sum(prompt.limit or 0 for prompt in prompts)

    def rate(function: Callable[[], object], count: int) -> float:
        def run() -> None:
            function()

        return count / timed(run)

    with findings.part("takd"):
        decoding_benchmark.ours(model, prompts[: max(rows) // 8], case, rows[0])
        for size in rows:
            found = rate(
                lambda size=size: decoding_benchmark.ours(model, prompts, case, size), tokens
            )
            findings.add(f"takd, {size} rows, tokens/s", found)
        with _counted_steps() as steps:
            seconds = 1 / rate(lambda: decoding_benchmark.ours(model, prompts, case, rows[0]), 1)
        least = _least_bytes(model, prompts, sum(steps))
        share = least / seconds / memory_rate(findings.device)
        findings.add(f"takd, {rows[0]} rows, share of the memory's rate (MBU)", share)
    if findings.gpu:
        with findings.part("launches"):
            _launches(findings, model, prompts[:32], vocabulary)
    with findings.part("generate"):
        size = 8 if quick else 64
        found = rate(lambda: decoding_benchmark.theirs(model, prompts[:size], case, size), 1)
        some = sum(prompt.limit or 0 for prompt in prompts[:size])
        findings.add(f"generate, Dolly's lengths, {size} rows, tokens/s", found * some)
    new, size = (8, 8) if quick else (128, 64)
    ids = torch.randint(1, vocabulary - 1, (size, 32), device=findings.device)
    how: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "top_k": 0}
    how |= {"do_sample": True, "min_new_tokens": new, "max_new_tokens": new}
    for name, more in (("dynamic", {}), ("static", {"cache_implementation": "static"})):
        if name == "static" and findings.left() < COMPILING:
            findings.add(
                "generate with a static cache", f"not run: {findings.left():.0f} s were left"
            )
            continue
        with findings.part(f"generate with a {name} cache"):
            for _ in range(1 if quick else 2):  # the first compiles
                found = rate(lambda more=more: model.generate(ids, **how, **more), size * new)
                findings.add(
                    f"generate, {name} cache, {size} rows of equal length, tokens/s", found
                )


@contextlib.contextmanager
def _counted_steps() -> Iterator[list[int]]:
    """Count the tokens that each call of a decoder's steps draws for a row."""
    steps, plain = list[int](), Decoder.steps

    def counted(self: Decoder) -> None:
        plain(self)
        steps.append(self.ahead)

    with mock.patch.object(Decoder, "steps", counted):
        yield steps


def _least_bytes(model: PreTrainedModel, prompts: Any, steps: int) -> float:
    """Return the bytes that decoding has to read: all weights a step, and each token's cache once per later token."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    read = sum(
        (prompt.limit or 0) * (len(prompt.tokens) + (prompt.limit or 0) / 2) for prompt in prompts
    )
    return steps * weights + read * token_bytes(model)


def _launches(findings: Findings, model: PreTrainedModel, prompts: Any, vocabulary: int) -> None:
    """Profile the kernels that 24 steps of decoding launch."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    steps = 24
    with torch.profiler.profile(activities=activities) as profile:
        draw(model, prompts, Decoding(steps), end_token=-1, vocabulary=vocabulary, micro_batch=32)
    events = profile.key_averages()
    for name, word in (
        ("launches", "LaunchKernel"),
        ("syncs", "StreamSynchronize"),
        ("copies", "MemcpyAsync"),
    ):
        count = sum(event.count for event in events if word in event.key)
        findings.add(f"{name} a step, as the profiler counts them", count / steps)
    busy = sum(event.self_device_time_total for event in events) / 1e6
    findings.add("seconds of kernels in a step", busy / steps)


# A round of MiniLLM -------------------------------------------------------------------------------

LARGE = minillm_round.Shape((12, 768), (48, 1600), VOCABULARY, 256, rollouts=256)
TINY = minillm_round.Shape((2, 64), (3, 128), 700, 24, rollouts=8)


def minillm(findings: Findings) -> None:
    """Time a round of GPT-2 1.5B to 124M with 256 responses of Dolly's lengths, against the reference's schedule."""
    shape = TINY if findings.quick else LARGE
    lengths = dolly_lengths(shape.rollouts, shape.slots)
    prompts = random_texts([prompt for prompt, _ in lengths], vocabulary=shape.vocabulary)
    limits = [response for _, response in lengths]
    # MiniLLM's experiments are in bfloat16 or float16 on a card; a CPU is slow in either
    half = torch.bfloat16 if findings.gpu else torch.float32

    def pair() -> tuple[PreTrainedModel, PreTrainedModel]:
        how: dict[str, Any] = {"vocabulary": shape.vocabulary, "device": findings.device}
        student = random_model("gpt2", *shape.student, seed=1, **how)
        return student, random_model("gpt2", *shape.teacher, seed=2, dtype=half, **how)

    student, teacher = pair()
    with findings.part("takd"), _autocast(findings):
        ours = minillm_round.Takd(student, freeze(teacher), prompts, limits, shape)
        _peak_from_here(findings)
        with contextlib.suppress(
            AttributeError
        ):  # a part that has another name by now is not timed
            findings.add("takd, first round by part, s", minillm_round.spent(ours))
        if findings.left() > findings.seconds / 2 or findings.quick:
            findings.add("takd, second round, s", timed(ours))
        _add_peak(findings, "takd")
        del ours
    chunk = min(16, shape.rollouts)
    reference = Settings(
        end_token=shape.vocabulary - 1, prompt_slots=shape.slots, response_slots=shape.slots,
        chunk_size=chunk, batch_size=minillm_round.ROUND["batch_size"],
        inner_epochs=minillm_round.ROUND["inner_epochs"],
    )  # fmt: skip

    def theirs(count: int) -> float:
        optimizer = reference_optimizer(student, reference)
        began = time.perf_counter()
        reference_round(
            student,
            teacher,
            prompts[:count],
            limits[:count],
            settings=reference,
            optimizer=optimizer,
        )
        if findings.gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    with findings.part("reference's schedule"), _autocast(findings):
        _peak_from_here(findings)
        seconds = theirs(chunk)
        findings.add(f"reference's schedule, {chunk} responses, s", seconds)
        _add_peak(findings, "reference's schedule")
        chunks = shape.rollouts // chunk
        if chunks > 1 and findings.left() > 1.1 * chunks * seconds:
            findings.add(
                f"reference's schedule, {shape.rollouts} responses, s", theirs(shape.rollouts)
            )


@contextlib.contextmanager
def _autocast(findings: Findings) -> Iterator[None]:
    with torch.autocast(findings.device.type, torch.bfloat16, enabled=findings.gpu):
        yield


def _peak_from_here(findings: Findings) -> None:
    if findings.gpu:
        torch.cuda.reset_peak_memory_stats()


def _add_peak(findings: Findings, name: str) -> None:
    if findings.gpu:
        findings.add(f"{name}, peak bytes", torch.cuda.max_memory_allocated())


# A step of training -------------------------------------------------------------------------------


def training(findings: Findings) -> None:
    """Measure the share of the GPU's peak rate that a step reaches, and its peak memory, against the plan."""
    quick = findings.quick
    layers, width, vocabulary, length = (2, 64, 700, 32) if quick else (12, 768, VOCABULARY, 512)
    half = torch.bfloat16 if findings.gpu else None
    precision = "bf16" if findings.gpu else "fp32"
    size = 512 if quick else 8192
    multiply = product(size, half or torch.float32, findings.device)
    timed(multiply)
    ceiling = 2 * size**3 / min(timed(multiply) for _ in range(3))
    findings.add(f"products in {precision}, TFLOP/s", ceiling / 1e12)
    for rows in (2, 4) if quick else (8, 32, 64):
        with findings.part(f"{rows} rows"):
            case = Case(layers, width, vocabulary, rows, length)
            _train(findings, case, half, ceiling)
            _expect(findings, case, precision)


def _train(findings: Findings, case: Case, half: torch.dtype | None, ceiling: float) -> None:
    """Take four steps; return the rate of the fastest after the first, and the peak memory."""
    name, vocabulary = f"{case.rows} rows", case.vocabulary
    model = random_model(
        *("gpt2", case.layers, case.width), vocabulary=vocabulary, device=findings.device
    )
    optimizer = adamw(model)
    train = labelled_rows([(1, case.length - 1)] * case.rows * 2, vocabulary=vocabulary)
    given = settings(case.rows)
    method = Sft(Context(given, seed=0, train=train, vocabulary=vocabulary, max_new_tokens=0))
    _peak_from_here(findings)
    numbers = iter(range(4))

    def step() -> None:
        optimizer_step(method, model, optimizer, next(numbers), case.rows, half)

    times = [timed(step) for _ in range(4)]
    rate = sum(case.flops().values()) / min(times[1:])
    findings.add(f"{name} of {case.length} tokens, TFLOP/s", rate / 1e12)
    findings.hold(f"{name}: share of its products' rate", rate / ceiling, most=1.0)
    _add_peak(findings, name)


def _expect(findings: Findings, case: Case, precision: str) -> None:
    """Return the plan's estimate of the same step."""
    name = f"{case.rows} rows"
    sizes = config("gpt2", case.layers, case.width, vocabulary=case.vocabulary)
    shape = shapes.of_config(sizes.to_dict())
    planned = case.rows * flops.trained(shape, case.length, case.length - 1)
    ratio = planned / sum(case.flops().values())
    findings.hold(f"{name}: operations planned against counted", ratio, most=1.2)
    spec = {"method": "sft", "settings": {**_PLAN, "precision": precision}}
    texts, given = Texts(1, case.length - 1), Resources(micro_batch=case.rows)
    expected = memory.training(shape, None, spec, texts, given, _card(findings))
    # without the constant for what is outside of PyTorch's allocator
    always = sum(expected.always.values()) - (memory.RUNTIME if findings.gpu else 0)
    planned_bytes = always + sum(expected.moments["training"].values())
    findings.add(f"{name}: bytes planned", planned_bytes)
    if findings.gpu:
        ratio = torch.cuda.max_memory_allocated() / planned_bytes
        findings.hold(f"{name}: peak against planned", ratio, most=1.1)


_PLAN: dict[str, Any] = {"dropout": 0.0, "lora": None, "deepspeed": None, "dev_rows": None}


def _card(findings: Findings) -> Gpu:
    """Return the GPU's data sheet, or that of a similar one where the table lacks it, for its memory."""
    if not findings.gpu:
        return CPU
    try:
        return find_gpu(torch.cuda.get_device_name())
    except InputError as error:
        findings.add("plan", f"counts as for an h100: {error}")
        return find_gpu("h100")
