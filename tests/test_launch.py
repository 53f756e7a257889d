"""How a stage becomes several processes, and which GPUs of a machine it takes."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from takd.runtime import command_line, gpu_lock
from takd.runtime.errors import InputError
from takd.runtime.launch import ALLOCATOR, launch, over_nodes

NODES = {
    "squeue": 'echo "fir[3,7]"',
    "scontrol": """
        case "$*" in
        *hostnames*) printf "fir3\\nfir7\\n" ;;
        *) echo "NodeName=$4 NodeAddr=10.0.0.3 Port=6818" ;;
        esac""",
}


def stand_ins(folder: Path, commands: dict[str, str]) -> str:
    """A PATH with these commands first."""
    folder.mkdir(exist_ok=True)
    for name, body in commands.items():
        script = folder / name
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return f"{folder}:{os.environ['PATH']}"


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a Slurm job nor under torchrun."""
    for name in ("RANK", "SLURM_JOB_ID", gpu_lock.VISIBLE):
        monkeypatch.delenv(name, raising=False)


def test_several_nodes_run_one_torchrun_each(monkeypatch, tmp_path, outside):
    monkeypatch.setenv("PATH", stand_ins(tmp_path / "bin", NODES))
    monkeypatch.setenv("SLURM_JOB_ID", "41230007")
    command = over_nodes(2, 4, 3)
    assert command[:6] == [
        *("srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=12"),
        "--kill-on-bad-exit=1",
    ]
    assert command[6:9] == [sys.executable, "-m", "torch.distributed.run"]
    assert {"--nnodes=2", "--nproc-per-node=4", "--rdzv-id=41230007"} <= set(command)
    assert command[-1] == "--rdzv-endpoint=10.0.0.3:20007"


def test_several_nodes_without_a_job_of_so_many_are_refused(monkeypatch, tmp_path, outside):
    with pytest.raises(InputError, match="2 nodes need a Slurm job"):
        over_nodes(2, 4, 3)
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("PATH", stand_ins(tmp_path / "bin", NODES))
    with pytest.raises(InputError, match=r"job 5 has 2 nodes .* was to use 3"):
        over_nodes(3, 4, 3)
    monkeypatch.setenv("PATH", stand_ins(tmp_path / "bin", {"squeue": "echo down >&2; exit 1"}))
    with pytest.raises(InputError, match=r"`squeue .*` failed .*: down"):
        over_nodes(2, 4, 3)


def test_one_process_stays_itself(monkeypatch, outside):
    monkeypatch.setattr(os, "execvp", lambda *command: pytest.fail(f"ran {command}"))
    launch(1, 1, 1)
    monkeypatch.setenv("RANK", "0")
    launch(2, 4, 1)


def test_the_time_that_starting_takes_is_the_jobs(monkeypatch):
    # set first, so that what the function puts there is undone after the test
    monkeypatch.setenv(command_line.BEGAN, "")
    monkeypatch.delenv(command_line.BEGAN)
    assert command_line._deadline(1000.0, 100) == 1000 + 60 * 95
    assert command_line._deadline(1500.0, 100) == 1000 + 60 * 95  # torchrun's child
    assert command_line._deadline(1500.0, None) is None


@pytest.mark.parametrize("gpus", [True, False])
@pytest.mark.parametrize("named", [None, *ALLOCATOR])
def test_processes_on_gpus_let_pieces_of_memory_grow(monkeypatch, outside, named, gpus):
    """Unless the user says how memory is taken, by whichever of PyTorch's names."""
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    if named:
        monkeypatch.setenv(named, "max_split_size_mb:64")
    started = {}

    def start(command, arguments):
        started.update(os.environ)
        sys.exit(0)

    monkeypatch.setattr(os, "execvp", start)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(command_line, "reserve_gpus", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--spec={}", "--processes=2"])
    with pytest.raises(SystemExit):
        command_line.main("takd.evaluation.evaluate", gpus=gpus)
    found = {name: started[name] for name in ALLOCATOR if name in started}
    if named:
        assert found == {named: "max_split_size_mb:64"}
    else:
        assert found == ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"} if gpus else {})
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)


@pytest.fixture
def machine(tmp_path: Path, outside: None) -> dict[str, str]:
    """An environment of two GPUs, as nvidia-smi tells."""
    path = stand_ins(tmp_path / "bin", {"nvidia-smi": r'printf "0\n1\n"'})
    (tmp_path / "tmp").mkdir()
    return {**os.environ, "PATH": path, "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": "src"}


def holder(machine: dict[str, str], count: int, **more: str) -> subprocess.Popen[str]:
    """A process that takes GPUs, becomes another program, says what it has, and keeps it until its input ends."""
    after = "import os, sys; print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); sys.stdin.read()"
    program = textwrap.dedent(f"""
        import os, sys
        from takd.runtime.gpu_lock import reserve_gpus
        reserve_gpus({count}, lambda text: print(text, flush=True))
        os.execv(sys.executable, [sys.executable, "-c", {after!r}])
        """)
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={**machine, **more},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )


@pytest.mark.slow
def test_stages_side_by_side_get_different_gpus(machine):
    first, second = holder(machine, 1), holder(machine, 1)
    assert {first.stdout.readline(), second.stdout.readline()} == {"0\n", "1\n"}
    third = holder(machine, 2)
    assert third.stdout.readline() == "waiting for 2 of the 2 GPUs here, which other stages use\n"
    first.kill()  # a lock ends with its process, however that ends
    time.sleep(2 * gpu_lock.SECONDS_BETWEEN_TRIES)
    assert third.poll() is None
    second.kill()
    assert third.stdout.readline() == "0,1\n"
    third.communicate("")
    for process in (first, second):
        process.communicate()


def test_gpus_that_are_given_are_kept_to(machine):
    chosen = holder(machine, 1, CUDA_VISIBLE_DEVICES="7,5")
    assert chosen.stdout.readline() == "7\n"
    hidden = holder(machine, 1, CUDA_VISIBLE_DEVICES="")
    assert hidden.stdout.readline() == "\n"
    # a whole workflow within one Slurm job; another job's card of the same number is another card
    job = {"CUDA_VISIBLE_DEVICES": "7,5", "SLURM_JOB_ID": "3"}
    inside = [holder(machine, 1, **job), holder(machine, 1, **job)]
    assert {process.stdout.readline() for process in inside} == {"7\n", "5\n"}
    for process in (chosen, hidden, *inside):
        process.communicate("")


def test_a_machine_without_gpus_has_none_to_take(machine, tmp_path):
    stand_ins(tmp_path / "bin", {"nvidia-smi": "exit 9"})
    process = holder(machine, 1)
    assert process.communicate("")[0] == "None\n"
