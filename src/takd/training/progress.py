"""What a run tells while it goes: a bar in a terminal, plain lines elsewhere, and metrics.jsonl."""

import contextlib
import hashlib
import json
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from takd.integrity import closing_digest
from takd.stage import read_json, write_json

SECONDS_BETWEEN_NOTES = 5.0  # the most that a kill takes from the time
SPENT = "spent.json"
COUNTED = ("tokens", "skipped", "checkpoints", "checkpoint_seconds")


class Journal:
    """metrics.jsonl: one JSON object a line, with seconds and tokens counted over all restarts.

    Attributes:
        skipped: steps without a finite gradient, whose update was left out.
        checkpoints: how many were made, and `checkpoint_seconds` that training waited for them.
    """

    def __init__(self, path: Path, active: bool) -> None:
        self.path, self.active = path, active
        self.tokens = self.skipped = self.checkpoints = 0
        self.checkpoint_seconds = 0.0
        self._seconds_before = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent so far, in this process and those before it."""
        return self._seconds_before + time.monotonic() - self._started

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold for the counts to go on."""
        counted = {name: getattr(self, name) for name in COUNTED}
        written = self.path.read_bytes() if self.path.exists() else b""
        return {
            **counted,
            "seconds": self.seconds,
            "metrics_bytes": len(written),
            "metrics_sha256": hashlib.sha256(written).hexdigest(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on after a checkpoint: forget the lines written after it."""
        self._seconds_before, self._started = state["seconds"], time.monotonic()
        for name in COUNTED:
            setattr(self, name, state[name])
        if self.active:
            with open(self.path, "ab") as file:
                file.truncate(state["metrics_bytes"])

    def restart(self) -> None:
        """Begin anew: there is no checkpoint to go on from."""
        if self.active:
            self.path.write_bytes(b"")

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one line; a number that is not finite becomes null, which JSON has."""
        self._append(self._line(kind, step, values))

    def close(self, step: int, **values: Any) -> None:
        """Append the last line, which has a digest of the whole log."""
        line = self._line("end", step, values)
        if self.active:
            before = self.path.read_bytes() if self.path.exists() else b""
            self._append({**line, "digest": closing_digest(before, line)})

    def _line(self, kind: str, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        line: dict[str, Any] = {
            "kind": kind,
            "step": step,
            "seconds": round(self.seconds, 3),
            "tokens": self.tokens,
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
    """The journal of a stage that goes on from what it wrote down, with the seconds of all attempts, killed ones too.

    A thread notes them now and then, since a process that is killed has no last word.
    """
    journal, note = Journal(folder / "metrics.jsonl", active), folder / SPENT
    if note.exists():
        try:
            journal.resume(read_json(note))
        except (OSError, ValueError, KeyError, TypeError):
            print(
                f"{note} is damaged: the time of earlier attempts is not counted", file=sys.stderr
            )
    # the lines of an attempt whose success was not noted are told anew
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
    """A bar in a terminal; elsewhere a line of the log now and then."""

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

    def step(self, done: int, values: dict[str, float]) -> None:
        """One more step is done."""
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
        """Leave the terminal as it was."""
        self._bar.close()
