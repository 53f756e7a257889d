"""Shared code of all benchmarks: command line, measuring in alternation, machine facts, workers, table and JSON.

A benchmark is one command, `python benchmarks/NAME.py [--quick] [--json FILE] [--threads N]`, and reads like this:

    arguments = command_line(__doc__).parse_args()
    device = start(arguments)
    report = Report(__doc__, arguments, device)
    report.add("GPT-2 124M, batch 16", compare({"theirs": theirs, "takd": takd}, repeats=5))
    report.finish()

Contenders of a comparison run in turn (ABAB…), after one warm-up each, in one run: a machine that gets slower for a
minute, as shared ones do, then slows both, and the ratio within each turn says how far that mattered.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

# Returns nothing and is timed here, or returns the seconds that it took by its own clock.
Contender = Callable[[], float | None]


def command_line(documentation: str | None) -> argparse.ArgumentParser:
    """Make a parser with the options of every benchmark; a benchmark may add its own."""
    summary = (documentation or "").split("\n")[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that it runs, no more"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch on the CPU")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="CPU seconds in place of elapsed ones: for a machine that does other work as well",
    )
    return parser


def start(arguments: argparse.Namespace) -> torch.device:
    """Set the clock and the threads, and pick the device: a GPU where there is one."""
    global clock, UNIT
    if arguments.cpu_time:
        clock, UNIT = time.process_time, "CPU s"
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for the workers
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# Measuring ---------------------------------------------------------------------------------------

clock: Callable[[], float] = time.perf_counter
UNIT = "s"


@dataclass
class Comparison:
    """Seconds of each contender by turn, and the ratios that follow from them.

    Attributes:
        values: contender to what it took; turn i of all contenders ran one after the other.
        baseline: the contender that gains are relative to.
        unit: of the values; less is better.
        tokens: how many each contender got done in a turn, where that means something.
    """

    values: dict[str, list[float]]
    baseline: str
    unit: str = "s"
    tokens: int | None = None

    def median(self, name: str) -> float:
        return statistics.median(self.values[name])

    def gain(self, name: str) -> float:
        """Speed-up over the baseline: ratio of medians."""
        return self.median(self.baseline) / self.median(name)

    def gain_range(self, name: str) -> tuple[float, float]:
        """Lowest and highest speed-up within a turn; a range is fair to the few turns that long runs allow."""
        pairs = zip(self.values[self.baseline], self.values[name], strict=True)
        ratios = [theirs / ours for theirs, ours in pairs]
        return min(ratios), max(ratios)


def compare(
    contenders: Mapping[str, Contender],
    repeats: int,
    baseline: str | None = None,
    *,
    warm_up: bool = True,
    tokens: int | None = None,
) -> Comparison:
    """Run contenders in alternation.

    Args:
        contenders: name to function; they run in this order in every turn.
        repeats: measured turns.
        baseline: whom gains are relative to; the first, unless told otherwise.
        warm_up: whether one more turn, which does not count, comes first. Not for contenders that take minutes or
            start processes of their own.
        tokens: how many each contender gets done in a turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-warm_up, repeats):
        for name, contender in contenders.items():
            took = timed(contender)
            progress(f"{name}: {took:.3f} s{' (warm-up)' if turn < 0 else ''}")
            if turn >= 0:
                seconds[name].append(took)
    return Comparison(seconds, baseline or next(iter(contenders)), UNIT, tokens)


def timed(contender: Contender) -> float:
    """Time a contender, in seconds."""
    synchronise()
    before = clock()
    own = contender()
    synchronise()
    return clock() - before if own is None else own


def synchronise() -> None:
    """Wait until the device has finished all work."""
    # a GPU works behind the program's back: its clock stops when the work is done, not when it is queued
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def progress(line: str) -> None:
    """Print progress to stderr, apart from the results."""
    print(f"  {line}", file=sys.stderr, flush=True)


# Machine and results -----------------------------------------------------------------------------


def machine(device: torch.device) -> dict[str, Any]:
    """Describe what the numbers depend on besides the code."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def commit() -> str | None:
    """Return the commit of the code, if git is available."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


