"""Time of a MiniLLM round: takd against the authors' schedule, with equal prompts, response lengths and steps.

    python benchmarks/minillm_round.py [--quick] [--json FILE] [--shapes gpt2 demo] [--figure FILE.svg]
    python benchmarks/minillm_round.py --shapes gpt2 --whole --cpu-time --threads 1

A round draws 16 teacher-mixed responses and trains on them for 4 inner epochs in batches of 4, as one GPU of the
reference does (`reference_schedule.py` lists its passes). With GPT-2's shapes on a CPU, where a round takes a quarter
of an hour, it is one batch of 4 responses, and beside it a whole round of models of a quarter of the depth; both once
and without warm-up. Random models never end a response, so both sides get the lengths: those of Dolly's rows, and all
at the maximum. `--figure` draws where takd's round spends its time; `--shares N` prints it, of N rounds after some that
warm up, and runs nothing else.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from harness import Report, aligned, command_line, compare, progress, start, synchronise
from lengths import dolly_lengths
from models import VOCABULARY, gpt2, random_prompts
from reference_schedule import Settings, reference_optimizer, reference_round
from steps import MINILLM, optimizer_step
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from takd.decoding import graphs, kv_cache, next_tokens
from takd.decoding.memory import KeptDecoder
from takd.decoding.sampling import Decoding, Prompt, Response, draw
from takd.losses import teacher_logits
from takd.methods import minillm
from takd.methods.base import Context
from takd.models import logits


@dataclass(frozen=True)
class Shape:
    """Layers and width of student and teacher, and the length to which the reference pads."""

    student: tuple[int, int]
    teacher: tuple[int, int]
    vocabulary: int
    slots: int
    rollouts: int = 16
    turns: int = 5

    def __str__(self) -> str:
        (layers, width), (teacher_layers, teacher_width) = self.student, self.teacher
        shapes = f"{layers}×{width} from {teacher_layers}×{teacher_width}"
        return f"{shapes}, vocabulary {self.vocabulary}, {self.rollouts} responses"


SHAPES = {
    "gpt2": Shape((12, 768), (24, 1024), VOCABULARY, 256),
    "shallow": Shape((3, 768), (6, 1024), VOCABULARY, 256, turns=1),
    "gpt2 on a CPU": Shape((12, 768), (24, 1024), VOCABULARY, 256, rollouts=4, turns=1),
    "demo": Shape((2, 64), (3, 192), 700, 64),
}
QUICK = {
    "gpt2": Shape((2, 128), (4, 128), 512, 32, turns=2),
    "shallow": Shape((1, 128), (2, 128), 512, 32, turns=2),
    "demo": Shape((2, 64), (3, 192), 128, 32, turns=2),
}
LENGTHS = ("Dolly's lengths", "all at the maximum")
ROUND = {"batch_size": 4, "inner_epochs": 4}
WARM_UP = 4  # rounds before shares are taken: recordings of all numbers of rows are made in them


class Takd:
    """Consecutive rounds of takd."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        prompts: list[list[int]],
        lengths: list[int],
        shape: Shape,
    ) -> None:
        count = len(prompts)
        rows = {"id": range(count), "prompt_ids": prompts, "response_ids": [[0]] * count}
        context = Context(
            settings={**MINILLM, **ROUND, "rollouts_per_round": count},
            seed=1,
            train=Dataset.from_dict(rows),
            vocabulary=shape.vocabulary,
            max_new_tokens=shape.slots,
            teacher=teacher,
        )
        self.method = minillm.MiniLLM(context)
        self.student, self.teacher, self.lengths, self.shape = student, teacher, lengths, shape
        self.optimizer: Optimizer = AdamW(student.parameters(), lr=5e-6, fused=True)
        self.step, self.kept = 0, KeptDecoder()

    def __call__(self) -> None:
        """Run one round."""
        for _ in range(self.method.steps_per_round):
            self.method.prepare(self.step, self.sample)
            optimizer_step(self.method, self.student, self.optimizer, self.step, 64)
            self.step += 1

    def sample(
        self, prompts: list[Prompt], temperature: float, teacher_mix: float | None
    ) -> list[Response]:
        self.student.eval()
        return draw(
            self.student,
            [replace(prompt, limit=self.lengths[prompt.key]) for prompt in prompts],
            Decoding(self.shape.slots, temperature=temperature),
            end_token=self.shape.vocabulary,  # none: responses have the lengths that they are given
            vocabulary=self.shape.vocabulary,
            teacher=self.teacher,
            teacher_mix=teacher_mix or 0.0,
            kept=self.kept,
        )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--shapes", nargs="+", choices=QUICK, default=list(QUICK))
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=LENGTHS)
    parser.add_argument(
        "--whole", action="store_true", help="GPT-2's shapes with 16 responses on a CPU too, once"
    )
    parser.add_argument("--figure", type=Path, metavar="FILE", help="picture of takd's round")
    parser.add_argument("--shares", type=int, metavar="N", help="what N rounds of takd spend")
    arguments = parser.parse_args()
    device = start(arguments)
    report = Report(__doc__, arguments, device)
    parts: dict[str, dict[str, float]] = {}
    for name in arguments.shapes:
        shapes = QUICK if arguments.quick else SHAPES
        on_cpu = f"{name} on a CPU"
        shape = shapes[name]
        if device.type == "cpu" and on_cpu in shapes:
            shape = replace(shape, turns=1) if arguments.whole else shapes[on_cpu]
        for kind in arguments.lengths:
            case = f"{shape}, {kind}"
            progress(case)
            theirs, ours = contenders(shape, kind, device)
            if arguments.shares:
                print("\n".join([*aligned(share_table(ours, case, arguments.shares)), ""]))
                continue
            found: dict[str, float] = {}

            def takd(ours: Takd = ours, found: dict[str, float] = found) -> None:
                found.clear()
                found.update(spent(ours))

            pair = {"reference's schedule": theirs, "takd": takd}
            report.add(case, compare(pair, shape.turns, warm_up=shape.turns > 1))
            parts[case] = found
            whole = sum(parts[case].values())
            shares = (f"{part} {100 * took / whole:.0f} %" for part, took in parts[case].items())
            report.note(f"takd, {case}: {', '.join(shares)}.")
    if not arguments.shares:
        report.finish()
    if arguments.figure:
        figure(parts, arguments.figure)


