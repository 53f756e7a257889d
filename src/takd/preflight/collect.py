"""Read the facts about this machine before a run; other modules draw conclusions from them."""

import ast
import getpass
import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from snakemake.profiles import ProfileConfigFileParser

from takd.experiment import experiment as experiments
from takd.experiment import specs
from takd.experiment.experiment import Experiment
from takd.experiment.yaml12 import read_yaml
from takd.preflight import jobs, rates
from takd.preflight.gpus import CPU, Card, asked_for, find_card, known
from takd.preflight.jobs import Job
from takd.preflight.plan import Planned, Planner
from takd.runtime.errors import InputError

PATIENCE = 10  # seconds for a command of Slurm, or for the hub


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine, as reported by nvidia-smi."""

    name: str
    gigabytes: float
    capability: tuple[int, int]


@dataclass(frozen=True)
class Torch:
    """The installed torch, determined without importing it.

    Attributes:
        cuda: CUDA version that it was built against; None for a CPU build.
        archs: compute architectures that it has kernels for; None if not determined.
    """

    version: str
    cuda: str | None
    archs: list[str] | None = None


@dataclass(frozen=True)
class Answer:
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


@dataclass(frozen=True)
class Prepared:
    """An experiment, its jobs, and the card that they are planned for."""

    root: Path
    experiment: Experiment
    jobs: list[Job]
    planner: Planner
    settings: Mapping[str, Any] = field(default_factory=dict)


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
    card: str | None,
    variables: Mapping[str, str],
    counts: Mapping[str, int],
) -> Prepared:
    """Read the experiment, list its jobs with Snakemake, and determine the card they will get.

    Raises:
        InputError: the experiment or profile is invalid, or the card is unknown.
    """
    experiment = read_experiment(root, name, variables)
    for split in counts:
        if split not in experiment.splits:
            there = ", ".join(experiment.splits)
            raise InputError(f"--rows {split}=…: there is no such data; there are {there}.")
    settings = read_profile(root, profile) if profile else {}
    found = jobs.of_experiment(root, experiment.name, variables, profile)
    runs = rates.measured(root / "results")
    return Prepared(
        root,
        experiment,
        found,
        Planner(experiment, choose_card(card, found), runs, counts),
        settings,
    )


def read_profile(root: Path, profile: str) -> dict[str, Any]:
    """Read the settings of a profile, computed values included, in the way Snakemake does."""
    folder = root / profile
    path = folder / "config.yaml" if folder.is_dir() else folder
    if not path.is_file():
        there = sorted(
            str(each.parent.relative_to(root)) for each in root.glob("profiles/*/config.yaml")
        )
        raise InputError(
            f"--profile {profile}: there is no such profile; there are {', '.join(there)}."
        )
    with open(path, encoding="utf-8") as file:
        return ProfileConfigFileParser().parse(file)


def choose_card(name: str | None, found: Sequence[Job]) -> Card:
    """Choose the card: the one named, else the one that jobs request, else this machine's GPU or CPU.

    Raises:
        InputError: a card that is not in the table.
    """
    if name:
        return find_card(name)
    asked = [asked_for(dict(job.resources)) for job in found if job.computes]
    names = list(dict.fromkeys(each[0] for each in asked if each))
    if any(names):
        return find_card(next(name for name in names if name))
    if names:
        raise InputError(
            "the profile asks for GPUs without saying which (gres: gpu:N); name the card with --card."
        )
    for gpu in own_gpus():
        if known(gpu.name):
            return find_card(gpu.name)
        raise InputError(
            f"the card '{gpu.name}' of this machine is not in the table; name the nearest with --card."
        )
    return CPU


def own_gpus() -> list[Gpu]:
    """List this machine's GPUs."""
    query = "--query-gpu=name,memory.total,compute_cap"
    answer = ask("nvidia-smi", query, "--format=csv,noheader,nounits")
    found = []
    for line in answer.said.splitlines() if answer.works else []:
        name, memory, capability = (part.strip() for part in line.split(","))
        major, _, minor = capability.partition(".")
        found.append(Gpu(name, float(memory) / 1024, (int(major), int(minor))))
    return found


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
    values: dict[str, Any] = {}
    for statement in ast.parse(Path(found.origin).with_name("version.py").read_text()).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(
            statement.value, ast.Constant
        ):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            values |= {t.id: statement.value.value for t in targets if isinstance(t, ast.Name)}
    version, cuda = values.get("__version__") or metadata.version("torch"), values.get("cuda")
    if not (archs and cuda):
        return Torch(version, cuda)
    # torch.cuda.get_arch_list() is empty without a GPU, as on a login node; the function it wraps is not
    code = "import torch; print(getattr(torch._C, '_cuda_getArchFlags', lambda: '')() or '')"
    answer = ask(sys.executable, "-c", code)
    return Torch(
        version, cuda, answer.said.split() if answer.works and answer.said.strip() else None
    )


