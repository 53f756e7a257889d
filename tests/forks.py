"""Run stages in processes forked from one with all imports, which take most of the time of a small stage.

Behaviour that only a new process shows is tested by runs of whole workflows, and where a test uses torchrun.
"""

import atexit
import ctypes
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from strike import Strike

from takd.runtime import command_line

PR_SET_PDEATHSIG = 1
SECONDS_TO_STOP = 30  # as torchrun waits for the others when one has failed

SERVER: Any = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["warm"])


def fork_from_here() -> None:
    """Fork stages from this process, which is forked from the server itself, and not from a server of its own."""
    global SERVER
    SERVER = multiprocessing.get_context("fork")


def start_server() -> None:
    """Start the fork server, unless it runs; PYTHONPATH replaces `sys.path`, which it does not get."""
    if SERVER.get_start_method() == "fork":
        return
    here, before = str(Path(__file__).parent), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, before]))
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class Forked:
    """A running stage, with the interface of `subprocess.Popen`."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        limit_file_kb: int | None = None,
        torchrun: bool = False,
        strike: Strike | None = None,
    ) -> None:
        self._said = [Path(tempfile.mkstemp(prefix="takd-stage-")[1]) for _ in range(2)]
        self._process = SERVER.Process(
            target=_run,
            args=(
                command,
                folder,
                self._said,
                _umask(),
                dict(os.environ),
                limit_file_kb,
                torchrun,
                strike,
            ),
        )
        start_server()
        self._process.start()
        # a failed test leaves its stages running, and the test run would wait for them
        atexit.register(self.send_signal, signal.SIGKILL)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and return stdout and stderr."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        out, err = (path.read_text() for path in self._said)
        for path in self._said:
            path.unlink()
        return out, err


def _umask() -> int:
    found = os.umask(0o022)
    os.umask(found)
    return found


def _run(
    command: Sequence[str],
    folder: Path,
    said: Sequence[Path],
    umask: int,
    environment: dict[str, str],
    limit_file_kb: int | None,
    torchrun: bool,
    strike: Strike | None,
) -> None:
    # The fork server runs as long as any process holds the other end of its pipe; only the tests should.
    os.close(multiprocessing.forkserver._forkserver._forkserver_alive_fd)
    die_with_parent()
    os.chdir(folder)
    # the fork server has those of the first test
    os.umask(umask)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    if limit_file_kb is not None:
        size = limit_file_kb * 1024
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    if not torchrun:
        command_line.launch = _fork
    if strike:
        strike.arm()
    sys.argv = list(command)
    sys.path.insert(0, str(Path(command[0]).parent))  # as Python does for a script
    runpy.run_path(command[0], run_name="__main__")


def die_with_parent() -> None:
    """Make the kernel kill this process when its parent ends, even if it hangs."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _fork(nodes: int, processes: int, threads: int) -> None:
    """Replacement for `takd.runtime.launch.launch` that forks the processes, and ends all if one fails."""
    if processes == 1:
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE=str(processes))
    children = set()
    for rank in range(processes):
        if (child := os.fork()) == 0:
            die_with_parent()
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            return
        children.add(child)
    failed, last = False, 0.0
    while children:
        ended, status = os.waitpid(-1, os.WNOHANG if failed else 0)
        children.discard(ended)
        if status and not failed:
            failed, last = True, time.monotonic() + SECONDS_TO_STOP
            _signal(children, signal.SIGTERM)
        elif failed and not ended:
            if time.monotonic() > last:
                _signal(children, signal.SIGKILL)
            time.sleep(0.02)
    sys.exit(int(failed))


def _signal(processes: set[int], number: signal.Signals) -> None:
    for process in processes:
        os.kill(process, number)
