"""Cost of a checkpoint to a training: written in the background, and written while the training waits.

    python benchmarks/checkpointing.py [--quick] [--json FILE] [--threads N]

Each turn is the same steps of supervised fine-tuning of a GPT-2 of 6×512 with its own vocabulary (45 million
parameters: a checkpoint of weights and both moments of AdamW in float32 has 0.5 GB), without a checkpoint, with one
after the first step as a training makes it, and with one that training waits for until the disk has it. A turn takes
some twenty seconds on two cores. takd makes a checkpoint after 5 % of a training or ten minutes: of a training of ten
minutes, one in thirty seconds. On a CPU the writing takes its time from the cores that train.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from harness import Report, command_line, compare, start
from models import VOCABULARY, gpt2
from steps import dolly_rows, optimizer_step, settings

from takd.methods.base import Context
from takd.methods.sft import Sft
from takd.runtime.checkpoints import Checkpoints
from takd.runtime.metrics_log import Journal
from takd.training import devices
from takd.training.best_weights import Keeper
from takd.training.student import Student

NONE, BESIDE, WAITING = "none", "written beside training", "training waits for the disk"


@dataclass(frozen=True)
class Case:
    """Size of the model and the batch, and steps of a turn."""

    layers: int = 6
    width: int = 512
    vocabulary: int = VOCABULARY
    batch: int = 8
    longest: int = 256
    steps: int = 6
    repeats: int = 4

    def __str__(self) -> str:
        return f"{self.layers}×{self.width}, {self.steps} steps of {self.batch} rows"


FULL = Case()
QUICK = Case(2, 64, vocabulary=1000, longest=32, steps=3, repeats=2)


def main() -> None:
    arguments = command_line(__doc__).parse_args()
    start(arguments)
    case = QUICK if arguments.quick else FULL
    waited: dict[str, list[float]] = {BESIDE: [], WAITING: []}
    with tempfile.TemporaryDirectory() as folder:
        training = Training(case, Path(folder))
        report = Report(__doc__, arguments, training.student.accelerator.device)
        comparison = compare(training.contenders(waited), case.repeats)
    report.add(str(case), comparison)
    for name, seconds in waited.items():
        turn = comparison.median(NONE)
        share = statistics.median(seconds[1:]) / turn  # without the warm-up
        took = comparison.median(name) / turn - 1
        report.note(
            f"{name.capitalize()}: training stood still for {share:.1%} of a turn, and took {took:+.1%} of its time"
            f" in all (median of n = {case.repeats})."
        )
    report.finish()


class Training:
    """Student with its checkpoint writer, as in a training stage."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        accelerator = devices.start("fp32", 1, case.batch, 1.0, None)
        rates = {"learning_rate": 5e-6, "betas": [0.9, 0.999], "weight_decay": 0.0}
        values: dict[str, Any] = settings(case.batch, deepspeed=None, **rates)
        model = gpt2(case.layers, case.width, seed=1, vocabulary=case.vocabulary, fused=True)
        self.student = Student(accelerator, model, values)
        train = dolly_rows(case.batch * case.steps, case.longest, vocabulary=case.vocabulary)
        self.method = Sft(Context(values, 0, train, case.vocabulary, case.longest))
        checkpoints = Checkpoints(folder, "benchmark")
        checkpoints.open()
        journal = Journal(checkpoints.folder / "metrics.jsonl", active=True)
        journal.restart()
        # nothing is exported here, which is what a tokenizer would be for
        self.keeper = Keeper(self.student, self.method, cast(Any, None), journal, checkpoints, {})

    def contenders(self, waited: dict[str, list[float]]) -> dict[str, Callable[[], None]]:
        """Make the turns, by name; `waited` receives the seconds for which training stood still."""

        def turn(save: Callable[[], float] | None, name: str = "") -> Callable[[], None]:
            def run() -> None:
                for step in range(self.case.steps):
                    # the model and optimizer of the stage, stepped as its loop does
                    optimizer = self.student.optimizer.optimizer
                    optimizer_step(
                        self.method, self.student.model, optimizer, step, self.case.batch
                    )
                    if step == 0 and save:
                        waited[name].append(save())
                # one that is not whole at the end of its turn would disturb the next
                self.keeper.finish()

            return run

        def beside() -> float:
            return self.keeper.save(1)

        def waiting() -> float:
            before = self.keeper.save(1)
            began = time.perf_counter()
            self.keeper.finish()
            return before + time.perf_counter() - began

        return {NONE: turn(None), BESIDE: turn(beside, BESIDE), WAITING: turn(waiting, WAITING)}


if __name__ == "__main__":
    main()
