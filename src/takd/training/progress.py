"""What a run tells while it goes: a bar in a terminal, plain lines elsewhere, and metrics.jsonl."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm


class Journal:
    """metrics.jsonl: one JSON object a line, with seconds and tokens counted over all restarts."""

    def __init__(self, path: Path, active: bool) -> None:
        self.path, self.active = path, active
        self.tokens = 0
        self._seconds_before = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent so far, in this process and those before it."""
        return self._seconds_before + time.monotonic() - self._started

    def resume(self, size: int, seconds: float, tokens: int) -> None:
        """Go on after a checkpoint: forget the lines written after it."""
        self._seconds_before, self._started, self.tokens = seconds, time.monotonic(), tokens
        if self.active:
            with open(self.path, "ab") as file:
                file.truncate(size)

    def restart(self) -> None:
        """Begin anew: there is no checkpoint to go on from."""
        if self.active:
            self.path.write_bytes(b"")

    def size(self) -> int:
        """Bytes written, for a checkpoint."""
        return self.path.stat().st_size if self.path.exists() else 0

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one line."""
        line = {
            "kind": kind,
            "step": step,
            "seconds": round(self.seconds, 3),
            "tokens": self.tokens,
        }
        if self.active:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({**line, **values}) + "\n")


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
