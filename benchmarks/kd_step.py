"""Time of an optimizer step of KD against one of SFT, by the source of the teacher's outputs.

    python benchmarks/kd_step.py [--quick] [--json FILE] [--threads N]

Rows, loss, gradient, clipping and AdamW, all in float32, for a student of 12×768 and a teacher of 24×1024 with GPT-2's
vocabulary, on batches of 8 rows as long as Dolly's (`lengths.py`). All see the same rows in the same order. The
teacher's 64 likeliest tokens and its hidden states are read from files such as the stage `teacher_cache` makes; what
stands in them is made up, which changes no time. To make them takes one pass of the teacher, once for all students and
epochs, which is not measured here.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from harness import Report, command_line, compare, start
from models import VOCABULARY, gpt2
from safetensors.torch import save_file
from steps import adamw, dolly_rows, optimizer_step, settings
from transformers import PreTrainedModel

from takd.losses.teacher_logits import StoredOutputs
from takd.methods.base import Context, Method
from takd.methods.kd import Kd
from takd.methods.sft import Sft
from takd.teacher_cache.outputs import offsets

SFT, TOP_K = "SFT", "KD, 64 likeliest tokens stored"


@dataclass(frozen=True)
class Case:
    """Layers and width of the models, and rows of a step."""

    student: tuple[int, int] = (12, 768)
    teacher: tuple[int, int] = (24, 1024)
    vocabulary: int = VOCABULARY
    batch: int = 8
    longest: int = 256
    repeats: int = 4

    def __str__(self) -> str:
        (layers, width), (teacher_layers, teacher_width) = self.student, self.teacher
        return f"{layers}×{width} from {teacher_layers}×{teacher_width}, batch {self.batch}"


FULL = Case()
QUICK = Case((2, 128), (4, 128), vocabulary=5000, longest=64, repeats=3)


def main() -> None:
    arguments = command_line(__doc__).parse_args()
    device = start(arguments)
    report = Report(__doc__, arguments, device)
    case = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        comparison = compare(contenders(case, device, Path(folder)), case.repeats)
    report.add(str(case), comparison)
    report.note(
        f"With the 64 likeliest tokens stored, a step takes {1 / comparison.gain(TOP_K):.2f} times as long as SFT's."
    )
    report.finish()


def contenders(case: Case, device: torch.device, folder: Path) -> dict[str, Callable[[], None]]:
    """Steps of one student, which is trained by several methods in turn."""
    shape: dict[str, Any] = {"vocabulary": case.vocabulary, "fused": True, "device": device}
    student = gpt2(*case.student, seed=1, **shape)
    teacher = gpt2(*case.teacher, seed=2, **shape).requires_grad_(False)
    optimizer = adamw(student)
    train = dolly_rows(case.batch * (case.repeats + 1), case.longest, vocabulary=case.vocabulary)

    def method(kind: type[Method], outputs: str = "live") -> Method:
        stored = {"train": made_up(outputs, train, teacher, folder)} if outputs != "live" else {}
        chosen = {"teacher_outputs": outputs, "divergence": "forward_kl", "ratio": 0.5}
        return kind(
            Context(
                settings=settings(case.batch, **chosen),
                seed=0,
                train=train,
                vocabulary=case.vocabulary,
                max_new_tokens=case.longest,
                teacher=teacher if outputs != "top_k" else None,
                stored=stored,
            )
        )

    def steps(of: Method) -> Callable[[], None]:
        numbers = iter(range(case.repeats + 1))

        def step() -> None:
            optimizer_step(of, student, optimizer, next(numbers), case.batch)

        return step

    return {
        SFT: steps(method(Sft)),
        TOP_K: steps(method(Kd, "top_k")),
        "KD, hidden states stored": steps(method(Kd, "hidden")),
        "KD, teacher runs": steps(method(Kd)),
    }


def made_up(kind: str, train: Dataset, teacher: PreTrainedModel, folder: Path) -> StoredOutputs:
    """Write a file of teacher outputs with random numbers."""
    generator = torch.Generator().manual_seed(3)
    starts = offsets(train)
    total, count = int(starts[-1]), 64
    vocabulary, width = teacher.get_output_embeddings().weight.shape
    if kind == "hidden":
        tensors = {"hidden": torch.randn(total, width, generator=generator)}
    else:
        # all different within a token
        first = torch.randint(0, vocabulary, (total, 1), generator=generator)
        tokens = (first + torch.arange(count) * (vocabulary // count)) % vocabulary
        logits = 3 * torch.randn(total, count + 1, generator=generator)
        named = logits.log_softmax(-1)[:, :count].sort(descending=True).values
        tensors = {"tokens": tokens.int(), "log_probabilities": named}
    path = folder / f"{kind}.safetensors"
    save_file({"offsets": starts, **tensors}, path)
    return StoredOutputs(path)


if __name__ == "__main__":
    main()
