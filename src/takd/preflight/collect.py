"""Read the facts about this machine before a run; other modules draw conclusions from them."""

import getpass
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from takd.experiment import experiment as experiments
from takd.experiment.experiment import Experiment
from takd.experiment.yaml12 import read_yaml
from takd.preflight import disk, fetching, jobs, rates
from takd.preflight.gpus import CPU, HALF_GAIN, Gpu, asked_for, find_gpu, lookup
from takd.preflight.jobs import Job
from takd.preflight.plan import Planned, Planner
from takd.runtime.errors import InputError

PATIENCE = 10  # seconds for a command of Slurm
# FLOP/s of one core, by CPU time, since others may use the cores meanwhile: the best of ten products
PRODUCT = """
import os, time
for name in ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "VECLIB_MAXIMUM"):
    os.environ[name + "_THREADS"] = "1"
import numpy
matrix = numpy.ones((768, 768), "f")
def seconds():
    began = time.process_time()
    matrix @ matrix
    return time.process_time() - began
print(2 * 768**3 / min(seconds() for _ in range(10)))
"""


class Torch(NamedTuple):
    """The installed torch, determined without importing it.

    Attributes:
        cuda: CUDA version that it was built against; None for a CPU build.
        archs: compute architectures that it has kernels for; None if not determined.
    """

    version: str
    cuda: str | None
    archs: list[str] | None = None


class Answer(NamedTuple):
    """Exit code and output of a command."""

    code: int
    said: str

    @property
    def works(self) -> bool:
        return self.code == 0


@dataclass(frozen=True)
class Facts:
    """Facts about this machine.

    Attributes:
        versions: installed (None if missing) and pinned version of each package that the environment pins.
        slurm: sinfo's output on the cluster's GPUs; None where Slurm is not used.
        accounts: this user's Slurm accounts; None if unavailable.
        hub: names of repositories that still have to be fetched.
        hub_problem: why the Hub cannot be reached; None if it can or was not tried.
        free: free bytes on the disk of the results.
        free_cache: free bytes on the disk of the Hub's cache; None if it is the same disk.
        attempts: number of attempts of each job.
        missing: what is said of local files that the experiment names and that do not exist.
    """

    python: str
    versions: Mapping[str, tuple[str | None, str]]
    torch: Torch | None
    gpus: Sequence[Gpu]
    executor: str | None
    slurm: Answer | None
    account: str | None
    accounts: list[str] | None
    hub: Sequence[str]
    hub_problem: str | None
    free: float
    free_cache: float | None
    attempts: int = 1
    missing: str | None = None


class Prepared(NamedTuple):
    """Plan of an experiment, and the settings of the profile."""

    planner: Planner
    planned: list[Planned]
    profile: Mapping[str, Any]


def read_experiment(root: Path, name: str | None, variables: Mapping[str, str]) -> Experiment:
    """Read an experiment by name; without one, that of config/config.yaml."""
    name = experiment_name(root, name)
    return experiments.load(experiments.file_of(root, name), root, variables)


def experiment_name(root: Path, name: str | None) -> str:
    """Return the given name, or else that in config/config.yaml."""
    file = "config/config.yaml"
    return name or str(read_yaml(root / file, file).value["experiment"])


def prepare(
    root: Path,
    name: str | None,
    profile: str | None,
    gpu: str | None,
    variables: Mapping[str, str],
    counts: Mapping[str, int],
) -> Prepared:
    """Read the experiment, list its jobs with Snakemake, and plan them on the GPU that they will get.

    Where training seeds are added until they are enough, all that may be added are planned.

    Raises:
        InputError: the experiment or profile is invalid, or the GPU is unknown.
    """
    experiment = read_experiment(root, name, variables)
    for split in counts:
        if split not in experiment.splits:
            there = ", ".join(experiment.splits)
            raise InputError(f"--rows {split}=…: there is no such data; there are {there}.")
    settings = jobs.read_profile(root, profile) if profile else {}
    if experiment.looks:
        variables = {**variables, experiments.SEEDS: str(len(experiment.seeds))}
    found = jobs.of_experiment(root, experiment.name, variables, profile)
    runs = rates.measured(root / "results")
    planner = Planner(experiment, choose_gpu(gpu, found), runs, counts)
    return Prepared(planner, planner.plan(found), settings)


def choose_gpu(name: str | None, found: Sequence[Job]) -> Gpu:
    """Choose the GPU: the one named, else the one that jobs request, else this machine's GPU or CPU.

    Raises:
        InputError: a GPU that is not in the table.
    """
    asked = [asked for job in found if job.computes and (asked := asked_for(job.resources))]
    if name := name or next((name for name, _ in asked if name), None):
        return find_gpu(name)
    if asked:
        raise InputError(
            "the profile asks for GPUs without saying which (gres: gpu:N); name the GPU with --gpu."
        )
    own = next((each.name for each in own_gpus()), None)
    if own is None:
        return own_cpu()
    if known := lookup(own):
        return known
    raise InputError(
        f"the GPU '{own}' of this machine is not in the table; name the nearest with --gpu."
    )


