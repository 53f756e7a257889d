"""What all stages share: command line, check of code and inputs, and output files.

A stage is a function `run(stage)` in a module of this package. It gets its settings as one JSON
string, and its inputs and outputs as named paths; it does not depend on Snakemake.
"""

import argparse
import contextlib
import importlib
import json
import math
import os
import re
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from takd.runtime import input_check as reading
from takd.runtime import shutdown
from takd.runtime.digests import code_digest, file_digest, git_commit, readable_json
from takd.runtime.errors import InputError, no_room, printable
from takd.runtime.gpu_lock import lease
from takd.runtime.launch import launch, set_allocator
from takd.runtime.records import digests, sealed

PIECE = "piece"  # name of inputs that are pieces of the result, such as parts of generations
LOG = "metrics"  # name of the output that is a log
USED_OF_RUNTIME = 0.95  # the rest is for start-up, a last step and a checkpoint
CHECKPOINT_SECONDS = 600.0
BEGAN = "TAKD_BEGAN"  # environment variable: when the first process of the job started

NOT_DETERMINISTIC = "does not have a deterministic implementation"  # part of torch's error message

VERSIONED = (
    "torch",
    "transformers",
    "accelerate",
    "deepspeed",
    "peft",
    "datasets",
    "tokenizers",
    "rouge_score",
)


class Interrupted(Exception):
    """Raised when a stage stops early, on SIGTERM or at its time limit; its progress is saved."""


@dataclass
class Stage:
    """One run of a stage: its settings, named paths and resources.

    Attributes:
        spec: settings.
        code: digest of the code of the stage.
        inputs: paths by name.
        outputs: one path by name.
        threads: threads of each process.
        processes: processes on each node, one per GPU.
        micro_batch: rows that a process handles at once.
        deadline: Unix time at which the stage must stop; None for no limit.
        checkpoint_seconds: longest time between two checkpoints.
        stop_requested: whether SIGTERM was received.
    """

    spec: dict[str, Any]
    code: str
    inputs: dict[str, list[Path]] = field(default_factory=dict)
    outputs: dict[str, Path] = field(default_factory=dict)
    threads: int = 1
    processes: int = 1
    micro_batch: int = 8
    gradient_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = False
    deadline: float | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    stop_requested: bool = False
    git_commit: str | None = None

    def input(self, name: str) -> Path:
        """Return the only input called `name`."""
        paths = self.many(name)
        if len(paths) != 1:
            raise InputError(
                f"--input {name}=PATH must be given once, but is given {len(paths)} times."
            )
        return paths[0]

    def many(self, name: str) -> list[Path]:
        """Return all inputs called `name`, in the given order."""
        return self.inputs.get(name, [])

    def origin(self) -> dict[str, str | None]:
        """Return commit and code digest for the last line of a log.

        Manifests hold no commit, since stages that read them would rerun after each commit.
        """
        return {"commit": self.git_commit, "code": self.code}

    def say(self, text: str) -> None:
        """Print a message to log (stderr) and console (stdout), in the first process only."""
        if int(os.environ.get("RANK", 0)) == 0:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(
                    OSError
                ):  # the log's disk may be full; the console still works
                    print(text, file=stream, flush=True)

    def should_stop(self) -> bool:
        """Return whether to save a checkpoint and stop, on SIGTERM or at the time limit."""
        return self.stop_requested or (self.deadline is not None and time.time() > self.deadline)

    def temporary(self, path: Path) -> Path:
        """Create an empty folder beside `path`, to be filled and then moved there with `commit`."""
        work = path.with_name(f".{path.name}.partial")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        return work

    def commit(self, path: Path) -> None:
        """Move the folder from `temporary(path)` to `path`, replacing what was there.

        Files get the default permissions: safetensors creates some that only their owner may read.
        """
        work = path.with_name(f".{path.name}.partial")
        mode = work.stat().st_mode & 0o666  # that of a new folder, which follows the umask
        for file in work.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(mode)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(work, path)

    def write_manifest(
        self,
        path: Path,
        files: dict[str, str] | None = None,
        known_by_content: Collection[str] = (),
        **fields: Any,
    ) -> None:
        """Write the manifest that identifies the result of this stage.

        It holds no times and no machine names, so that equal work gives equal bytes and stages that
        read it do not rerun. It is written last: if a manifest exists, all other outputs do.

        Args:
            path: the manifest.
            files: digests of the outputs, if already known.
            known_by_content: settings to leave out because the digests of the result already
                identify them, such as where a source lies or what was only checked.
            **fields: further facts.
        """
        versions = {name: _version(name) for name in VERSIONED}
        spec = {key: value for key, value in self.spec.items() if key not in known_by_content}
        more = {"spec": spec, "code": self.code, "versions": versions}
        self.write_record(path, files, **fields, **more)

    def write_record(self, path: Path, files: dict[str, str] | None = None, **fields: Any) -> None:
        """Write facts, the digests of inputs and outputs, and a digest of the record itself.

        Inputs that are pieces of the result are left out, so that the number of pieces does not
        change the record.
        """
        sources = {
            name: [file_digest(path) for path in paths if path.is_file()]
            for name, paths in self.inputs.items()
            if name != PIECE
        }
        files = self.digests(path) if files is None else files
        log = {"log": self.outputs[LOG].name} if LOG in self.outputs else {}
        write_json(path, sealed({**fields, **log, "inputs": sources, "files": files}))

    def digests(self, record: Path) -> dict[str, str]:
        """Return the sha256 of each output file, by its path from the folder of the record.

        The log is left out, since its times differ between equal runs; its last line holds its own
        digest.
        """
        paths = [p for name, p in self.outputs.items() if name != LOG and p != record]
        return digests(paths, record.parent, self.threads)


