"""Progress of a run: a bar in a terminal or lines in a log, and metrics.jsonl."""

import contextlib
import hashlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from takd.runtime.files import read_json, write_json
from takd.runtime.records import closing_digest

SECONDS_BETWEEN_NOTES = 5.0  # time that a killed attempt may lose
SPENT = "spent.json"
COUNTED = ("tokens", "flops", "step_flops", "skipped", "checkpoints", "checkpoint_seconds")


def cpu_seconds() -> float:
    """CPU time of this process, all its threads, and its children that have ended."""
    return sum(os.times()[:4])


class Journal:
    """Writer of metrics.jsonl: a JSON object per line, with counts over all restarts.

    Attributes:
        flops: of a training; None where they are not counted.
        step_flops: of the last responses drawn, and of the last step's passes.
        skipped: steps whose gradient was not finite.
        checkpoint_seconds: time that training waited for checkpoints.
    """

    def __init__(self, path: Path, active: bool) -> None:
        self.path, self.active = path, active
        self.tokens = self.skipped = self.checkpoints = 0
        self.checkpoint_seconds = 0.0
        self.flops: int | None = None
        self.step_flops: list[int] = []
        self._seconds_before = self._cpu_before = 0.0
        self._started, self._cpu_started = time.monotonic(), cpu_seconds()

    @property
    def seconds(self) -> float:
        """Seconds spent so far, in this process and earlier ones."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all threads so far, in this process, its children and earlier ones."""
        return self._cpu_before + cpu_seconds() - self._cpu_started

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs to continue the counts."""
        counted = {name: getattr(self, name) for name in COUNTED}
        written = self.path.read_bytes() if self.path.exists() else b""
        return {
            **counted,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "metrics_bytes": len(written),
            "metrics_sha256": hashlib.sha256(written).hexdigest(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restore a `state`, and remove the lines written after it."""
        self._seconds_before, self._started = state["seconds"], time.monotonic()
        self._cpu_before, self._cpu_started = state.get("cpu_seconds", 0.0), cpu_seconds()
        for name in COUNTED:
            setattr(self, name, state.get(name, getattr(self, name)))
        if self.active:
            with open(self.path, "ab") as file:
                file.truncate(state["metrics_bytes"])

    def restart(self) -> None:
        """Start with an empty log."""
        if self.active:
            self.path.write_bytes(b"")

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append a line; numbers that are not finite become null, as JSON has none."""
        self._append(self._line(kind, step, values))

    def close(self, step: int, **values: Any) -> None:
        """Append the last line, which holds a digest of the whole log."""
        line = self._line("end", step, {"cpu_seconds": round(self.cpu_seconds, 3), **values})
        if self.active:
            before = self.path.read_bytes() if self.path.exists() else b""
            self._append({**line, "digest": closing_digest(before, line)})

    def _line(self, kind: str, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        line: dict[str, Any] = {
            "kind": kind,
            "step": step,
            "seconds": round(self.seconds, 3),
            "tokens": self.tokens,
            **({} if self.flops is None else {"flops": self.flops}),
        }
        for name, value in values.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            line[name] = value if finite else None
        return line

    def _append(self, line: dict[str, Any]) -> None:
        if self.active:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def timed(folder: Path, active: bool = True) -> Iterator[Journal]:
    """Open the journal of a resumable stage, with the seconds of all attempts so far.

    A thread saves the time regularly, since a killed process cannot.
    """
    journal, note = Journal(folder / "metrics.jsonl", active), folder / SPENT
    if note.exists():
        try:
            journal.resume(read_json(note))
        except (OSError, ValueError, KeyError, TypeError):
            print(
                f"{note} is damaged: the time of earlier attempts is not counted", file=sys.stderr
            )
    # lines of an earlier attempt are written again
    journal.restart()
    ended = threading.Event()

    def take_notes() -> None:
        while not ended.wait(SECONDS_BETWEEN_NOTES):
            write_json(note, journal.state())

    thread = threading.Thread(target=take_notes, daemon=True)
    if active:
        thread.start()
    try:
        yield journal
    finally:
        if active:
            ended.set()
            thread.join()
            write_json(note, journal.state())


class Progress:
    """Progress bar in a terminal; elsewhere a line in the log every few seconds."""

    SECONDS_BETWEEN_LINES = 15.0

    def __init__(self, title: str, total: int, done: int, active: bool) -> None:
        self.title, self.total = title, total
        self.active = active
        self.terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            unit="step",
            disable=not (active and self.terminal),
            dynamic_ncols=True,
        )
        self._first, self._began, self._last = done, time.monotonic(), 0.0

    def step(self, done: int, values: dict[str, float], total: int | None = None) -> None:
        """Show that `done` steps are complete, of `total` if their number has changed."""
        self.total = self._bar.total = total or self.total
        self._bar.update(done - self._bar.n)
        text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._bar.set_postfix_str(text, refresh=False)
        now = time.monotonic()
        due = now - self._last > self.SECONDS_BETWEEN_LINES or done == self.total
        if self.active and not self.terminal and due:
            self._last = now
            rate = (now - self._began) / max(done - self._first, 1)
            left = rate * (self.total - done)
            parts = [f"step {done}/{self.total}", *([text] if text else []), f"{left:.0f} s left"]
            print(f"{self.title}: {', '.join(parts)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()
