"""Run programs in processes forked from one that has imported what they need, which is most of the time of a short one.

As a program it stands in for python3: `warm_python.py SOCKET script.py ...` has a server run the script.
"""

import array
import functools
import json
import os
import socket
import sys
from typing import NoReturn

NUMBERS = array.array("i", [0, 1, 2])  # stdin, stdout, stderr

SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src")
PYTHON = sys.executable  # whatever stands in for it later
EXECUTABLE = "TAKD_TEST_PYTHON"  # environment variable: what a program takes for its interpreter


def run(path: str, arguments: list[str], folder: str, env: dict[str, str], output: int = 1) -> int:
    """Run `python3 ARGUMENTS` with a server, and return its exit status.

    Args:
        path: socket of the server.
        arguments: a script or `-m` and a module, then what these get.
        output: file to write output and errors to.
    """
    files = NUMBERS if output == 1 else array.array("i", [0, output, output])
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        server.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        server.sendall(json.dumps([arguments, folder, env]).encode())
        server.shutdown(socket.SHUT_WR)
        return int(server.makefile().read() or 1)


@functools.cache
def server(*modules: str) -> str:
    """Start a server that has imported modules, one in each process of the tests; returns its socket."""
    import subprocess
    import tempfile

    path = tempfile.mkdtemp(prefix="takd-warm-") + "/socket"
    command = [PYTHON, __file__, "serve", path, *modules]
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
    program.write_text(f'#!/bin/sh\nexec {PYTHON} -IS {__file__} {path} "$@"\n')
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
    _, rights, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(NUMBERS.itemsize * 3))
    files = array.array("i", rights[0][2])
    arguments, folder, env = json.loads(connection.makefile().read())
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


def main() -> NoReturn:
    """Serve, or stand in for python3."""
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
        sys.exit()
    sys.exit(run(sys.argv[1], sys.argv[2:], os.getcwd(), dict(os.environ)))


if __name__ == "__main__":
    main()
