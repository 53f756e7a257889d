"""Run programs in processes forked from one that has imported what they need, which is most of the time of a short one.

As a program it is such a server: `warm_python.py SOCKET MODULES`.
"""

import array
import functools
import os
import socket
import sys

SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src")
PYTHON = sys.executable  # whatever stands in for it later
EXECUTABLE = "TAKD_TEST_PYTHON"  # environment variable: what a program takes for its interpreter


@functools.cache
def server(*modules: str) -> str:
    """Start a server that has imported modules, one in each process of the tests; returns its socket."""
    import subprocess
    import tempfile

    path = tempfile.mkdtemp(prefix="takd-warm-") + "/socket"
    command = [PYTHON, __file__, path, *modules]
    # it ends when its standard input is closed, which any end of this process does
    pipe, env = subprocess.PIPE, {**os.environ, "PYTHONPATH": SOURCE}
    started = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env)
    assert started.stdout is not None and started.stdout.readline()
    return path


@functools.cache
def stand_in(*modules: str) -> str:
    """Write a program that stands in for python3, and has such a server run scripts; returns its path."""
    from pathlib import Path

    path = server(*modules)
    program = Path(path).with_name("python3")
    client = Path(__file__).with_name("warm_client.py")
    program.write_text(f'#!/bin/sh\nexec {PYTHON} -IS {client} {path} "$@"\n')
    program.chmod(0o755)
    return str(program)


def stages(scripts: str = "*") -> list[str]:
    """List the modules of the stages that scripts of the workflow start, by a pattern of the scripts' names."""
    import re
    from pathlib import Path

    files = (Path(SOURCE).parent / "workflow/scripts").glob(f"{scripts}.py")
    found = [re.findall(r'main\(\s*"(takd\.[\w.]+)"', file.read_text("utf-8")) for file in files]
    return sorted(name for names in found for name in names)


def serve(path: str, *modules: str) -> None:
    """Import modules, and run what is asked for; returns in the process that has to end like the program."""
    import gc
    import importlib
    import select
    import shutil
    import signal

    gc.disable()
    os.fsync = lambda file: None  # as in conftest.py
    for name in modules:
        importlib.import_module(name)
    gc.freeze()  # a collection in a fork would search all their objects, and copy the pages that they lie on
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        print("ready", flush=True)
        while True:
            if sys.stdin in select.select([listening, sys.stdin], [], [])[0]:
                shutil.rmtree(os.path.dirname(path))
                return
            connection, _ = listening.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, rights, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(3 * 4))
    files = array.array("i", rights[0][2])
    text = connection.makefile("rb").read().decode(errors="surrogateescape")
    count, *words = text.split("\0")
    (folder, *variables), arguments = words[int(count) :], words[: int(count)]
    env = dict(each.split("=", 1) for each in variables)
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status) & 0xFF).encode())
        os._exit(0)
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    _become(arguments, folder, env)


def _become(arguments: list[str], folder: str, env: dict[str, str]) -> None:
    import runpy

    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.executable = os.environ.pop(EXECUTABLE, sys.executable)
    if "snakemake.workflow" in sys.modules:  # takes the folder in which it was imported for its own
        sys.modules["snakemake.workflow"].Workflow._rundir = folder
    if arguments[0] == "-m":
        sys.argv, sys.path[0] = ["-m", *arguments[2:]], folder
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    serve(*sys.argv[1:])
