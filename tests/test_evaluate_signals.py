"""`takd evaluate` passes on what asks it to end, so that its stages save what they have."""

import os
import signal
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from takd.commands import evaluate

# in Snakemake's place: it waits for a job, which ends after it was asked to and has saved
JOB = """
import pathlib, signal, sys
def ask(*_):
    pathlib.Path("saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, ask)
signal.signal(signal.SIGINT, ask)
signal.alarm(10)  # in case nobody asks
pathlib.Path("started").touch()
while True:
    signal.pause()
"""
SNAKEMAKE = f"""#!{sys.executable}
import signal, subprocess, sys
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: None)
subprocess.run(["{sys.executable}", "-c", {JOB!r}])
sys.exit(7)
"""


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_jobs_are_asked_to_end_and_its_own_handlers_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: signal.Signals
) -> None:
    program = tmp_path / "python"
    program.write_text(SNAKEMAKE)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.chdir(tmp_path)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def ask() -> None:
        deadline = time.monotonic() + 30
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), asked)

    asking = threading.Thread(target=ask)
    asking.start()
    experiment = cast(Any, SimpleNamespace(root=tmp_path, name="evaluated"))
    status = evaluate._run(experiment, Namespace(processes=1, threads=1, micro_batch=4))
    asking.join()
    assert status == 7
    assert (tmp_path / "saved").exists()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
