"""Claims in a store that nodes share: each node has its own host name and process ids, as in a cluster."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from takd.runtime.stage_lock import read_lock

# a process of a node: claims a model, and says what came of it, every time that it is asked to go on
CLAIM = """
import os, sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, {source!r})
from takd.runtime import stage_lock, store

stage_lock.HEARTBEAT_SECONDS = 0.2
store.SECONDS_BETWEEN_TRIES = 0.1
os.umask(0o077)
if {user}:
    os.setgroups([]), os.setgid({user}), os.setuid({user})
stopped = []
stage = SimpleNamespace(
    spec={{"lineage": "a-sft"}},
    outputs={{"manifest": Path("manifest.json")}},
    say=lambda text: print(text, flush=True),
    should_stop=lambda: stopped,
)
entry = store.Entry(Path({root!r}), "model")
stopped += [True] * {once}
try:
    entry.take_or_claim(stage)
    claimed = os.path.exists(os.path.join({root!r}, ".model.lock"))
    print("trains" if claimed else "trains without a claim", flush=True)
except stage_lock.InputError as error:
    print(error, flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
sys.stdin.read()
"""
NODE = ("unshare", "--uts", "--pid", "--fork", "--kill-child")
LOCK = ".model.lock"

Start = Callable[..., "Node"]


class Node:
    """A process that claims the model on a node of its own."""

    def __init__(self, name: str, root: Path, once: bool = False, user: int = 0) -> None:
        given = {"root": str(root), "once": once, "user": user, "source": str(ROOT / "src")}
        python = [sys.executable, "-c", CLAIM.format(**given)]
        self.process = subprocess.Popen(
            # the shell is the node's first process, with which all others end
            [*NODE, "sh", "-c", f'hostname {name}; "$@"; sleep 2', "sh", *python],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def said(self) -> str:
        """Return the next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the node."""
        for child in children(self.process.pid):
            os.kill(child, number)

    def lose(self) -> None:
        """End the node with all its processes at once, which take nothing away."""
        self.process.kill()
        self.process.communicate()

    def end(self) -> None:
        """Let the process end, as after its training."""
        self.process.communicate()


def children(process: int) -> list[int]:
    """List the processes below a process."""
    path = Path(f"/proc/{process}/task/{process}/children")
    own = [int(word) for word in path.read_text().split()]
    return [*own, *(below for child in own for below in children(child))]


@pytest.fixture
def store() -> Iterator[Path]:
    """Folder of a store that other users can reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "store"


@pytest.fixture
def start(store: Path) -> Iterator[Start]:
    """Function that starts a claim of one model on a node."""
    can = (
        shutil.which("unshare")
        and not subprocess.run([*NODE, "hostname", "node"], capture_output=True).returncode
    )
    if not can:
        pytest.skip("only root can start processes with a host name of their own")
    nodes: list[Node] = []

    def begin(name: str, **how: bool | int) -> Node:
        nodes.append(Node(name, store, **how))
        return nodes[-1]

    yield begin
    for node in nodes:
        node.lose()


def test_a_claim_of_a_living_node_is_waited_for_and_of_a_lost_one_taken_over(
    start: Start, store: Path
) -> None:
    """Equal process ids on both nodes say nothing about each other."""
    first = start("node1")
    assert first.said() == "trains"
    second = start("node2")
    held = read_lock(store / LOCK)[0]
    said = f"a-sft: waiting to take it from the store (process {held['process']} on node1 is"
    assert second.said().startswith(said)
    time.sleep(2)  # more than the six heartbeats that a lost one would be given
    assert read_lock(store / LOCK)[0] == held
    first.lose()
    assert second.said() == "trains"
    assert read_lock(store / LOCK)[0] == {**held, "host": "node2"}
    second.end()
    assert not (store / LOCK).exists()


def test_who_was_suspended_leaves_the_claim_to_who_took_it_over(start: Start, store: Path) -> None:
    first = start("node1")
    assert first.said() == "trains"
    first.signal(signal.SIGSTOP)
    second = start("node2")
    assert second.said() == "trains"
    first.signal(signal.SIGCONT)
    first.end()
    lock = store / LOCK
    assert read_lock(lock)[0]["host"] == "node2"
    third = start("node3", once=True)
    assert "on node2" in third.said()


def test_a_claim_can_be_read_by_the_group_and_a_reader_trains_for_himself(
    start: Start, store: Path
) -> None:
    """Who may not write to a store claims nothing; who may not read it is told so. Both train."""
    first = start("node1")
    assert first.said() == "trains"
    lock = store / LOCK
    assert lock.stat().st_mode & 0o777 == 0o640
    first.end()
    for mode in (0o755, 0o700):
        store.chmod(mode)
        reader = start("node2", user=65534)
        if mode == 0o700:
            assert reader.said() == (
                f"{store / 'model/manifest.json'}: may not be read by this user; the model is trained"
            )
        assert reader.said() == "trains without a claim"
        assert not lock.exists()