def contenders(shape: Shape, kind: str, device: torch.device) -> tuple[Callable[[], None], Takd]:
    """Make both contenders, with equal copies of the models."""
    count, slots = shape.rollouts, shape.slots
    if kind.startswith("all"):
        prompt_lengths, lengths = [slots] * count, [slots] * count
    else:
        prompt_lengths, lengths = map(list, zip(*dolly_lengths(count, slots), strict=True))
    tokens = random_prompts(count, slots, slots, vocabulary=shape.vocabulary)
    prompts = [row[:length] for row, length in zip(tokens, prompt_lengths, strict=True)]

    def models(fused: bool) -> tuple[PreTrainedModel, PreTrainedModel]:
        more: dict[str, Any] = {"vocabulary": shape.vocabulary, "device": device, "fused": fused}
        student = gpt2(*shape.student, seed=1, **more)
        return student, gpt2(*shape.teacher, seed=2, **more).requires_grad_(False)

    student, teacher = models(fused=False)
    settings = Settings(
        end_token=shape.vocabulary - 1,
        prompt_slots=slots,
        response_slots=slots,
        chunk_size=min(count, 16),
        batch_size=ROUND["batch_size"],
        inner_epochs=ROUND["inner_epochs"],
    )
    optimizer = reference_optimizer(student, settings)

    def theirs() -> None:
        reference_round(student, teacher, prompts, lengths, settings=settings, optimizer=optimizer)

    return theirs, Takd(*models(fused=True), prompts, lengths, shape)


# Where a round's time goes -----------------------------------------------------------------------