def own_gpus() -> list[Gpu]:
    """List this machine's GPUs, as reported by nvidia-smi, without their speed."""
    query = "--query-gpu=name,memory.total,compute_cap"
    answer = ask("nvidia-smi", query, "--format=csv,noheader,nounits")
    found = []
    for line in answer.said.splitlines() if answer.works else []:
        name, memory, capability = (part.strip() for part in line.split(","))
        major, _, minor = capability.partition(".")
        found.append(Gpu(name, float(memory) / 1024, (int(major), int(minor))))
    return found


def own_cpu() -> Gpu:
    """This machine's CPU, with the rate of a core in a matrix product, else that of the table."""
    answer = ask(sys.executable, "-c", PRODUCT)
    rate = float(answer.said) / 1e12 if answer.works else CPU.single
    flags = Path("/proc/cpuinfo")
    has_half = flags.is_file() and "bf16" in flags.read_text(errors="replace")
    return replace(CPU, half=rate * (HALF_GAIN if has_half else 1), single=rate)


def ask(*command: str) -> Answer:
    """Run a command, with a short time limit."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except FileNotFoundError:
        return Answer(127, f"there is no command {command[0]}")
    except subprocess.TimeoutExpired:
        return Answer(124, f"{command[0]} did not answer within {PATIENCE} s")
    except OSError as error:
        return Answer(126, str(error))
    return Answer(done.returncode, done.stdout if done.returncode == 0 else done.stderr.strip())


def installed_torch(archs: bool = False) -> Torch | None:
    """Describe the installed torch; `archs` needs an import, which takes seconds in a separate process."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    values = dict(re.findall(r"^(\w+)(?:: *[^=]+?)? *= *['\"]([^'\"]+)['\"]$", text, re.M))
    version, cuda = values.get("__version__") or metadata.version("torch"), values.get("cuda")
    if not (archs and cuda):
        return Torch(version, cuda)
    # torch.cuda.get_arch_list() is empty without a GPU, as on a login node; the function it wraps is not
    code = "import torch; print(getattr(torch._C, '_cuda_getArchFlags', lambda: '')() or '')"
    answer = ask(sys.executable, "-c", code)
    return Torch(version, cuda, (answer.said.split() or None) if answer.works else None)


def pinned(root: Path) -> dict[str, tuple[str | None, str]]:
    """Map each package of envs/cpu.txt to its installed and its pinned version."""
    found: dict[str, tuple[str | None, str]] = {}
    path = root / "envs/cpu.txt"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        name, equals, version = line.partition("#")[0].strip().partition("==")
        if equals:
            installed = next(iter(metadata.distributions(name=name)), None)
            found[name] = (installed.version if installed else None, version.strip())
    return found


def account_of(found: Sequence[Job]) -> str | None:
    """Slurm account that the submitted jobs name."""
    names = (job.resources.get("slurm_account") for job in found if job.computes)
    return next(filter(None, names), None)


def known_accounts() -> list[str] | None:
    """List this user's Slurm accounts; None if unavailable, for instance without Slurm's database."""
    answer = ask("sacctmgr", "-n", "-s", "list", "user", user(), "format=account%256")
    names = {line.strip() for line in answer.said.splitlines() if line.strip()}
    return sorted(names) if answer.works and names else None


def user() -> str:
    """Name of the current user, or the user id where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def facts(planner: Planner, planned: Sequence[Planned], profile: Mapping[str, Any]) -> Facts:
    """Collect everything that `doctor` checks."""
    from huggingface_hub.constants import HF_HUB_CACHE

    experiment, found = planner.experiment, [each.job for each in planned]
    slurm = profile.get("executor") == "slurm"
    wanted = fetching.not_fetched(experiment, found)
    results, cache = experiment.root / "results", Path(HF_HUB_CACHE)
    same = disk.existing(cache).stat().st_dev == disk.existing(results).stat().st_dev
    missing = None
    try:
        experiment.require_files()
    except InputError as error:
        missing = str(error)
    return Facts(
        python=".".join(map(str, sys.version_info[:3])),
        versions=pinned(experiment.root),
        torch=installed_torch(archs=True),
        gpus=own_gpus(),
        executor=profile.get("executor"),
        slurm=ask("sinfo", "-h", "-o", "%G") if slurm else None,
        account=account_of(found),
        accounts=known_accounts() if slurm else None,
        hub=wanted,
        hub_problem=fetching.problem() if wanted else None,
        free=disk.free_bytes(results),
        free_cache=None if same else disk.free_bytes(cache),
        attempts=int(profile.get("retries") or 0) + 1,
        missing=missing,
    )
