"""A stage in its own process, with its results so far in a file.

A CUDA error spoils all that its process does afterwards, and a kernel that hangs never comes back: so a stage is a
process, which may crash or be ended, and what it wrote down before is kept.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forks
import torch
import workspace
from workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
GRACE = 5.0  # seconds beyond its budget in which a stage may still write down what it has
MOST_SAID = 1500  # characters of an error that are kept


@dataclass
class Findings:
    """Results of a stage, each written at once.

    Attributes:
        path: where it is written.
        quick: whether sizes are tiny, which is so on a CPU.
        seconds: the stage's budget.
        found: values by name.
        failed: what went wrong, by part.
        missed: bounds that were not kept, in words.
    """

    path: Path
    quick: bool
    seconds: float
    found: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.gpu else "cpu")
        # those that this device multiplies
        self.halves = [torch.bfloat16, torch.float16] if self.gpu else [torch.bfloat16]

    def left(self) -> float:
        """Return the seconds left of the budget."""
        return self.seconds - (time.monotonic() - self.began)

    def add(self, name: str, value: Any) -> None:
        """Record a value."""
        self.found[name] = value
        self.write()

    def hold(
        self, name: str, value: float, *, most: float | None = None, least: float | None = None
    ) -> None:
        """Record a number, and fail where it is more than `most`, less than `least`, or nan."""
        kept = value <= most if most is not None else value >= (least or 0.0)
        if not kept:
            bound = f"at most {most:g}" if most is not None else f"at least {least:g}"
            self.missed.append(f"{name}: {value:.3g}, but {bound} was expected")
        self.add(name, value)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Record a failure of the block, and go on with the next part of the stage."""
        try:
            yield
        except Exception:
            self.failed[name] = traceback.format_exc()[-MOST_SAID:]
            self.write()

    def write(self) -> None:
        content = {"found": self.found, "failed": self.failed, "missed": self.missed}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, default=str))
        os.replace(partial, self.path)


def supervised(target: str, budget: float, quick: bool) -> dict[str, Any]:
    """Run a stage, `module:function`; return how it ended and its results.

    Returns:
        `ended` ("ok", "failed", "overran" or "crashed"), `seconds`, `budget`, `found`, `failed`, `missed`.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="takd-gpu-check-") as place:
        path = Path(place) / "found.json"
        process = _context().Process(target=_perform, args=(target, path, budget, quick))
        process.start()
        process.join(budget + GRACE)
        overran = process.is_alive()
        if overran:
            # its children, too: the scripts of stages
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
        result = json.loads(path.read_text()) if path.exists() else {}
        log = path.with_suffix(".log")
        said = log.read_text(errors="replace")[-MOST_SAID:] if log.exists() else ""
    result = {"found": {}, "failed": {}, "missed": [], **result}
    ended = "overran" if overran else "failed" if result["failed"] or result["missed"] else "ok"
    if not overran and process.exitcode:
        ended = "crashed"
        result["failed"]["process"] = f"exit code {process.exitcode}: {said}"
    seconds = round(time.monotonic() - began, 1)
    return {"ended": ended, "seconds": seconds, "budget": budget, **result}


def _context() -> Any:
    """Return how stages start: with a GPU in new interpreters, else as forks of a process that has all imports."""
    return multiprocessing.get_context("spawn") if torch.cuda.is_available() else forks.SERVER


def _perform(target: str, path: Path, budget: float, quick: bool) -> None:
    os.setsid()
    log = os.open(path.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    if quick:
        torch.set_num_threads(1)
    findings = Findings(path, quick, budget)
    module, name = target.split(":")
    with findings.part(name):
        getattr(importlib.import_module(module), name)(findings)
    findings.write()


# The product's own scripts ------------------------------------------------------------------------


def prepared(folder: Path) -> Workspace:
    """Make a folder with all inputs of stages; with a GPU, scripts start as on a cluster."""
    if torch.cuda.is_available():
        workspace.Forked = _started  # type: ignore[misc, assignment]
    else:
        forks.fork_from_here()
    return Workspace(folder)


def _started(command: Sequence[str], folder: Path, *_: Any) -> subprocess.Popen[str]:
    # a stage takes a lock of its card in the temporary folder: with one each, they run side by side on one
    own = {**os.environ, "TMPDIR": tempfile.mkdtemp(dir=folder)}
    whole = [sys.executable, *command]
    said = subprocess.PIPE
    return subprocess.Popen(whole, cwd=folder, env=own, stdout=said, stderr=said, text=True)


def outcome(process: Any, seconds: float) -> str:
    """Wait for a script; return "ok", or the reason of its failure."""
    try:
        out, err = process.communicate(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        return "not done in time"
    if process.returncode == 0:
        return "ok"
    lines = [line for line in (out + err).splitlines() if line.strip()]
    said = [line for line in lines if "Error" in line] or lines or ["said nothing"]
    return f"exit code {process.returncode}: {said[-1][:300]}"


def side_by_side() -> int:
    """Return how many scripts run at a time."""
    cores = len(os.sched_getaffinity(0))
    return min(cores, 8) if torch.cuda.is_available() else cores
