"""A real Slurm cluster on this machine, for tests: two nodes that claim 32 cores and four V100s each.

    python tests/slurm/cluster.py up DIR        start it and print how to use it
    python tests/slurm/cluster.py down DIR      end its jobs and daemons

All its files are below one folder: key, sockets, state, logs. It installs nothing, needs no service manager, changes
no other file, and uses free ports, so that several clusters can run at the same time.
"""

import getpass
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")  # names in Debian and Ubuntu
DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
NODES = ("node1", "node2")
GPUS = 4
GRES = "gpu:v100l:4"
SECONDS = 30.0  # time limit for a response of a daemon
TEMPLATE = Path(__file__).with_name("slurm.conf")
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=32 SocketsPerBoard=2 CoresPerSocket=16"
    f" ThreadsPerCore=1 RealMemory=190000 Gres={GRES} State=UNKNOWN"
)
# Slurm allocates GPUs as device files, so each must exist; they are never opened.
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
# Snakemake's Slurm plugins drop SLURM_CONF within a job; each of Slurm's commands gets it back.
CLIENT = """\
#!/bin/sh
SLURM_CONF={configuration}
export SLURM_CONF
exec {program} "$@"
"""


def missing() -> str | None:
    """Explain why no cluster can be started here; None if one can."""
    programs = [name for name in (*DAEMONS, *CLIENTS) if not _program(name)]
    if not programs:
        return None
    return (
        f"Slurm is not installed here: no {', '.join(programs)}. On Debian and Ubuntu:"
        f" apt-get install {' '.join(PACKAGES)} (or make slurm, as root)."
    )


