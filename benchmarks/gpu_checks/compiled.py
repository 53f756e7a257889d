"""From logits to tokens: compiled, against the operations one by one."""

import contextlib
import math
import warnings
from collections.abc import Iterator
from unittest import mock

import torch
from harness import timed

from gpu_checks.families import random_model
from gpu_checks.running import Findings
from takd.decoding import amounts, compiled, next_tokens
from takd.decoding.compiled import Compiled
from takd.decoding.memory import KeptDecoder
from takd.decoding.sampling import Decoding, Prompt, Response, draw
from takd.models.logits import freeze


def compiled_draws(findings: Findings) -> None:
    """Compare texts, log-probabilities and speed, of a student alone and of one mixed with its teacher."""
    layers, width, vocabulary = (2, 64, 700) if findings.quick else (12, 768, 50257)
    texts, longest, rows = (12, 16, 4) if findings.quick else (128, 128, 128)
    student, teacher = (
        freeze(
            random_model(
                *("gpt2", layers, width),
                vocabulary=vocabulary,
                seed=seed,
                dtype=findings.halves[0],
                device=findings.device,
            )
        )
        for seed in (1, 2)
    )
    prompts = [Prompt(list(range(5, 9 + i % 17)), i, 1) for i in range(texts)]

    def measured(name: str, way: str, mix: float | None) -> list[Response]:
        """Draw four times from one decoder: compiling, capturing, and twice for the speed."""
        kept, found = KeptDecoder(), list[Response]()

        def drawn() -> None:
            found[:] = draw(
                *(student, prompts, Decoding(longest)),
                end_token=-1,
                vocabulary=vocabulary,
                micro_batch=rows,
                teacher=None if mix is None else teacher,
                teacher_mix=mix or 0.0,
                kept=kept,
            )

        first, *others = [timed(drawn) for _ in range(4)]
        findings.add(f"{name}, {way}: first draw, s", first)
        findings.add(f"{name}, {way}: tokens/s", texts * longest / min(others))
        return list(found)

    for name, mix in (("alone", None), ("mixed", 0.2)):
        with findings.part(name):
            with _worth_compiling(math.inf):
                expected = measured(name, "one by one", mix)
            with _worth_compiling(0.0), warnings.catch_warnings():
                warnings.filterwarnings("error", "Decoding goes on without torch.compile")
                found = measured(name, "compiled", mix)
            pairs = list(zip(found, expected, strict=True))
            same = [torch.equal(one.tokens, other.tokens) for one, other in pairs]
            # a token within rounding of another one changes the rest of its text
            findings.hold(f"{name}: share of equal texts", sum(same) / len(same), least=0.9)
            if mix is not None:
                equal = [pair for pair, alike in zip(pairs, same, strict=True) if alike]
                farthest = max(float((one.mixed - other.mixed).abs().max()) for one, other in equal)
                findings.hold(f"{name}: farthest log p̃", farthest, most=1e-3)


@contextlib.contextmanager
def _worth_compiling(numbers: float) -> Iterator[None]:
    """Compile after so many numbers; on a CPU as well, in steps as a GPU takes them."""
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(compiled, "WORTH_COMPILING", numbers))
        enter(mock.patch.object(Compiled, "works", True))
        enter(mock.patch.object(next_tokens, "served", lambda device: True))
        enter(mock.patch.dict(amounts.AHEAD, cpu=amounts.AHEAD["cuda"]))
        yield
