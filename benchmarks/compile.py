"""Time of a training step with and without torch.compile.

    python benchmarks/compile.py [--quick] [--json FILE] [--threads N]

Supervised fine-tuning as the training loop does it, rows to AdamW, in float32 on a CPU and under bfloat16 autocast on a
GPU: the demo's student on rows as long as the demo's, and GPT-2 124M on rows as long as Dolly's. Lengths differ from
step to step, as they do in training. What compiling takes once is a note below the table.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import Comparison, Report, command_line, compare, start
from lengths import dolly_lengths
from models import VOCABULARY, gpt2
from steps import adamw, labelled_rows, optimizer_step, settings

from takd.methods.base import Context
from takd.methods.sft import Sft
from takd.models.causal_lm import compile_training

PLAIN, COMPILED = "plain", "torch.compile"


@dataclass(frozen=True)
class Case:
    """Model and batch; `longest` is that of a row."""

    layers: int
    width: int
    vocabulary: int
    batch: int
    longest: int
    repeats: int

    def __str__(self) -> str:
        return f"{self.layers}×{self.width}, batch {self.batch}, up to {self.longest} tokens"


FULL = (Case(2, 64, 700, 32, 64, 20), Case(12, 768, VOCABULARY, 4, 128, 5))
QUICK = (Case(1, 64, 700, 8, 64, 3),)


def main() -> None:
    arguments = command_line(__doc__).parse_args()
    device = start(arguments)
    report = Report(__doc__, arguments, device)
    for case in QUICK if arguments.quick else FULL:
        comparison, took = measured(case, device)
        report.add(str(case), comparison)
        saved = comparison.median(PLAIN) - comparison.median(COMPILED)
        after = f"pays after {took / saved:,.0f} steps" if saved > 0 else "never pays"
        report.note(f"{case}: compiling takes {took:.0f} s once and {after}.")
    report.finish()


def measured(case: Case, device: torch.device) -> tuple[Comparison, float]:
    """Compare both, and time the first compiled step, in seconds."""
    rows = case.batch * (case.repeats + 2)
    train = labelled_rows(dolly_lengths(rows, case.longest), vocabulary=case.vocabulary)
    context = Context(
        settings=settings(case.batch),
        seed=0,
        train=train,
        vocabulary=case.vocabulary,
        max_new_tokens=case.longest,
    )
    method = Sft(context)
    half = torch.bfloat16 if device.type == "cuda" else None

    def steps(compiled: bool) -> Callable[[], None]:
        student = gpt2(case.layers, case.width, vocabulary=case.vocabulary, device=device)
        if compiled:
            compile_training(student, device)
        optimizer = adamw(student)
        numbers = iter(range(case.repeats + 2))

        def step() -> None:
            losses[compiled].append(
                optimizer_step(method, student, optimizer, next(numbers), case.batch, half)["loss"]
            )

        return step

    losses: dict[bool, list[float]] = {False: [], True: []}
    contenders = {PLAIN: steps(False), COMPILED: steps(True)}
    contenders[PLAIN]()
    began = time.perf_counter()
    contenders[COMPILED]()
    took = time.perf_counter() - began
    comparison = compare(contenders, case.repeats)
    torch.testing.assert_close(losses[True], losses[False], rtol=1e-2 if half else 1e-4, atol=0.0)
    return comparison, took


if __name__ == "__main__":
    main()