def pinned(root: Path) -> dict[str, tuple[str | None, str]]:
    """Map each package of envs/cpu.txt to its installed and its pinned version."""
    found: dict[str, tuple[str | None, str]] = {}
    path = root / "envs/cpu.txt"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        name, equals, version = line.partition("#")[0].strip().partition("==")
        if equals:
            try:
                found[name] = (metadata.version(name), version.strip())
            except metadata.PackageNotFoundError:
                found[name] = (None, version.strip())
    return found


def not_fetched(experiment: Experiment, planned: Sequence[Planned]) -> list[str]:
    """List the Hub repositories that jobs still to be run need and that are not in the cache."""
    from huggingface_hub import try_to_load_from_cache

    settings = experiment.settings
    left = [each.job for each in planned if each.job.to_do]
    wanted: dict[str, str] = {}
    for job in left:
        source: Mapping[str, Any] = {}
        if job.rule == "base":
            source = settings["models"][job.wildcards["model"]]["weights"]
        elif job.rule == "tokenizer":
            source = settings["tokenizer"]
        if "hub" in source:
            file = "config.json" if job.rule == "base" else "tokenizer_config.json"
            path = try_to_load_from_cache(source["hub"], file, revision=source["revision"])
            if not isinstance(path, str):
                wanted[source["hub"]] = ""
        if job.rule == "data":
            source = specs.data(experiment, job.wildcards["split"])["source"]
            if "hub" in source:
                wanted[source["hub"]] = ""
    return list(wanted)


def hub_problem(timeout: float = PATIENCE) -> str | None:
    """Explain why the Hub cannot be reached; None if it can."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set"
    place = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        request = urllib.request.Request(place, method="HEAD")
        urllib.request.urlopen(request, timeout=timeout).close()
    except urllib.error.HTTPError:
        return None  # it answered
    except OSError as error:
        return f"{place}: {getattr(error, 'reason', error)}"
    return None


def free_bytes(place: Path) -> float:
    """Free bytes on the disk of a path that need not exist yet."""
    while not place.exists():
        place = place.parent
    return float(shutil.disk_usage(place).free)


def device_of(place: Path) -> int:
    """Device number of the disk of a path that need not exist yet."""
    while not place.exists():
        place = place.parent
    return place.stat().st_dev


def hub_cache() -> Path:
    """Folder of the Hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def account_of(found: Sequence[Job]) -> str | None:
    """Slurm account that the submitted jobs name."""
    names = [job.resources.get("slurm_account") for job in found if job.computes]
    return next((name for name in names if name), None)


def known_accounts() -> list[str] | None:
    """List this user's Slurm accounts; None if unavailable, for instance without Slurm's database."""
    answer = ask("sacctmgr", "-n", "-s", "list", "user", user(), "format=account%256")
    names = sorted({line.strip() for line in answer.said.splitlines() if line.strip()})
    return names if answer.works and names else None


def user() -> str:
    """Name of the current user, or the user id where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def facts(prepared: Prepared, planned: Sequence[Planned]) -> Facts:
    """Collect everything that `doctor` checks."""
    root, settings = prepared.root, prepared.settings
    executor = settings.get("executor")
    results = root / "results"
    wanted = not_fetched(prepared.experiment, planned)
    cache = hub_cache()
    same = device_of(cache) == device_of(results)
    try:
        prepared.experiment.require_files()
        missing = None
    except InputError as error:
        missing = str(error)
    return Facts(
        python=".".join(map(str, sys.version_info[:3])),
        versions=pinned(root),
        torch=installed_torch(archs=True),
        gpus=own_gpus(),
        executor=executor,
        slurm=ask("sinfo", "-h", "-o", "%G") if executor == "slurm" else None,
        account=account_of(prepared.jobs),
        accounts=known_accounts() if executor == "slurm" else None,
        hub=wanted,
        hub_problem=hub_problem() if wanted else None,
        free=free_bytes(results),
        free_cache=None if same else free_bytes(cache),
        attempts=int(settings.get("retries") or 0) + 1,
        missing=missing,
    )