def spent(ours: Takd) -> dict[str, float]:
    """Run a round; return its seconds by part: of the processor, or with a GPU those that pass."""
    student, teacher = ours.student, ours.teacher
    watch = Watch()
    whose = {id(student): "student", id(teacher): "teacher"}

    def body(cache: Any) -> str:
        return f"decode: {whose[id(cache.model)]}'s body"

    def reading(cache: Any) -> str:
        return f"read prompts: {whose[id(cache.model)]}"

    cache, tokens = kv_cache.RaggedCache, next_tokens.NextTokens
    parts: list[tuple[Any, str, Part]] = [
        (minillm.MiniLLM, "prepare", "decode: admission and responses"),
        (cache, "read", reading),
        (cache, "step", body),  # with its masks and columns
        (minillm.MiniLLM, "parts", "advantages"),
        (minillm, "laid_out", "layout of micro-batches"),
        (minillm.MiniLLM, "columns", "layout of micro-batches"),
        (minillm, "sum_over_tokens", "loss, with its gradients"),
        (teacher_logits, "project", "loss: the teacher's head"),
        (student.base_model, "forward", "student forward"),
        (torch.Tensor, "backward", "student backward"),
        (torch.nn.utils, "clip_grad_norm_", "clipping"),
        (ours.optimizer, "step", "optimizer"),
        (ours.optimizer, "zero_grad", "optimizer"),
    ]
    if student.device.type == "cpu":
        parts += [
            (logits.Head, "__call__", "decode: heads"),
            (tokens, "negative_noise", "decode: noise"),
            (tokens, "sample", "decode: mixture, argmax, scores"),
        ]
    else:  # a graph is both models' bodies too
        parts.append((graphs.Graphs, "__call__", "decode: steps"))
    with ExitStack() as stack:
        for owner, name, part in parts:
            stack.enter_context(watch.on(owner, name, part))
        with watch.part("other"):
            ours()
    return watch.seconds


Part = str | Callable[[Any], str]  # or what names it, from the first argument


class Watch:
    """Seconds of functions, without those of functions that they call and that are watched too."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.inner = [0.0]
        # a shared machine's other work does not count; a GPU works behind the processor's back
        on_gpu = torch.cuda.is_available()
        self.clock = time.perf_counter if on_gpu else time.process_time

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to a part."""
        before = self.clock()
        self.inner.append(0.0)
        try:
            yield
        finally:
            synchronise()
            took = self.clock() - before
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self.inner.pop()
            self.inner[-1] += took

    @contextmanager
    def on(self, owner: Any, name: str, part: Part) -> Iterator[None]:
        """Watch a function or method."""
        real = getattr(owner, name)

        def measured(*args: Any, **kwargs: Any) -> Any:
            # within another part, such as a prompt's reading, a pass of the student is its own
            if name == "forward" and not owner.training:
                return real(*args, **kwargs)
            with self.part(part if isinstance(part, str) else part(args[0])):
                return real(*args, **kwargs)

        setattr(owner, name, measured)
        try:
            yield
        finally:
            setattr(owner, name, real)


def share_table(ours: Takd, case: str, rounds: int) -> list[tuple[str, ...]]:
    """Return the rows of a table: a part's seconds in a round, median of some, and their share."""
    for _ in range(WARM_UP):
        ours()
    found = [spent(ours) for _ in range(rounds)]
    names = list(dict.fromkeys(name for seconds in found for name in seconds))
    medians = {name: median(seconds.get(name, 0.0) for seconds in found) for name in names}
    whole = sum(medians.values())
    header = (case, "ms", f"share, n = {rounds}")
    lines = [
        (name, f"{1000 * took:.1f}", f"{100 * took / whole:.0f} %")
        for name, took in sorted(medians.items(), key=lambda item: -item[1])
    ]
    return [header, *lines, ("all", f"{1000 * whole:.0f}", "100 %")]


def figure(parts: dict[str, dict[str, float]], path: Path) -> None:
    """Draw a stacked bar for each case."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8, 0.7 * len(parts) + 1.3), layout="constrained")
    axes = picture.subplots()
    names = list(dict.fromkeys(part for seconds in parts.values() for part in seconds))
    left = [0.0] * len(parts)
    for part, colour in zip(
        names, matplotlib.colormaps["viridis"].resampled(len(names)).colors, strict=True
    ):
        widths = [100 * s.get(part, 0.0) / sum(s.values()) for s in parts.values()]
        axes.barh(list(parts), widths, left=left, color=colour, edgecolor="white", label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of a round's time, %")
    axes.spines[["top", "right"]].set_visible(False)
    picture.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    picture.savefig(path)


if __name__ == "__main__":
    main()
