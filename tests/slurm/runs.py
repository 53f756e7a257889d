"""Runs of the workflow on a cluster: a copy with the real stages, and the process that submits its jobs."""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conftest import Project, copy_workflow

from slurm.cluster import Cluster, parent_of
from slurm.experiments import STEPS

# time limit of a run with its jobs
SECONDS = 480.0
EAGER = Path(__file__).with_name("eager.py")
# poll Slurm early; the profile's own values suit runs of days
POLLING = ("--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10")
PROFILE = "profiles/slurm/config.yaml"
# The training that tests interrupt, and the target of the run.
TRAINED = "results/small/models/teacher-sft/seed1"
TARGET = f"{TRAINED}/manifest.json"
LOG = "logs/small/models/teacher-sft/seed1.log"


class SlurmProject(Project):
    """A copy of the workflow with its real stages, and with the Slurm profile for a cluster without accounts."""

    def copy(self, folder: Path) -> "SlurmProject":
        return SlurmProject(super().copy(folder).folder)

    def trainers(self, cluster: Cluster) -> list[int]:
        """List the processes that currently train in this folder."""
        found = []
        for process in cluster.processes():
            try:
                words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
                here = Path(f"/proc/{process}/cwd").resolve()
            except OSError:  # the process has ended
                continue
            # torchrun starts it with -u
            if here == self.folder and b"workflow/scripts/train.py" in words[1:3]:
                found.append(process)
        return found

    def checkpoints(self) -> list[int]:
        """Steps of the training's checkpoints."""
        folders = (self.folder / TRAINED / "checkpoints").glob("*/step-*")
        return sorted(int(folder.name.removeprefix("step-")) for folder in folders)

    def weights(self) -> str:
        """Digest of the trained weights; checks that the manifest has it."""
        path = self.folder / TRAINED / "model/model.safetensors"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert digest in json.dumps(json.loads((self.folder / TARGET).read_text()))
        return digest

    def resumed_from(self) -> int:
        """Step from which the last attempt resumed; 0 if it started from the beginning."""
        found = re.search(r"resumes from step (\d+)", (self.folder / LOG).read_text())
        return int(found[1]) if found else 0

    def steps(self) -> list[int]:
        """Steps in metrics.jsonl, in the order in which they were written."""
        lines = (self.folder / TRAINED / "metrics.jsonl").read_text().splitlines()
        return [line["step"] for line in map(json.loads, lines) if line["kind"] == "train"]

    def must_end_as(self, undisturbed: "SlurmProject") -> None:
        """Check that the weights equal those of the undisturbed training and each step is logged once."""
        assert self.weights() == undisturbed.weights()
        assert self.steps() == undisturbed.steps() == list(range(1, STEPS + 1))


class Run:
    """A running `snakemake --profile profiles/slurm`, whose output goes to a file."""

    def __init__(self, cluster: Cluster, project: SlurmProject, *arguments: str) -> None:
        self.cluster, self.project, self.began = cluster, project, time.monotonic()
        self.file = project.folder / f"output-{time.monotonic_ns()}.txt"
        command = [sys.executable, str(EAGER), *arguments, "--profile", "profiles/slurm"]
        with open(self.file, "wb") as output:
            self.process = subprocess.Popen(
                [*command, *POLLING],
                cwd=project.folder,
                env=cluster.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches it with its children, but not pytest
                preexec_fn=_heed_interrupts,
            )

    @property
    def output(self) -> str:
        """Its output so far."""
        return self.file.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def in_time(self, seconds: float = SECONDS) -> bool:
        """Return whether it has run for at most this time."""
        return time.monotonic() - self.began < seconds

    def jobs(self) -> list[dict[str, str]]:
        """List all jobs submitted from this folder, oldest first."""
        return self.cluster.jobs(self.project.folder)

    def rules(self) -> dict[str, list[dict[str, str]]]:
        """Its jobs by rule, as the comment says that Snakemake gives each."""
        found: dict[str, list[dict[str, str]]] = {}
        for job in self.jobs():
            rule = job["Comment"].removeprefix("rule_").split("_wildcards_")[0]
            found.setdefault(rule, []).append(job)
        return found

    def states(self) -> list[str]:
        """Final states of its jobs."""
        return [job["JobState"] for job in self.jobs()]

    def until_checkpoint(self) -> str:
        """Wait until the training runs and has a checkpoint; returns the id of its job."""

        def trains() -> bool:
            assert self.running, f"snakemake ended before there was a checkpoint:\n{self.output}"
            return bool(self.project.checkpoints()) and bool(self.trainers())

        self.cluster.wait_until("a checkpoint", trains, SECONDS)
        return self.jobs()[-1]["JobId"]

    def trainers(self) -> list[int]:
        """List the processes that currently train in its folder."""
        return self.project.trainers(self.cluster)

    def interrupt(self) -> None:
        """Send Ctrl-C to it and its children, as a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, seconds: float = SECONDS) -> int:
        """Wait for its end and return the exit status. It is killed on timeout, since it ignores SIGTERM."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"snakemake did not end within {seconds:.0f} s") from None

    def succeed(self) -> str:
        """Wait for its end, check that it succeeded, and return its output."""
        status = self.wait()
        assert status == 0, f"snakemake ended with {status}:\n{self.output}"
        return self.output

    def fail(self) -> str:
        """Wait for its end, check that it failed, and return its output."""
        status = self.wait()
        assert status != 0, f"snakemake should have failed:\n{self.output}"
        return self.output

    def kill(self) -> None:
        """Kill it with its children; its jobs continue."""
        if self.running:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _heed_interrupts() -> None:
    """Restore the handling of Ctrl-C, which a shell disables for processes in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def slowed(process: int, share: float = 0.05) -> Iterator[None]:
    """Slow a process to a share of its speed, so that a training lasts long enough on any machine."""
    done = threading.Event()

    def pause() -> None:
        while not done.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP)
                done.wait(0.4 * (1 - share))
                if share:
                    os.kill(process, signal.SIGCONT)
            done.wait(0.4 * share)

    thread = threading.Thread(target=pause)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def snakemake_of(trainer: int) -> int:
    """Process id of the Snakemake within the job that started a stage."""
    process = trainer
    while b"snakemake" not in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0"):
        process = parent_of(process)
    return process


def make_slurm_project(folder: Path, experiment: Mapping[str, Any]) -> SlurmProject:
    """Copy the workflow with its real stages, and with the Slurm profile adapted to the test cluster."""
    copy_workflow(folder, experiment)
    return for_cluster(folder)


def for_cluster(folder: Path) -> SlurmProject:
    """Adapt the Slurm profile of a copy to the test cluster."""
    project = SlurmProject(folder.resolve())
    project.replace(PROFILE, "account: def-CHANGEME", 'account: ""')
    # there is no GPU, and four processes would share few cores
    project.replace(PROFILE, "processes: ?gpus", "processes: 1")
    return project
