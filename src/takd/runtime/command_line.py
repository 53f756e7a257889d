"""Command line of a stage: read it, check code and inputs, start the processes, run the stage."""

import argparse
import contextlib
import json
import math
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

from takd.runtime import imports, input_check, shutdown, store
from takd.runtime.code_digest import code_digest, git_commit
from takd.runtime.errors import InputError, no_room, printable
from takd.runtime.gpu_lock import reserve_gpus
from takd.runtime.launch import launch, launched, rank, set_allocator
from takd.runtime.stage import CHECKPOINT_SECONDS, Interrupted, Stage

USED_OF_RUNTIME = 0.95  # the rest is for start-up, a last step and a checkpoint
BEGAN = "TAKD_BEGAN"  # environment variable: when the first process of the job started
NOT_DETERMINISTIC = "does not have a deterministic implementation"  # part of torch's error message

Modules = Callable[[dict[str, Any]], list[str]]


def main(
    module: str, also: Modules | None = None, gpus: bool = False, named: Modules | None = None
) -> None:
    """Run the stage in `module` with the arguments of the command line.

    Args:
        also: returns modules that the settings select at run time, for the digest of the code.
        gpus: whether the stage asks models, on GPUs where there are any.
        named: returns the inputs of which only the manifest is read.
    """
    began = time.time()
    shutdown.skip_teardown()
    parser = _parser(module)
    given = vars(parser.parse_args())
    submitted, nodes, minutes = given.pop("code"), given.pop("nodes"), given.pop("runtime")
    inputs, outputs = (_by_name(given.pop(name)) for name in ("input", "output"))
    try:
        entries = [module, *(also(given["spec"]) if also else [])]
        code = code_digest(*entries)
        only_named = named(given["spec"]) if named else []
    except (KeyError, TypeError, ImportError) as error:
        parser.error(f"argument --spec: lacks a setting or has a wrong one ({error!r}).")
    if submitted not in (None, code):
        sys.exit(
            f"The code of this stage ({', '.join(entries)}) changed after it was submitted"
            f" (digest {submitted} then, {code} now); start snakemake again."
        )
    if rank() == 0:
        job = f", Slurm job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
        where = f"{module} on {socket.gethostname()}, process {os.getpid()}{job}"
        with contextlib.suppress(OSError):  # on a full disk
            print(where, file=sys.stderr)
    stage = Stage(
        **given,
        code=code,
        inputs=inputs,
        outputs={name: paths[0] for name, paths in outputs.items()},
        deadline=_deadline(began, minutes),
    )

    def request_stop(number: int, frame: Any) -> None:
        stage.stop_requested = True

    signal.signal(signal.SIGTERM, request_stop)
    shutdown.leave(_attempt(module, stage, nodes, gpus, only_named))


def _attempt(module: str, stage: Stage, nodes: int, gpus: bool, named: Collection[str]) -> int:
    """Run the stage and return the exit code.

    Being a function of its own, it frees everything that the stage and its errors refer to on
    return.
    """
    try:
        if not launched():
            verify(stage, named)
        entry = store.of(stage) if rank() == 0 else None
        if entry and not launched() and entry.take_or_claim(stage):
            return 0
        if gpus:
            imports.hide("scipy", *([] if _sharded(stage.spec) else ["deepspeed"]))
            imports.scan_transformers_once()
            set_allocator()
        if gpus and nodes == 1:
            reserve_gpus(stage.processes, stage.say)
        launch(nodes, stage.processes, stage.threads)
        stage.git_commit = git_commit()
        imports.quickly(module).run(stage)
        if entry:
            entry.put(stage)
    except (InputError, Interrupted) as error:
        stage.say(f"{'Stopped' if isinstance(error, Interrupted) else 'Error'}: {error}")
        return 1
    except (Exception, KeyboardInterrupt) as error:
        full = no_room(error, next(iter(stage.outputs.values()), Path()))
        if full:
            stage.say(f"Error: {full}")
        elif NOT_DETERMINISTIC in str(error):
            operation = str(error).split()[0]
            stage.say(
                f"Error: torch has no variant of {operation} that gives the same numbers each time, for which"
                " `deterministic: 1` asks; set it to 0 for this rule in the profile."
            )
        else:
            # the traceback goes to the log; the console gets one line
            print(f"Error: {type(error).__name__}: {error}", flush=True)
            traceback.print_exc()
        return 1
    return 0


def _sharded(spec: dict[str, Any]) -> bool:
    return bool(spec.get("settings", {}).get("deepspeed"))


def verify(stage: Stage, named: Collection[str]) -> None:
    """Compare the inputs of a stage with their records, and log how long that took."""
    began = time.monotonic()
    input_check.verify(stage.spec, stage.inputs, stage.threads * stage.processes, named)
    took = time.monotonic() - began
    print(f"inputs compared with their digests in {took:.2f} s", file=sys.stderr)


def _deadline(began: float, minutes: float | None) -> float | None:
    """Return when to stop, as Unix time.

    Under torchrun this program starts again, so the time is counted from the job's first process.
    """
    if not minutes:
        return None
    began = float(os.environ.setdefault(BEGAN, str(began)))
    return began + 60 * minutes * USED_OF_RUNTIME


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
    add("--max-tokens", type=_limit, default=0, help="tokens it handles at once; 0: no limit")
    switch: dict[str, Any] = {"type": _switch, "default": False, "metavar": "0|1"}
    add("--gradient-checkpointing", **switch, help="1: less memory in training, more time")
    add("--compile", **switch, help="1: training passes through torch.compile")
    add("--deterministic", **switch, help="1: the same numbers each time on a GPU, more slowly")
    add("--runtime", type=_minutes, help="minutes of the job: leaves in time, with a checkpoint")
    longest = "longest time between checkpoints; 5 %% of a training where that is less"
    add("--checkpoint-seconds", type=_seconds, default=CHECKPOINT_SECONDS, help=longest)
    return parser


def _by_name(pairs: list[tuple[str, Path]]) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    for name, path in pairs:
        named.setdefault(name, []).append(path)
    return named


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise _wrong(text, "a whole number of at least 1")
    return int(text)


def _limit(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise _wrong(text, "a whole number of at least 0")
    return int(text)


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise _wrong(text, "0 or 1")
    return text == "1"


def _seconds(text: str) -> float:
    number = _finite(text)
    if number is None:
        raise _wrong(text, "a finite number of at least 0")
    return number


def _minutes(text: str) -> float:
    if not (number := _finite(text)):
        raise _wrong(text, "a finite number greater than 0")
    return number


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _spec(text: str) -> dict[str, Any]:
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"is not JSON ({error}); it must be an object.") from None
    if not isinstance(spec, dict):
        raise _wrong(text, "a JSON object")
    return spec


def _pair(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not (name and path) or "\0" in path:
        raise _wrong(text, "NAME=PATH")
    return name, Path(path)


def _wrong(text: str, right: str) -> argparse.ArgumentTypeError:
    shown = text if len(text) < 60 else f"{text[:60]}…"
    return argparse.ArgumentTypeError(
        f"is {shown!r}, but must be {right}; the profile sets resources (set-resources, set-threads)."
    )