class Cluster:
    """A cluster below `folder`.

    The path of the folder must be short, since it contains sockets, and have no blanks, since Slurm's files name it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.configuration = self.folder / "slurm.conf"
        # PATH or SLURM_CONF identifies the processes of this cluster
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        self.environment = {
            **os.environ,
            "PATH": path,
            "SLURM_CONF": str(self.configuration),
            # the nodes claim more cores than there are, and threads that wait for each other are twenty times slower
            "OMP_THREAD_LIMIT": "1",
        }

    def start(self) -> None:
        """Write the configuration and start all daemons; returns when the nodes accept jobs."""
        self._write()
        run = self.folder / "run"
        options = {
            "key-file": self.folder / "munge.key",
            "socket": run / "munge.socket",
            "pid-file": run / "munged.pid",
            "seed-file": run / "munged.seed",
            "log-file": self.folder / "log/munged.log",
        }
        self._daemon("munged", "--force", *(f"--{key}={path}" for key, path in options.items()))
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_until("both nodes are idle", self._idle)

    def stop(self) -> None:
        """End all jobs, daemons and other processes of the cluster."""
        if self.configuration.exists():
            subprocess.run(
                [self.folder / "bin/scancel", "--user", getpass.getuser()],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS,
            )
        # daemons first: they would start queued jobs
        for name in (*NODES, "slurmctld", "munged"):
            self._end(name)
        for process in self.processes():
            _signal(process, signal.SIGKILL)

    def reset(self) -> None:
        """Return to two idle nodes, for the next test."""
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.call("scancel", "--user", getpass.getuser())
        for node, state in self._states().items():
            if state.startswith("down"):
                self.call("scontrol", "update", f"nodename={node}", "state=resume")
        self.wait_until("both nodes are idle", self._idle)

    def start_controller(self) -> None:
        """Start slurmctld and wait until it responds; it recovers the jobs of an earlier one."""
        self._daemon("slurmctld", unless="slurmctld")
        ping = [str(self.folder / "bin/scontrol"), "ping"]
        self.wait_until(
            "slurmctld answers",
            lambda: subprocess.run(ping, capture_output=True, timeout=SECONDS).returncode == 0,
        )

    def stop_controller(self) -> None:
        """Stop slurmctld; jobs continue to run."""
        self._end("slurmctld")

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._daemon("slurmd", "-N", node, unless=node)

    def lose_node(self, node: str) -> None:
        """Kill a node with all processes on it, and mark it as down in Slurm, which would take longer to notice."""
        lost = set(self.processes(f"SLURMD_NODENAME={node}"))
        lost |= {parent for process in lost if _name(parent := parent_of(process)) == "slurmstepd"}
        self._end(node, signal.SIGKILL)
        for process in lost:
            _signal(process, signal.SIGKILL)
        self.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def call(self, *command: str) -> str:
        """Run one of Slurm's commands, and return its output.

        Raises:
            RuntimeError: it failed.
        """
        done = subprocess.run(
            command, env=self.environment, text=True, capture_output=True, timeout=SECONDS
        )
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout}")
        return done.stdout

    def jobs(self, folder: Path) -> list[dict[str, str]]:
        """List all jobs submitted from a folder, with the fields of `scontrol show job --details`, oldest first."""
        found = []
        for block in self.call("scontrol", "show", "job", "--details", "--oneliner").splitlines():
            pairs = (word.partition("=") for word in block.split(" "))
            fields: dict[str, str] = {}
            for name, equals, value in pairs:
                if equals:
                    fields.setdefault(name, value)
            if fields.get("WorkDir") == str(folder):
                found.append(fields)
        return sorted(found, key=lambda job: int(job["JobId"]))

    def processes(self, *variables: str) -> list[int]:
        """List the daemons, jobs and other processes of this cluster, identified by their environment.

        With `variables`, as NAME=VALUE, only those that also have these in their environment.
        """
        programs = str(self.folder / "bin")
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            environment = environment_of(int(folder.name))
            ours = environment.get("SLURM_CONF") == str(self.configuration)
            ours = ours or programs in environment.get("PATH", "").split(os.pathsep)
            if ours and all(environment.get(v.split("=")[0]) == v.split("=")[1] for v in variables):
                found.append(int(folder.name))
        return [process for process in found if process != os.getpid()]

    def log(self, lines: int = 40) -> str:
        """Return the end of the daemons' logs, for the report of a failed test."""
        texts = []
        for path in sorted((self.folder / "log").glob("*.log")):
            end = path.read_text(errors="replace").splitlines()[-lines:]
            texts += [f"--- {path.name}", *end]
        return "\n".join(texts)

    def wait_until(self, what: str, holds: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Wait until `holds()` is true.

        Raises:
            TimeoutError: it is not within the time; has the end of the logs.
        """
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                raise TimeoutError(f"Not within {seconds:.0f} s: {what}.\n{self.log()}")
            time.sleep(0.1)

    def __enter__(self) -> "Cluster":
        # stops the cluster when its standard input is closed, which any end of this process does
        self._guard = subprocess.Popen(
            [sys.executable, __file__, "guard", self.folder],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait(timeout=2 * SECONDS)

    def _write(self) -> None:
        for name in ("run", "log", "state", "spool", "bin"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        key = self.folder / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(secrets.token_bytes(128))
        for name in CLIENTS:
            client = self.folder / "bin" / name
            values = {
                "configuration": shlex.quote(str(self.configuration)),
                "program": shlex.quote(_program(name) or name),
            }
            client.write_text(CLIENT.format(**values))
            client.chmod(0o755)
        host = socket.gethostname().split(".")[0]
        ports = _free_ports(1 + len(NODES))
        nodes = [
            NODE.format(name=name, host=host, port=port)
            for name, port in zip(NODES, ports[1:], strict=True)
        ]
        self.configuration.write_text(
            TEMPLATE.read_text().format(
                folder=self.folder,
                host=host,
                user=getpass.getuser(),
                ports=ports,
                nodes="\n".join(nodes),
            )
        )
        (self.folder / "gres.conf").write_text(
            "".join(f"NodeName={n} Name=gpu Type=v100l File={','.join(DEVICES)}\n" for n in NODES)
        )

    def _daemon(self, name: str, *options: str, unless: str | None = None) -> None:
        """Start a daemon, which goes into the background by itself, unless the one called `unless` runs."""
        if unless and self._number(unless):
            return
        program = _program(name)
        if program is None:
            raise RuntimeError(missing())
        # its output goes to a file: a pipe would stay open as long as it runs
        with open(self.folder / "log/start.log", "a+b") as log:
            done = subprocess.run(
                [program, *options],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=SECONDS,
            )
        if done.returncode:
            raise RuntimeError(f"{name} did not start.\n{self.log()}")

    def _end(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End a daemon and wait until its process has ended."""
        end = time.monotonic() + SECONDS
        while process := self._number(name):
            _signal(process, how if time.monotonic() < end else signal.SIGKILL)
            time.sleep(0.1)

    def _number(self, name: str) -> int | None:
        """Process id of a daemon, if it runs."""
        try:
            process = int((self.folder / f"run/{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        # the process may have ended, and its id may be reused
        return process if process in self.processes() else None

    def _states(self) -> dict[str, str]:
        lines = self.call("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %t")
        return dict(line.split() for line in lines.splitlines())

    def _idle(self) -> bool:
        return list(self._states().values()) == ["idle"] * len(NODES)


def environment_of(process: int) -> dict[str, str]:
    """Initial environment of a process; empty where it has ended or belongs to another user."""
    try:
        text = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in text.split("\0") if "=" in pair)


def _name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def parent_of(process: int) -> int:
    """Process id of the parent of a process; 0 where it is unknown."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return int(status.split("PPid:")[1].split()[0])


def _program(name: str) -> str | None:
    # daemons may be in folders that are not in a user's PATH
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))


def _signal(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _usage(cluster: Cluster) -> Iterator[str]:
    path = shlex.quote(str(cluster.folder / "bin"))
    yield cluster.call("sinfo", "--Node", "--format=%N %P %t %c %m %G").rstrip()
    yield "To use it in a shell:"
    yield f"  export SLURM_CONF={shlex.quote(str(cluster.configuration))} PATH={path}:$PATH"


def main() -> None:
    """Start or stop a cluster from the command line."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("up", "down", "guard"):
        sys.exit(f"Usage: python {sys.argv[0]} up|down DIR")
    cluster = Cluster(Path(sys.argv[2]))
    if sys.argv[1] == "guard":
        sys.stdin.read()
    if sys.argv[1] != "up":
        cluster.stop()
        return
    if reason := missing():
        sys.exit(f"Error: {reason}")
    if cluster.processes():
        sys.exit(f"Error: a cluster runs in {cluster.folder} already; end it by: down.")
    try:
        cluster.start()
    except BaseException:
        cluster.stop()
        raise
    print("\n".join(_usage(cluster)))


if __name__ == "__main__":
    main()
