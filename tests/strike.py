"""Send a signal to a stage at an exact point of its run, without timing."""

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
    """A signal that a stage sends to itself.

    It is sent after `calls` calls of `method` have ended in this process, and `operations` file operations since then.

    Attributes:
        signal: the signal.
        method: module, class and name of the method.
        calls: number of its calls.
        struck: file that is created when the signal is sent.
        operations: number of files opened, renamed, removed or created after that, in any thread.
    """

    signal: signal.Signals
    method: str
    calls: int
    struck: Path
    operations: int = 0

    def arm(self) -> None:
        """Install the counters, in the process of the stage before it starts."""
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
            self.operations = -1  # send it once, and not for the file below
            self.struck.touch()
            os.kill(os.getpid(), self.signal)
