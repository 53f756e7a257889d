"""Time of a whole training step against that of its matrix products alone.

    python benchmarks/training_step.py [--quick] [--json FILE] [--threads N]

The step is supervised fine-tuning of GPT-2 124M on 4 × 512 tokens: rows out of the data set, forward, loss, backward,
clipping, AdamW. The rate is that of its own products with weights, made bare, one after the other into memory that is
there: forward and both backward products of the four matrices of every block (2048×768 by 768×2304, 768×768, 768×3072
and 2048×3072 by 3072×768) and of the vocabulary (2044×768 by 768×50257), each as often as in the step, so that each
weighs what it takes. Both run in turn; the gain of the step over the products is its share of their rate.

FLOPs of a step, with N tokens of which P are predicted, rows of T tokens, L layers of width W, a vocabulary of V:

    6 · 12 L W² N      products with the blocks' weights: forward, gradient of the input, gradient of the weight
    6 V W P            products with the vocabulary
    6 L W T N          attention: 4 W T² a row and layer forward, twice that backward, and half of it is masked

Types: float32, and bfloat16 by autocast unless this machine multiplies it more slowly than float32.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from harness import Report, command_line, compare, start, synchronise, timed
from models import VOCABULARY, gpt2
from steps import adamw, labelled_rows, mixed_precision, optimizer_step, settings
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from takd.methods.base import Context
from takd.methods.sft import Sft

BARE, STEP = "its FLOPs as bare products", "training step"
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """Size of the model and the batch."""

    layers: int = 12
    width: int = 768
    vocabulary: int = VOCABULARY
    rows: int = 4
    length: int = 512
    repeats: int = 5

    def __str__(self) -> str:
        return f"{self.layers}×{self.width}, {self.rows} × {self.length} tokens"

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def predicted(self) -> int:
        """Number of tokens without the first of each row."""
        return self.rows * (self.length - 1)

    def matrices(self) -> list[tuple[int, int, int, int]]:
        """List rows, inputs, outputs and number of each product with weights."""
        w, n, layers = self.width, self.tokens, self.layers
        blocks = [(w, 3 * w), (w, w), (w, 4 * w), (4 * w, w)]
        return [
            *((n, inputs, outputs, layers) for inputs, outputs in blocks),
            (self.predicted, w, self.vocabulary, 1),
        ]

    def weight_flops(self) -> list[int]:
        """List the FLOPs of each product, forward and backward, in all layers."""
        return [6 * n * inputs * outputs * times for n, inputs, outputs, times in self.matrices()]

    def flops(self) -> dict[str, int]:
        """Map the parts of a step with matrix products to their FLOPs."""
        body = self.tokens * self.layers * (24 * self.width**2 + 2 * self.width * self.length)
        vocabulary = 6 * self.predicted * self.width * self.vocabulary
        return {"forward": body, "loss": vocabulary, "backward": 2 * body}


FULL = Case()
QUICK = Case(layers=2, width=256, vocabulary=5000, rows=2, length=128)


def main() -> None:
    arguments = command_line(__doc__).parse_args()
    device = start(arguments)
    report = Report(__doc__, arguments, device)
    case = QUICK if arguments.quick else FULL
    for dtype in types(report, device):
        measure(report, case, device, dtype)
    report.finish()


def types(report: Report, device: torch.device) -> list[torch.dtype]:
    """List the number types that are of use in training on this machine."""
    rates = {dtype: probe(device, dtype) for dtype in DTYPES}
    slow, fast = rates[torch.bfloat16] / 1e9, rates[torch.float32] / 1e9
    if slow >= fast:
        return list(DTYPES)
    report.note(
        f"bfloat16 is left out: this machine multiplies it at {slow:.3g} GFLOP/s, float32 at {fast:.3g}."
    )
    return [torch.float32]


def probe(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOPs a second of a small product."""
    n, width = 256, 768
    left, right = (torch.randn(size, width, device=device).to(dtype) for size in (n, width))
    out = torch.empty(n, width, device=device, dtype=dtype)

    def product() -> None:
        torch.mm(left, right.T, out=out)

    return 2 * n * width**2 / min(timed(product) for _ in range(3))