@dataclass
class Report:
    """Comparisons of one benchmark with notes on them, printed and written as JSON."""

    documentation: str | None
    arguments: argparse.Namespace
    device: torch.device
    cases: dict[str, Comparison] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, case: str, comparison: Comparison) -> None:
        """Add a comparison, and write the file at once: the remaining ones may take an hour."""
        self.cases[case] = comparison
        self._write()

    def note(self, sentence: str) -> None:
        """Add a sentence below the table."""
        self.notes.append(sentence)
        self._write()

    def finish(self) -> None:
        print("\n".join([*aligned(rows(self.cases)), *self.notes]))

    def _write(self) -> None:
        if not self.arguments.json:
            return
        name = Path(sys.argv[0]).stem
        content = {
            "benchmark": name,
            "title": (self.documentation or name).split("\n")[0].rstrip("."),
            "command": " ".join(["python", f"benchmarks/{name}.py", *_options()]),
            "quick": self.arguments.quick,
            "date": time.strftime("%Y-%m-%d"),
            "commit": commit(),
            "machine": machine(self.device),
            "cases": {case: asdict(comparison) for case, comparison in self.cases.items()},
            "notes": self.notes,
        }
        self.arguments.json.parent.mkdir(parents=True, exist_ok=True)
        self.arguments.json.write_text(json.dumps(content, indent=2) + "\n")


def _options() -> list[str]:
    """Return the command line without --json, which changes no number."""
    options = sys.argv[1:]
    if "--json" in options:
        at = options.index("--json")
        del options[at : at + 2]
    return [option for option in options if not option.startswith("--json=")]


HEADER = ("case", "contender", "n", "median", "min – max", "tokens/s", "gain")


def rows(cases: Mapping[str, Comparison]) -> list[tuple[str, ...]]:
    """Format the comparisons of a benchmark as rows of text, header first."""
    table: list[tuple[str, ...]] = [HEADER]
    for case, comparison in cases.items():
        for index, (name, values) in enumerate(comparison.values.items()):
            low, high = comparison.gain_range(name)
            relative = f"{comparison.gain(name):.2f}× ({low:.2f} – {high:.2f})"
            median, tokens = comparison.median(name), comparison.tokens
            table.append(
                (
                    case if index == 0 else "",
                    name,
                    str(len(values)),
                    f"{figures(median)} {comparison.unit}",
                    f"{figures(min(values))} – {figures(max(values))}",
                    figures(tokens / median) if tokens else "",
                    "baseline" if name == comparison.baseline else relative,
                )
            )
    if any(comparison.tokens for comparison in cases.values()):
        return table
    return [(*row[:5], *row[6:]) for row in table]


def figures(value: float) -> str:
    """Format a number with three digits, or all digits before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Format rows as lines with aligned columns."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


# Workers: contenders in processes of their own ---------------------------------------------------


class Worker:
    """Contender in its own process, which takes a step on request.

    Different versions of a library cannot share a process, and starting one for every step would measure the start.
    The other end is `Supervisor`. A worker that waits sleeps, so that it does not disturb the one that works.
    """

    def __init__(self, name: str, command: Sequence[str], path: Sequence[Path] = ()) -> None:
        """Start the process and wait until it is ready.

        Args:
            path: folders from which it imports before all others.
        """
        self.name = name
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the worker
        folders = [*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        self.facts = self._answer()

    def step(self) -> float:
        """Take one step; return its seconds by the worker's clock."""
        assert self.process.stdin
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.process.wait()
        self.log.seek(0)
        raise SystemExit(f"{self.name} stopped:\n{self.log.read()[-3000:]}")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()  # the worker leaves when there is nothing more to read
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Supervisor:
    """Worker's end of the connection: waits for a request, takes a step and reports its seconds.

    Args:
        clock: returns seconds; `time.process_time` where other work on the machine should not count.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        # libraries print to standard output, which is ours: keep it, and send their lines to the log
        self.answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.started: float | None = None

    def ready(self, **facts: Any) -> None:
        self._answer(facts)

    def wait(self) -> bool:
        """Report the finished step, if any, and wait for the next request; return False when there are no more."""
        if self.started is not None:
            synchronise()
            self._answer({"seconds": self.clock() - self.started})
        word = sys.stdin.readline()
        self.started = self.clock()
        return bool(word)

    def serve(self, step: Callable[[], object]) -> None:
        """Take steps until there are no more requests; for contenders that have no loop of their own."""
        while self.wait():
            step()

    def _answer(self, content: Mapping[str, Any]) -> None:
        self.answers.write(json.dumps(content) + "\n")
