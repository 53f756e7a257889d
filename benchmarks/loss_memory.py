"""Peak memory of a loss over the vocabulary: takd's chunks of tokens against the plain formula.

    python benchmarks/loss_memory.py [--quick] [--json FILE] [--threads N]

From hidden states of 16 × 512 tokens, 768 wide, to the loss and its gradients with respect to the hidden states and
to the head of 50257 × 768: the mean over tokens of ½ (-log q(y)) + ½ KL(q ‖ p) under a teacher whose hidden states are
1024 wide. The plain formula makes all logits of both models, their log-probabilities, and so on; takd goes through
`takd.losses.chunked.sum_over_tokens`. Everything is float32.

Each measurement is a process of its own, since a peak is a process's. It counts what comes on top of models, hidden
states and targets, after a warm-up with a few tokens: on the CPU resident memory (VmHWM of Linux), on a GPU what
torch has allocated. Both have the gradient of the head, 154 MB, in it. On a CPU the plain formula needs about 9 GB.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import Comparison, Report, command_line, compare, start, synchronise
from models import VOCABULARY, gpt2
from torch import Tensor
from transformers import PreTrainedModel

from takd.losses.chunked import sum_over_tokens
from takd.losses.divergences import reverse_kl
from takd.losses.teacher_logits import LiveTeacher

PLAIN, OURS = "plain formula", "takd"


@dataclass(frozen=True)
class Case:
    """Tokens, vocabulary, and widths of student and teacher."""

    tokens: int = 16 * 512
    vocabulary: int = VOCABULARY
    width: int = 768
    teacher_width: int = 1024
    repeats: int = 3

    def __str__(self) -> str:
        return f"{self.tokens} tokens, vocabulary {self.vocabulary}"


FULL = Case()
QUICK = Case(tokens=2048, vocabulary=20000, width=64, teacher_width=64, repeats=2)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--contender", choices=LOSSES, help="measure this one, in this process")
    arguments = parser.parse_args()
    device = start(arguments)
    case = QUICK if arguments.quick else FULL
    if arguments.contender:
        print(json.dumps(measured(case, device, LOSSES[arguments.contender])))
        return
    found: dict[str, list[dict[str, float]]] = {PLAIN: [], OURS: []}

    def contender(name: str) -> Callable[[], float]:
        def run() -> float:
            found[name].append(in_its_own_process(name))
            return found[name][-1]["seconds"]

        return run

    contenders = {name: contender(name) for name in found}
    seconds = compare(contenders, case.repeats, warm_up=False, tokens=case.tokens)
    values = {name: [run["loss"] for run in runs] for name, runs in found.items()}
    if abs(values[OURS][0] / values[PLAIN][0] - 1) > 1e-4:
        raise SystemExit(f"the contenders compute different losses: {values}")
    megabytes = {name: [run["peak"] / 1e6 for run in runs] for name, runs in found.items()}
    peaks = Comparison(megabytes, PLAIN, "MB")
    report = Report(__doc__, arguments, device)
    report.add(f"peak memory, {case}", peaks)
    report.add(f"time, {case}", seconds)
    report.note(f"takd's loss peaks at 1/{peaks.gain(OURS):.3g} of the plain formula.")
    report.finish()


def in_its_own_process(name: str) -> dict[str, float]:
    """Measure in a new process with the same options."""
    command = [sys.executable, *sys.argv, "--contender", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        memory = " (killed: is there memory enough?)" if done.returncode < 0 else ""
        raise SystemExit(f"{name} stopped{memory}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)


# A loss: student, teacher, hidden states of both, targets -> mean over the tokens
Loss = Callable[[PreTrainedModel, PreTrainedModel, Tensor, Tensor, Tensor], Tensor]


def plain(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    hidden_nh: Tensor,
    teacher_nh: Tensor,
    targets_n: Tensor,
) -> Tensor:
    """Compute the loss by its formula."""
    log_q_nv = (hidden_nh @ student.get_output_embeddings().weight.T).log_softmax(-1)
    with torch.no_grad():
        log_p_nv = (teacher_nh @ teacher.get_output_embeddings().weight.T).log_softmax(-1)
    label_n = -log_q_nv.gather(-1, targets_n[:, None])[:, 0]
    divergence_n = (log_q_nv.exp() * (log_q_nv - log_p_nv)).sum(-1)
    return (0.5 * label_n + 0.5 * divergence_n).mean()


def ours(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    hidden_nh: Tensor,
    teacher_nh: Tensor,
    targets_n: Tensor,
) -> Tensor:
    """Compute the loss with takd."""
    vocabulary = student.config.vocab_size
    view = LiveTeacher(teacher, vocabulary)

    def of_tokens(
        logits_mv: Tensor, columns: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        log_q_mv = logits_mv.log_softmax(-1)
        label_m = -log_q_mv.gather(-1, columns["target"][:, None])[:, 0]
        return 0.5 * label_m + 0.5 * reverse_kl(*view.pair(log_q_mv, columns)), {}

    columns = {"teacher_hidden": teacher_nh, "target": targets_n}
    total, _ = sum_over_tokens(
        of_tokens, student, hidden_nh, columns, vocabulary, prepared=view.prepared
    )
    return total / len(targets_n)


LOSSES: dict[str, Loss] = {PLAIN: plain, OURS: ours}


def measured(case: Case, device: torch.device, loss: Loss) -> dict[str, float]:
    """Measure peak memory above that before, in bytes, seconds, and the loss."""
    student = gpt2(1, case.width, seed=1, vocabulary=case.vocabulary, device=device)
    teacher = gpt2(1, case.teacher_width, seed=2, vocabulary=case.vocabulary, device=device)
    teacher.requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    hidden_nh, teacher_nh = (
        torch.randn(case.tokens, width, generator=generator).to(device)
        for width in (case.width, case.teacher_width)
    )
    targets_n = torch.randint(case.vocabulary, (case.tokens,), generator=generator).to(device)

    def run(tokens: int) -> float:
        inputs_nh = hidden_nh[:tokens].detach().requires_grad_()
        value = loss(student, teacher, inputs_nh, teacher_nh[:tokens], targets_n[:tokens])
        value.backward()
        student.zero_grad()
        return value.item()

    run(4)
    synchronise()
    level, began = reset(device), time.perf_counter()
    value = run(case.tokens)
    synchronise()
    seconds = time.perf_counter() - began
    return {"peak": peak(device) - level, "seconds": seconds, "loss": value}


def reset(device: torch.device) -> int:
    """Reset the peak; return the bytes in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak(device: torch.device) -> int:
    """Return the most bytes in use since the reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(name: str) -> int:
    """Read a size in bytes from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (size,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(size)


if __name__ == "__main__":
    main()