def measure(report: Report, case: Case, device: torch.device, dtype: torch.dtype) -> None:
    """Compare a step with its products alone, in one number type."""
    autocast = None if dtype == torch.float32 else dtype
    student = gpt2(case.layers, case.width, vocabulary=case.vocabulary, fused=True, device=device)
    optimizer = adamw(student)
    lengths = [(1, case.length - 1)] * (case.rows * (case.repeats + 2))
    method = Sft(
        Context(
            settings=settings(case.rows),
            seed=0,
            train=labelled_rows(lengths, vocabulary=case.vocabulary),
            vocabulary=case.vocabulary,
            max_new_tokens=0,
        )
    )
    numbers = iter(range(case.repeats + 2))
    total = sum(case.flops().values())
    products = bare_products(case, device, dtype)

    def bare() -> float:
        seconds = sum(timed(product) for product in products)
        return seconds * total / sum(case.weight_flops())

    def step() -> None:
        optimizer_step(method, student, optimizer, next(numbers), case.rows, autocast)

    name = str(dtype).removeprefix("torch.")
    contenders = {BARE: bare, STEP: step}
    comparison = compare(contenders, case.repeats, tokens=case.tokens)
    report.add(f"{name}, {case}", comparison)
    rates = [total / comparison.median(contender) / 1e9 for contender in contenders]
    *blocks, vocabulary = (
        flops / timed(product) / 1e9
        for flops, product in zip(case.weight_flops(), products, strict=True)
    )
    report.note(
        f"In {name} a step of {total / 1e9:.4g} GFLOP reaches {rates[1]:.3g} of the {rates[0]:.3g} GFLOP/s of its bare"
        f" products ({min(blocks):.3g} to {max(blocks):.3g} with a block's matrices, {vocabulary:.3g} with the"
        f" vocabulary): {100 * comparison.gain(STEP):.0f} %."
    )
    seconds = parts(method, student, optimizer, next(numbers), autocast)
    described = [
        f"{part} {took:.3g} s"
        + (f" ({case.flops()[part] / took / 1e9:.3g} GFLOP/s)" if part in case.flops() else "")
        for part, took in seconds.items()
    ]
    report.note(f"One more step in {name}, part by part: {', '.join(described)}.")


def bare_products(case: Case, device: torch.device, dtype: torch.dtype) -> list[Callable[[], None]]:
    """Compute each product with weights, forward and backward, as often as a step does."""

    def filled(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    def product(n: int, inputs: int, outputs: int, times: int) -> Callable[[], None]:
        x, w, y = filled(n, inputs), filled(inputs, outputs), filled(n, outputs)
        into = filled(n, outputs), filled(n, inputs), filled(inputs, outputs)

        def run() -> None:
            for _ in range(times):
                torch.mm(x, w, out=into[0])
                torch.mm(y, w.T, out=into[1])
                torch.mm(x.T, y, out=into[2])

        return run

    return [product(*sizes) for sizes in case.matrices()]


def parts(
    method: Sft,
    student: PreTrainedModel,
    optimizer: Optimizer,
    step: int,
    autocast: torch.dtype | None,
) -> dict[str, float]:
    """Time the parts of one step, in seconds; the loss includes the product with the vocabulary."""
    marks: list[float] = []

    def mark(*_: object) -> None:
        synchronise()
        marks.append(time.perf_counter())

    body = student.base_model
    hooks = [body.register_forward_pre_hook(mark), body.register_forward_hook(mark)]
    mark()
    (part,) = method.parts(step)
    with mixed_precision(student.device, autocast):
        loss, _ = part.loss(student, part.rows)
    for hook in hooks:
        hook.remove()
    mark()
    loss.backward()
    mark()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    mark()
    optimizer.step()
    optimizer.zero_grad()
    mark()
    names = ("rows", "forward", "loss", "backward", "clipping", "AdamW")
    return {name: end - start for name, (start, end) in zip(names, pairwise(marks), strict=True)}


if __name__ == "__main__":
    main()
