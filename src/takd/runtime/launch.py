"""Launch of a stage as several processes: one per GPU, on one node or several.

Each launcher replaces this process (exec), so that signals reach the process that does the work and
locks stay held.
"""

import os
import re
import subprocess
import sys

from takd.runtime.errors import InputError

# environment variables of PyTorch's CUDA allocator, in newer and older versions
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def rank() -> int:
    """Return the number of this process among those of the stage, from 0."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Return the number of processes of the stage."""
    return int(os.environ.get("WORLD_SIZE", 1))


def launched() -> bool:
    """Return whether this process was started by a launcher, which sets its rank."""
    return "RANK" in os.environ


def launch(nodes: int, processes: int, threads: int) -> None:
    """Start this same command once per process; return only if one process is enough.

    Args:
        nodes: of the current Slurm job; 1 needs no Slurm.
        processes: on each node.
        threads: of each process.

    Raises:
        InputError: several nodes are needed, but this is no Slurm job of that many nodes.
    """
    if launched() or nodes * processes == 1:
        return
    if nodes == 1:
        command = [*TORCHRUN, "--standalone", f"--nproc-per-node={processes}"]
    else:
        command = over_nodes(nodes, processes, threads)
    os.execvp(command[0], [*command, *sys.argv])


def set_allocator() -> None:
    """Enable expandable segments in PyTorch's CUDA allocator, unless the user has configured it.

    Texts of varying lengths otherwise fragment the memory.
    """
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"


def over_nodes(nodes: int, processes: int, threads: int) -> list[str]:
    """Return the command that runs one torchrun on each node of this Slurm job.

    All of them rendezvous on the first node.

    Raises:
        InputError: this is no Slurm job, or it has another number of nodes.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise InputError(
            f"{nodes} nodes need a Slurm job: set `nodes` in the profile of a cluster, and leave it out elsewhere."
        )
    # Snakemake's executor takes SLURM_JOB_NODELIST out of the environment
    names = _ask("squeue", "--noheader", f"--jobs={job}", "--format=%N").strip()
    hosts = _ask("scontrol", "show", "hostnames", names).split()
    if len(hosts) != nodes:
        raise InputError(
            f"job {job} has {len(hosts)} nodes ({names}) and the training was to use {nodes}; `nodes`, `tasks` and"
            " `mpi: srun` go together in the profile, see profiles/README.md."
        )
    # the address that Slurm uses; other nodes may be unable to resolve the node's name
    found = re.search(r"NodeAddr=(\S+)", _ask("scontrol", "--oneliner", "show", "node", hosts[0]))
    place = found[1] if found else hosts[0]
    port = 20_000 + int(job) % 10_000
    return [
        *("srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"),
        *(f"--cpus-per-task={threads * processes}", "--kill-on-bad-exit=1"),
        *(*TORCHRUN, f"--nnodes={nodes}", f"--nproc-per-node={processes}", f"--rdzv-id={job}"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint={place}:{port}"),
    ]


def _ask(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        raise InputError(
            f"`{' '.join(command)}` failed in a Slurm job of several nodes: {said}"
        ) from None
