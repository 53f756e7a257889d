"""How stages end: two processes many times on loaded cores, what hangs, what fails, and what the tests leave behind.

TAKD_ENDS=200 python -m pytest tests/test_ending.py -k many starts and ends two processes so many times.
"""

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from forks import SERVER, die_with_parent
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from workspace import ROOT, Workspace

from takd.runtime import shutdown

ENDS = int(os.environ.get("TAKD_ENDS", "10"))
SECONDS_OF_A_HANG = 60

HANGS = {
    "in Python": "import time; time.sleep(1000)",
    "in C, with the GIL": "import ctypes; ctypes.PyDLL(None).sleep(1000)",
}
TRAIN = """
main("takd.training.train", also=lambda spec: [f"takd.methods.{spec['method']}"], gpus=True)
"""


def train_a_little(rank: int, store: str) -> None:
    """What a training of two processes does with their group; its model is gone when this returns."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    model = DistributedDataParallel(nn.Linear(4, 4))
    model(torch.ones(2, 4)).sum().backward()
    # A worker of the group that wants the GIL now waits until this thread gives it up: the race that is won 29 times in
    # 30 is lost one time in two.
    sys.setswitchinterval(100)
    for _ in range(5):
        torch.distributed.all_reduce(torch.ones(3), async_op=True)
    torch.distributed.barrier()
    torch.distributed.all_reduce(torch.ones(3))


def start_and_end(count: int, busy: int) -> None:
    """Fork pairs of processes, one after the other, beside some that keep the cores busy."""
    import torch._dynamo  # noqa: F401 - DDP imports it: here, once

    for _ in range(busy):
        if os.fork() == 0:
            die_with_parent()
            while True:
                pass
    for _ in range(count):
        with tempfile.TemporaryDirectory() as folder:
            pair = []
            for rank in range(2):
                if (child := os.fork()) == 0:
                    die_with_parent()
                    signal.alarm(SECONDS_OF_A_HANG)
                    train_a_little(rank, f"{folder}/store")
                    try:
                        shutdown.leave(0)
                    except SystemExit as end:  # forked processes have no exit functions
                        gc.collect()
                        os._exit(end.code)
                pair.append(child)
            states = [os.waitpid(child, 0)[1] for child in pair]
        if any(states):
            os._exit(1)


def test_two_processes_end_many_times_on_loaded_cores():
    process = SERVER.Process(target=start_and_end, args=(ENDS, os.cpu_count()))
    process.start()
    process.join(60 + ENDS * SECONDS_OF_A_HANG)
    assert process.exitcode == 0


def python(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program that ends as a stage does."""
    program = (
        f"import atexit\nfrom takd.runtime import shutdown\nshutdown.skip_teardown()\n{program}"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        text=True,
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )


@pytest.mark.parametrize("code", [0, 1])
def test_exit_functions_run_and_nothing_is_taken_apart(code):
    process = python(f"""
import threading, time
class Library:
    def __del__(self):
        print("taken apart")
library = Library()
atexit.register(print, "exit function")
threading.Thread(target=lambda: (time.sleep(0.2), print("written"))).start()
shutdown.leave({code})
""")
    assert process.returncode == code
    assert process.stdout == "written\nexit function\n" and process.stderr == ""


@pytest.mark.parametrize("hang", HANGS)
@pytest.mark.parametrize("code", [0, 1])
def test_a_process_that_hangs_is_ended_with_the_code_that_it_had(hang, code):
    process = python(f"""
shutdown.SECONDS_TO_END, shutdown.SECONDS_TO_TELL = 0.5, 0.5
def library():
    {HANGS[hang]}
atexit.register(library)
shutdown.leave({code})
""")
    assert process.returncode == code
    assert "hung after its work was over and was ended after 0.5 s" in process.stdout
    assert f"with exit code {code}" in process.stdout
    assert "in library" in process.stderr


class Scripted(Workspace):
    """Trainings through a script of the test's own, which ends as `workflow/scripts/train.py` does."""

    def script(self, program: str) -> None:
        path = self.folder / "changed_train.py"
        path.write_text(
            f"from takd.runtime import shutdown\nfrom takd.runtime.command_line import main\n{program}{TRAIN}"
        )

    def start(self, script: str, *arguments, **options):
        return super().start(str(self.folder / f"changed_{script}"), *arguments, **options)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Scripted(tmp_path_factory.mktemp("ending"))


@pytest.mark.parametrize("hang", HANGS)
def test_a_training_that_hangs_after_its_last_step_ends_with_its_outputs(workspace, hang):
    workspace.script(f"""
import torch
shutdown.SECONDS_TO_END, shutdown.SECONDS_TO_TELL = 1.0, 0.5
def destroyed():
    {HANGS[hang]}
torch.distributed.destroy_process_group = destroyed
""")
    name = hang.replace(" ", "-")
    process = workspace.train(name, "sft", processes=2, steps=1)
    said = workspace.finished(process)
    assert said.count("hung after its work was over") == 2 and "in destroyed" in said
    assert (workspace.folder / name / "manifest.json").exists()


def test_a_process_that_fails_ends_those_that_wait_for_it(workspace):
    """Under torchrun; and a checkpoint that was being written is whole."""
    workspace.script("""
import os, time
from takd.training.best_weights import Keeper
from takd.training.loop import Run
def optimize(run, step, whole=Run.optimize):
    if step == 2 and run.rank == 0:
        raise OSError("out of something")
    return whole(run, step)
def write(keeper, *arguments, whole=Keeper._write):
    time.sleep(2)
    whole(keeper, *arguments)
Run.optimize, Keeper._write = optimize, write
""")
    options = {"processes": 2, "torchrun": True, "steps": 4}
    began = time.monotonic()
    process = workspace.train("failing", "sft", "--checkpoint-seconds=0", **options)
    said = workspace.finished(process, code=1)
    assert "Error: OSError: out of something" in said
    assert "hung after its work" not in said
    assert time.monotonic() - began < 120
    steps = {path.name for path in (workspace.folder / "failing").glob("checkpoints/*/step-*")}
    assert steps == {"step-000000001", "step-000000002"}


def test_a_stage_does_not_outlive_the_tests(tmp_path):
    """However they end, and even if it holds the GIL for ever."""
    stage = tmp_path / "stage.py"
    stage.write_text(f"import os; print(os.getpid(), flush=True)\n{HANGS['in C, with the GIL']}\n")
    tests = tmp_path / "tests.py"
    tests.write_text(f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
if __name__ == "__main__":
    import forks
    forks.SERVER.set_forkserver_preload([])
    process = forks.Forked([{str(stage)!r}], {str(tmp_path)!r})
    while not process._said[0].read_text():
        time.sleep(0.01)
    print(process._said[0].read_text(), flush=True)
    time.sleep(1000)
""")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    session = subprocess.Popen(
        [sys.executable, str(tests)], stdout=subprocess.PIPE, text=True, env=environment
    )
    left = int(session.stdout.readline())
    os.kill(left, 0)
    session.kill()
    session.communicate()
    for _ in range(1000):
        if not Path(f"/proc/{left}").exists():
            return
        time.sleep(0.02)
    os.kill(left, signal.SIGKILL)
    pytest.fail("the stage was still there")