def write_json(path: Path, value: Any) -> None:
    """Write a value as canonical, indented JSON, atomically."""
    write_text(path, readable_json(value))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def main(
    module: str,
    also: Callable[[dict[str, Any]], list[str]] | None = None,
    gpus: bool = False,
    named: Callable[[dict[str, Any]], list[str]] | None = None,
) -> None:
    """Run the stage in `module` with the arguments of the command line.

    Args:
        module: dotted name of the stage's module.
        also: returns modules that the settings select at run time, for the digest of the code.
        gpus: whether the stage uses GPUs.
        named: returns the inputs of which only the manifest is read.
    """
    began = time.time()
    shutdown.skip_teardown()
    parser = _parser(module)
    arguments = parser.parse_args()
    spec = arguments.spec
    try:
        entries = [module, *(also(spec) if also else [])]
        present = code_digest(*entries)
        only_named = named(spec) if named else []
    except (KeyError, TypeError, ImportError) as error:
        parser.error(f"argument --spec: lacks a setting or has a wrong one ({error!r}).")
    code = arguments.code or present
    if code != present:
        sys.exit(
            f"The code of this stage ({', '.join(entries)}) changed after it was submitted"
            f" (digest {code} then, {present} now); start snakemake again."
        )
    if int(os.environ.get("RANK", 0)) == 0:
        job = f", Slurm job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
        with contextlib.suppress(OSError):  # on a full disk
            print(
                f"{module} on {socket.gethostname()}, process {os.getpid()}{job}", file=sys.stderr
            )
    stage = Stage(
        spec=spec,
        code=code,
        inputs=_named(arguments.input),
        outputs={name: paths[0] for name, paths in _named(arguments.output).items()},
        threads=arguments.threads,
        processes=arguments.processes,
        micro_batch=arguments.micro_batch,
        gradient_checkpointing=arguments.gradient_checkpointing,
        compile=arguments.compile,
        deterministic=arguments.deterministic,
        checkpoint_seconds=arguments.checkpoint_seconds,
        deadline=_deadline(began, arguments.runtime),
    )

    def request_stop(number: int, frame: Any) -> None:
        stage.stop_requested = True

    signal.signal(signal.SIGTERM, request_stop)
    shutdown.leave(_attempt(module, stage, arguments.nodes, gpus, only_named))


