"""Have a server of `warm_python` run a program.

As a program it stands in for python3: `warm_client.py SOCKET script.py ...`. It starts with every job of a run, and so
imports next to nothing.
"""

import os
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SHUT_WR, SOL_SOCKET, socket


def run(path: str, arguments: list[str], folder: str, env: dict[str, str], output: int = 1) -> int:
    """Run `python3 ARGUMENTS` with a server, and return its exit status.

    Args:
        path: socket of the server.
        arguments: a script or `-m` and a module, then what these get.
        output: file to write output and errors to.
    """
    files = (0, 1, 2) if output == 1 else (0, output, output)
    numbers = b"".join(number.to_bytes(4, sys.byteorder) for number in files)
    words = [str(len(arguments)), *arguments, folder, *(f"{k}={v}" for k, v in env.items())]
    server = socket(AF_UNIX)
    server.connect(path)
    server.sendmsg([b"!"], [(SOL_SOCKET, SCM_RIGHTS, numbers)])
    server.sendall("\0".join(words).encode(errors="surrogateescape"))
    server.shutdown(SHUT_WR)
    said = server.recv(8)
    server.close()
    return int(said or 1)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:], os.getcwd(), dict(os.environ)))
