"""Exit of a stage: destroy the process group without a deadlock, and enforce a time limit.

Two things can keep a process with a process group, and its GPUs, from ending after its last step:

- Destroying ProcessGroupGloo joins its worker threads, and a worker that frees the last tensors of
  a collective needs the GIL. If the last reference to the group is dropped by C++ code that holds
  the GIL, as DDP's Reducer does, the two deadlock. Python's own references release the GIL first.
- A library's destructor may hang during interpreter shutdown, whose order is undefined.

So models are freed while torch still holds the group, then the group is destroyed, and the rest of
the interpreter shutdown is skipped.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import gc
import os
import sys
from typing import Any, NoReturn

SECONDS_TO_END = 60.0
# between the sentence on the console and the exit, to write the stacks into the log
SECONDS_TO_TELL = 2.0

_code: int | None = None
_sentence: Any = None  # a C timer reads it later: keep a reference


def skip_teardown() -> None:
    """Make this process end right after its exit functions, without interpreter shutdown.

    Call it before any other `atexit` registration: functions registered first run last.
    """
    atexit.register(_vanish)


def leave(code: int) -> NoReturn:
    """End this process; call it when nothing on the stack refers to models or optimizers.

    After a success, all processes wait for the last one, within the time limit of their group. A
    process that failed leaves at once: others may be in a collective operation, and destroying the
    group would wait for it. Those end when their connection to this process closes, or torchrun
    ends them.
    """
    global _code
    # no import: a stage that does not use torch should not wait for it
    torch: Any = sys.modules.get("torch")
    grouped = torch is not None and torch.distributed.is_initialized()
    if grouped and code == 0:
        gc.collect()  # parameter hooks form reference cycles that keep DDP and DeepSpeed alive
        code = _wait_for_all(torch)
    end_within(SECONDS_TO_END, code)
    if grouped and code == 0:
        torch.distributed.destroy_process_group()  # and the groups that DeepSpeed created
    _code = code
    sys.exit(code)


def _wait_for_all(torch: Any) -> int:
    """Wait until all processes have reached this point; return the exit code."""
    nccl = "nccl" in torch.distributed.get_backend()
    try:
        torch.distributed.barrier(device_ids=[torch.cuda.current_device()] if nccl else None)
    except RuntimeError as error:
        print(f"another process has failed: {error}", file=sys.stderr)
        return 1
    return 0


class _Event(ctypes.Structure):
    """struct sigevent of 64-bit Linux, which calls `function(value)` in a new thread."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("rest", ctypes.c_byte * 32),
    )


class _Times(ctypes.Structure):
    """struct itimerspec of 64-bit Linux: the interval (zero) and the time of the first expiry."""

    _fields_ = tuple(
        (name, ctypes.c_long) for name in ("again", "again_ns", "seconds", "nanoseconds")
    )


SIGEV_THREAD, CLOCK_MONOTONIC, UNBUFFERED = 2, 1, 2


def end_within(seconds: float, code: int) -> None:
    """End this process with an exit code if it is still running after the given seconds.

    Writes the stack of each thread to the log (stderr) and one sentence to the console (stdout).
    This uses timers of the C library, since a Python thread cannot run while another one holds the
    GIL. faulthandler alone would exit with code 1, for which Snakemake deletes complete outputs.
    """
    global _sentence
    # processes of a node share a log: one after the other, so that their lines do not mix
    rank, size = (int(os.environ.get(f"LOCAL_{name}", 0)) for name in ("RANK", "WORLD_SIZE"))
    faulthandler.dump_traceback_later(seconds + SECONDS_TO_TELL / 2 * rank / max(size, 1))
    _sentence = ctypes.create_string_buffer(
        f"process {os.getpid()} hung after its work was over and was ended after {seconds:g} s, with exit code {code};"
        " its log says where".encode()
    )
    try:
        libc = ctypes.CDLL("librt.so.1")
    except OSError:  # no Linux C library, so no GPU server whose GPUs would stay blocked
        return
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, UNBUFFERED, 0)
    _call_later(libc, seconds, libc.puts, ctypes.addressof(_sentence))
    _call_later(libc, seconds + SECONDS_TO_TELL, libc._exit, code)


def _call_later(libc: ctypes.CDLL, seconds: float, function: Any, value: int) -> None:
    address = ctypes.cast(function, ctypes.c_void_p)
    event, timer = _Event(value, 0, SIGEV_THREAD, address), ctypes.c_void_p()
    whole = int(seconds)
    times = _Times(0, 0, whole, int((seconds - whole) * 1e9))
    if libc.timer_create(CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
        raise OSError("timer_create failed")
    libc.timer_settime(timer, 0, ctypes.byref(times), None)


def _vanish() -> None:
    if _code is None:  # the stage did not end through `leave`
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(_code)
