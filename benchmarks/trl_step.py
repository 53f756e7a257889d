"""One on-policy optimizer step: takd against TRL's trainers.

    python benchmarks/trl_step.py [--quick] [--json FILE] [--threads N] [--losses reverse-kl jsd minillm]
                                  [--only NAME …]

A step draws 16 responses of 32 tokens to prompts of 18 tokens from the student, scores them under the teacher, and
updates the student: float32, random weights, GPT-2's vocabulary, no evaluation, logging or saving. `reverse-kl` and
`jsd` are on-policy distillation (arXiv 2306.13649) against `DistillationTrainer` of TRL 1.16; `minillm` is MiniLLM
with one pass over its rollouts and no teacher mixing, against TRL 1.14.2, the last release that had it.

Every contender is a live process of its own (`trl_worker.py`); they take steps in turn. TRL has to be in
`benchmarks/packages/` (README.md says how).
"""

import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import Report, Worker, command_line, compare, progress, start

HERE = Path(__file__).parent
RELEASES = {"reverse-kl": "1.16.0", "jsd": "1.16.0", "minillm": "1.14.2"}


@dataclass(frozen=True)
class Case:
    """Shapes of a comparison: layers and width of the models, rows and tokens of a step."""

    student: tuple[int, int]
    teacher: tuple[int, int]
    rows: int = 16
    prompt: int = 18
    response: int = 32
    vocabulary: int = 50257

    def __str__(self) -> str:
        (layers, width), (teacher_layers, teacher_width) = self.student, self.teacher
        return f"{layers}×{width} from {teacher_layers}×{teacher_width}"

    def options(self) -> list[str]:
        """Return the options of `trl_worker.py`."""
        options: list[str] = []
        for key, value in asdict(self).items():
            options += [f"--{key}", *map(str, value if isinstance(value, tuple) else [value])]
        return options


CASES = (Case((2, 128), (4, 128)), Case((6, 512), (12, 512)))
QUICK = (Case((2, 64), (4, 64), rows=4, prompt=6, response=4, vocabulary=1000),)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--losses", nargs="+", choices=RELEASES, default=["reverse-kl", "minillm"])
    parser.add_argument("--only", nargs="+", choices=("TRL", "takd"), default=("TRL", "takd"))
    arguments = parser.parse_args()
    device = start(arguments)
    report = Report(__doc__, arguments, device)
    for case in QUICK if arguments.quick else CASES:
        for loss in arguments.losses:
            with ExitStack() as stack:
                workers = {}
                for who in arguments.only:
                    worker = stack.enter_context(started(who, loss, case))
                    workers[worker.name] = worker.step
                report.add(f"{loss}, {case}", compare(workers, 2 if arguments.quick else 7))
    report.finish()


def started(who: str, loss: str, case: Case) -> Worker:
    """Start a worker."""
    path: list[Path] = []
    name = who
    if who == "TRL":
        release = RELEASES[loss]
        name = f"TRL {release}"
        path = [HERE / "packages" / f"trl-{release}"]
        if not (path[0] / "trl").exists():
            raise SystemExit(f"{name} is missing: make it as benchmarks/README.md says")
    command = [sys.executable, str(HERE / "trl_worker.py"), "--who", who, "--loss", loss]
    worker = Worker(name, [*command, *case.options()], path)
    progress(f"{name}: {worker.facts}")
    return worker


if __name__ == "__main__":
    main()