def _attempt(module: str, stage: Stage, nodes: int, gpus: bool, named: Collection[str]) -> int:
    """Run the stage and return the exit code.

    Being a function of its own, it frees everything that the stage and its errors refer to on
    return.
    """
    try:
        if "RANK" not in os.environ:  # only once, before torchrun starts several processes
            verify(stage, named)
        if gpus:
            set_allocator()
        if gpus and nodes == 1:
            lease(stage.processes, stage.say)
        launch(nodes, stage.processes, stage.threads)
        stage.git_commit = git_commit()
        importlib.import_module(module).run(stage)
    except (InputError, Interrupted) as error:
        stage.say(f"{'Stopped' if isinstance(error, Interrupted) else 'Error'}: {error}")
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if told := no_room(error, next(iter(stage.outputs.values()), Path())):
            stage.say(f"Error: {told}")
            return 1
        if NOT_DETERMINISTIC in str(error):
            operation = str(error).split()[0]
            stage.say(
                f"Error: torch has no variant of {operation} that gives the same numbers each time, for which"
                " `deterministic: 1` asks; set it to 0 for this rule in the profile."
            )
            return 1
        # the traceback goes to the log; the console gets one line
        print(f"Error: {type(error).__name__}: {error}", flush=True)
        traceback.print_exc()
        return 1
    return 0


def verify(stage: Stage, named: Collection[str]) -> None:
    """Compare the inputs of a stage with their records, and log how long that took."""
    began = time.monotonic()
    reading.verify(stage.spec, stage.inputs, stage.threads * stage.processes, named)
    print(
        f"inputs compared with their digests in {time.monotonic() - began:.2f} s", file=sys.stderr
    )


class _Parser(argparse.ArgumentParser):
    """Argument parser that reports an error as one sentence, on the console and in the log."""

    def error(self, message: str) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):
            print(f"Error: {printable(message)}", file=stream, flush=True)
        sys.exit(2)


def _parser(module: str) -> argparse.ArgumentParser:
    parser = _Parser(description=f"Stage {module} of the workflow.", allow_abbrev=False)
    add = parser.add_argument
    add("--spec", required=True, type=_spec, help="settings as JSON")
    add("--code", help="digest of the code at submission; refused if it is another one now")
    named: dict[str, Any] = {"action": "append", "default": [], "metavar": "NAME=PATH"}
    add("--input", type=_pair, **named, help="may be repeated")
    add("--output", type=_pair, **named, help="may be repeated")
    add("--threads", type=_count, default=1, help="threads of each process")
    add("--processes", type=_count, default=1, help="processes on each node: one per GPU")
    add("--nodes", type=_count, default=1, help="nodes of the Slurm job to spread over")
    add("--micro-batch", type=_count, default=8, help="rows a process handles at once")
    switch: dict[str, Any] = {"type": _switch, "default": False, "metavar": "0|1"}
    add("--gradient-checkpointing", **switch, help="1: less memory in training, more time")
    add("--compile", **switch, help="1: training passes through torch.compile")
    add("--deterministic", **switch, help="1: the same numbers each time on a GPU, more slowly")
    add(
        "--runtime",
        type=_minutes,
        help="minutes that the job has: leaves in time, with a checkpoint",
    )
    add(
        *("--checkpoint-seconds",),
        type=_time,
        default=CHECKPOINT_SECONDS,
        help="longest time between checkpoints; 5 %% of a training where that is less",
    )
    return parser


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(_wrong(text, "a whole number of at least 1"))
    return int(text)


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise argparse.ArgumentTypeError(_wrong(text, "0 or 1"))
    return text == "1"


def _time(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(_wrong(text, "a finite number of at least 0"))
    return number


def _minutes(text: str) -> float:
    if _time(text) == 0:
        raise argparse.ArgumentTypeError(_wrong(text, "a finite number greater than 0"))
    return float(text)


def _spec(text: str) -> dict[str, Any]:
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"is not JSON ({error}); it must be an object.") from None
    if not isinstance(spec, dict):
        raise argparse.ArgumentTypeError(_wrong(text, "a JSON object"))
    return spec


def _pair(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not (name and path) or "\0" in path:
        raise argparse.ArgumentTypeError(_wrong(text, "NAME=PATH"))
    return name, Path(path)


def _wrong(text: str, right: str) -> str:
    shown = text if len(text) < 60 else f"{text[:60]}…"
    return f"is {shown!r}, but must be {right}; the profile sets resources (set-resources, set-threads)."


def _named(pairs: list[tuple[str, Path]]) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    for name, path in pairs:
        named.setdefault(name, []).append(path)
    return named


def _deadline(began: float, runtime: float | None) -> float | None:
    """Return when to stop, as Unix time.

    Under torchrun this program starts again, so the time is counted from the job's first process.
    """
    if not runtime:
        return None
    began = float(os.environ.setdefault(BEGAN, str(began)))
    return began + 60 * runtime * USED_OF_RUNTIME


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
