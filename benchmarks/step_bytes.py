"""Bytes that a decoding step moves on a GPU, counted, against the least: weights, keys and values once.

    python benchmarks/step_bytes.py [--quick] [--threads N]

Nothing here runs on a GPU. Operations are counted on the tests' simulated one (`tests/pretended_cuda.py`), with one and
with two blocks, from which more follow; what is compiled is counted by torch.compile itself, for a CPU, where it stores
a sum that it does not store on a GPU, and with a pass over all logits for the look-up of those of the drawn tokens.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from harness import command_line, start
from torch._inductor import metrics
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from pretended_cuda import CUDA, PretendedCard

from takd.decoding.amounts import AHEAD
from takd.decoding.compiled import Kind, from_logits
from takd.decoding.next_tokens import NextTokens
from takd.decoding.sampling import Decoding, Prompt, draw
from takd.models.logits import freeze

VOCABULARY = 50257
ROWS, ASKED = 32, 100  # rows, and tokens of each prompt
STEPS = AHEAD["cuda"]


@dataclasses.dataclass(frozen=True)
class Case:
    """Models in half precision, as (layers, width)."""

    name: str
    models: list[tuple[int, int]]


CASES = [
    Case("GPT-2 124M", [(12, 768)]),
    Case("GPT-2 124M, mixed with 1.5B", [(12, 768), (48, 1600)]),
]


def main() -> None:
    arguments = command_line(__doc__).parse_args()
    start(arguments)
    cases = [Case("tiny", [(3, 32)])] if arguments.quick else CASES
    vocabulary = 700 if arguments.quick else VOCABULARY
    print(f"{ROWS} rows, {ASKED + int(2.5 * STEPS)} tokens each, vocabulary {vocabulary}")
    for case in cases:
        least = floor(case, vocabulary)
        plain, behind = step(case, vocabulary)
        compiled = compiled_bytes(len(case.models), vocabulary)
        whole = 4 * ROWS * vocabulary
        print(f"{case.name}: at least {least / 1e6:.0f} MB")
        for name, part in (("one by one", behind), ("compiled", compiled)):
            found = plain - behind + part
            print(
                f"  {name}: {found / 1e6:.0f} MB, {found / least:.2f} times as many; behind the logits"
                f" {part / whole:.1f} times a tensor of (rows, vocabulary)"
            )


def floor(case: Case, vocabulary: int) -> float:
    """Return the bytes of all weights, and of the keys and values of all tokens so far."""
    tokens = ROWS * (ASKED + 2.5 * STEPS)
    return sum(
        2.0 * (12 * layers * width**2 + vocabulary * width + tokens * 2 * layers * width)
        for layers, width in case.models
    )


def step(case: Case, vocabulary: int) -> tuple[float, float]:
    """Return the bytes of a step, and those of them behind the logits, operation by operation."""
    one, two = (_counted(case, vocabulary, layers) for layers in (1, 2))
    outside, behind = one[0], one[1]
    for place, (layers, _) in enumerate(case.models):
        # one more block of this model alone
        more = two[0] if len(case.models) == 1 else _counted(case, vocabulary, 1, place)[0]
        outside += (layers - 1) * (more - one[0])
    return outside, behind


def _counted(
    case: Case, vocabulary: int, layers: int, deeper: int | None = None
) -> tuple[float, float]:
    """Count a step of models with so many blocks, one of them with one more."""
    behind: list[float] = [0.0]
    found = []
    with PretendedCard() as card:

        def counting(self: NextTokens, *given: Any) -> Any:
            before = card.bytes.total()
            result = plain(self, *given)
            behind[0] += card.bytes.total() - before
            return result

        models = []
        for place, (_, width) in enumerate(case.models):
            depth = layers + (place == deeper)
            sizes = {"n_embd": width, "n_layer": depth, "n_head": max(1, width // 64)}
            config = GPT2Config(vocab_size=vocabulary, **sizes, bos_token_id=0, eos_token_id=0)
            models.append(freeze(GPT2LMHeadModel(config)).to(CUDA, torch.bfloat16))
        plain = NextTokens._one_by_one
        with mock.patch.object(NextTokens, "_one_by_one", counting):
            for length in (2 * STEPS, 3 * STEPS):
                prompts = [
                    Prompt([2 + i, *[3] * (ASKED - 1)], i, 1, limit=length) for i in range(ROWS)
                ]
                card.reset()
                behind[0] = 0.0
                draw(
                    *(models[0], prompts, Decoding(3 * STEPS)),
                    end_token=-1,
                    vocabulary=vocabulary,
                    micro_batch=ROWS,
                    teacher=models[1] if len(models) > 1 else None,
                    teacher_mix=0.2 if len(models) > 1 else 0.0,
                )
                found.append((card.bytes.total(), behind[0]))
    (few, behind_few), (many, behind_many) = found
    return (many - few) / STEPS, (behind_many - behind_few) / STEPS


def compiled_bytes(models: int, vocabulary: int) -> float:
    """Return the bytes that the compiled function moves, by the compiler's count."""
    kind = Kind(vocabulary, models, 1.0, sample=True, scored=models > 1)
    given = (
        torch.randn(models, ROWS, vocabulary),
        torch.zeros(models, 1, 1),
        torch.zeros(2, ROWS, dtype=torch.int32),
    )
    compiled: Callable[..., None] = torch.compile(from_logits(kind))
    torch._logging.set_logs(inductor_metrics=True)
    metrics.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        compiled(*given)
    torch._logging.set_logs()
    return float(metrics.num_bytes_accessed)


if __name__ == "__main__":
    main()
