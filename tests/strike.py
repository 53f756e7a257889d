"""A signal that a stage gets at a moment that no timing has to hit."""

import functools
import importlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE_OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir"}  # events of `sys.audit`


@dataclass
class Strike:
    """The stage sends it to itself.

    Attributes:
        method: module, class and name of a method; after
        calls: of it that ended in this life, and after
        operations: files opened, renamed and removed since then, in any thread, the signal is sent.
        struck: a file that is made when it is sent.
    """

    signal: signal.Signals
    method: str
    calls: int
    struck: Path
    operations: int = 0

    def arm(self) -> None:
        """In the process of the stage, before it starts."""
        path, kind, name = self.method.rsplit(".", 2)
        owner = getattr(importlib.import_module(path), kind)
        plain = getattr(owner, name)

        @functools.wraps(plain)
        def counted(*args: Any, **kwargs: Any) -> Any:
            result = plain(*args, **kwargs)
            self.calls -= 1
            if self.calls == 0:
                self._wait_no_longer()
            return result

        setattr(owner, name, counted)
        sys.addaudithook(self._see)

    def _see(self, event: str, _: tuple[Any, ...]) -> None:
        if self.calls <= 0 and event in FILE_OPERATIONS:
            self.operations -= 1
            self._wait_no_longer()

    def _wait_no_longer(self) -> None:
        if self.operations == 0:
            self.operations = -1  # once, and not for the file below
            self.struck.touch()
            os.kill(os.getpid(), self.signal)
