"""How a stage ends: its process group in an order that cannot hang, and all else within a time limit.

Two things can keep a process with a process group, and its GPUs, from ending after its last step:

- Destroying ProcessGroupGloo joins its workers, and a worker that frees the last tensors of a collective needs the GIL
  for that. Where the last reference to the group is dropped by C++ code that holds the GIL, as DDP's Reducer does, each
  waits for the other for ever. Python's own references give up the GIL first.
- A library's destructor hangs while the interpreter takes apart what is left, in whatever order.

So models go while torch still holds the group, then the group, and nothing else is taken apart.
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
SECONDS_TO_TELL = 2.0  # from the sentence on the console to the end, for the stacks in the log

_code: int | None = None
_sentence: Any = None  # C reads it until the end


def skip_teardown() -> None:
    """Have this process end when its exit functions have run. Call it first: what is registered first runs last."""
    atexit.register(_vanish)


def leave(code: int) -> NoReturn:
    """End this process with an exit code; for when nothing on the stack refers to models or optimizers any more.

    After a success all processes wait for the last one, within the time limit of their group. A process that failed
    leaves at once: others may be in a collective, for which destroying the group would wait. They end by its closed
    connections, or by torchrun.
    """
    global _code
    torch: Any = sys.modules.get(
        "torch"
    )  # a stage that has no use for it should not wait for its import
    grouped = torch is not None and torch.distributed.is_initialized()
    if grouped and code == 0:
        gc.collect()  # hooks of parameters are cycles, which would keep DDP and DeepSpeed
        code = _wait_for_all(torch)
    end_within(SECONDS_TO_END, code)
    if grouped and code == 0:
        torch.distributed.destroy_process_group()  # with those that DeepSpeed made
    _code = code
    sys.exit(code)


def _wait_for_all(torch: Any) -> int:
    """Wait until all processes have come so far; the exit code."""
    nccl = "nccl" in torch.distributed.get_backend()
    try:
        torch.distributed.barrier(device_ids=[torch.cuda.current_device()] if nccl else None)
    except RuntimeError as error:
        print(f"another process has failed: {error}", file=sys.stderr)
        return 1
    return 0


class _Event(ctypes.Structure):
    """struct sigevent of 64-bit Linux: call `function(value)` in a thread of its own."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("rest", ctypes.c_byte * 32),
    )


class _Times(ctypes.Structure):
    """struct itimerspec of 64-bit Linux: the interval, which is none, and the first time."""

    _fields_ = tuple(
        (name, ctypes.c_long) for name in ("again", "again_ns", "seconds", "nanoseconds")
    )


SIGEV_THREAD, CLOCK_MONOTONIC, UNBUFFERED = 2, 1, 2


def end_within(seconds: float, code: int) -> None:
    """End this process with an exit code if it is still there after so many seconds, whatever it does.

    The log (stderr) then gets the stack of each thread, the console (stdout) a sentence. All of it is done by timers of
    the C library: a thread of Python would never run while another one holds the GIL. faulthandler alone would end with
    exit code 1, for which Snakemake deletes outputs that are whole.
    """
    global _sentence
    faulthandler.dump_traceback_later(seconds)
    _sentence = ctypes.create_string_buffer(
        f"process {os.getpid()} hung after its work was over and was ended after {seconds:g} s, with exit code {code};"
        " its log says where".encode()
    )
    try:
        libc = ctypes.CDLL("librt.so.1")
    except OSError:  # not Linux's C library, and no machine whose GPUs others wait for
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
    if _code is None:  # this is no stage's own end
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(_code)
