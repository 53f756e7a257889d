"""The lists of packages, and the scripts that install them: what they ask pip for."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from takd.watching.trackers import TRACKERS

ENVS = ROOT / "envs"

# In place of python3.11 and of the environment's python: notes what it is asked for.
PYTHON = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in
"-m venv --clear "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
*" install torch=="*) [ -z "${NOT_FOUND:-}" ] ;;
*torch.version.cuda*) [ -z "${NO_CUDA:-}" ] ;;
esac
"""


def pinned() -> list[str]:
    lines = (ENVS / "cpu.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def listed(name: str) -> dict[str, str]:
    """Requirements of a file, the name in the form in which names are compared, with the version."""
    lines = (ENVS / name).read_text().splitlines()
    pairs = [re.split("[=>]=", line) for line in lines if not line.startswith("#")]
    return {normal(name): "".join(version) for name, *version in pairs}


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def test_every_package_is_pinned() -> None:
    assert [line for line in pinned() if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_conda_has_the_same_packages() -> None:
    described = yaml.safe_load((ENVS / "conda.yaml").read_text())
    assert described["dependencies"][-1]["pip"] == pinned()


def test_no_package_is_pinned_in_a_second_place() -> None:
    others = [path for path in ENVS.iterdir() if path.name not in ("cpu.txt", "conda.yaml")]
    pins = [re.findall(r"[\w-]+==\d[\w.]*", path.read_text()) for path in others]
    assert others
    assert not any(pins), pins


@pytest.mark.parametrize(("name", "shell"), [("create.sh", "sh"), ("alliance.sh", "bash")])
def test_shell_can_read_the_scripts(name: str, shell: str) -> None:
    subprocess.run([shell, "-n", str(ENVS / name)], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    scripts = sorted(map(str, ENVS.glob("*.sh")))
    done = subprocess.run(["shellcheck", *scripts], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


class Asked:
    """A place to run create.sh in, with a python that only notes what it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.venv = folder / "venv"
        self.calls = folder / "calls"
        self.bin = folder / "bin"
        executable(self.bin / "python3.11", PYTHON)

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        self.calls.write_text("")
        path = f"{self.bin}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "CALLS": str(self.calls), **variables}
        return subprocess.run(command, text=True, capture_output=True, env=env)

    def create(self, *target: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run("sh", str(ENVS / "create.sh"), str(self.venv), *target, **variables)

    def installed(self) -> list[str]:
        """What pip was to install, call by call."""
        return re.findall(r"^-m pip .* install (.*)$", self.calls.read_text(), re.M)


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


@pytest.mark.parametrize(
    ("target", "build"), [((), ""), (("cpu",), ""), (("cuda",), ""), (("volta",), "+cu126")]
)
def test_a_target_chooses_the_build_of_torch_and_no_more(
    target: tuple[str, ...], build: str, asked: Asked
) -> None:
    done = asked.create(*target)
    assert done.returncode == 0, done.stderr
    torch, others, itself = asked.installed()
    assert torch == next(pin for pin in pinned() if pin.startswith("torch==")) + build
    assert others == f"--requirement {ENVS}/cpu.txt"
    assert itself.startswith("--no-deps --editable")
    assert ("torch.version.cuda" in asked.calls.read_text()) == (target == ("cuda",))


def test_cuda_refuses_a_build_without_it(asked: Asked) -> None:
    done = asked.create("cuda", NO_CUDA="1")
    assert done.returncode == 1
    assert (
        "without CUDA: take PyTorch's index for the CPU out of PIP_EXTRA_INDEX_URL" in done.stderr
    )
    assert len(asked.installed()) == 1


def test_volta_says_which_index_is_missing(asked: Asked) -> None:
    done = asked.create("volta", NOT_FOUND="1")
    assert done.returncode == 1
    assert "Is PyTorch's index cu126 in PIP_EXTRA_INDEX_URL?" in done.stderr
    assert len(asked.installed()) == 1


def test_an_unknown_target_is_refused_before_anything_is_made(asked: Asked) -> None:
    done = asked.create("a100")
    assert done.returncode == 1
    assert done.stderr.startswith("There is no target a100: ")
    assert not asked.calls.read_text()


def sections(text: str) -> dict[str, str]:
    """An Apptainer definition by its sections; the header is called ''."""
    parts = re.split(r"^%(\w+)\n", text, flags=re.M)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def filled(text: str, arguments: Mapping[str, str]) -> str:
    """What Apptainer makes of {{ name }}."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda match: arguments[match[1]], text)


@pytest.mark.parametrize(("given", "build"), [({}, ""), ({"target": "volta"}, "+cu126")])
def test_image_is_made_of_files_that_exist_by_the_same_script(
    given: dict[str, str], build: str, asked: Asked, tmp_path: Path
) -> None:
    definition = sections((ENVS / "takd.def").read_text())
    assert "Bootstrap: docker\nFrom: python:3.11-" in definition[""]
    arguments = dict(line.strip().split("=", 1) for line in definition["arguments"].split())
    root = tmp_path / "image"
    for line in definition["files"].strip().splitlines():
        source, target = line.split()
        place = root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, place)
    for name in ("apt-get", "rm"):  # these would change the machine that tests
        executable(asked.bin / name, "#!/bin/sh\n")
    post = filled(definition["post"], {**arguments, **given}).replace("/opt", f"{root}/opt")
    done = asked.run("sh", "-e", "-c", post)
    assert done.returncode == 0, done.stderr
    torch, others = asked.installed()  # not takd itself, which is read from the working folder
    assert torch == next(pin for pin in pinned() if pin.startswith("torch==")) + build
    assert others == f"--requirement {root}/opt/takd/envs/cpu.txt"
    assert (root / "opt/takd/environment/bin/python").exists()
    assert "/opt/takd/environment/bin:" in definition["environment"]


def imported() -> set[str]:
    """Packages that the workflow imports, by the names under which they are installed."""
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "workflow").rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [
        str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level
    ]
    roots = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names)
    roots -= {"takd", "start"}  # `start` lies beside the scripts
    roots -= set(TRACKERS)  # asked for by an experiment: the extra `trackers` of pyproject.toml
    names = packages_distributions()
    return {normal(names[root][0]) for root in roots}


def test_alliance_lists_what_is_imported_at_the_releases_that_were_tried() -> None:
    pins, names = listed("cpu.txt"), listed("alliance.txt")
    runs = {"snakemake", "snakemake-executor-plugin-slurm"}
    read_by_transformers = {"gguf"}
    module = {"pyarrow"}
    assert set(names) == imported() - module | runs | read_by_transformers
    for name, version in names.items():
        assert version in ("", ".".join(pins[name].split(".")[:2])), name


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """A wheel with nothing in it but what it requires."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as file:
        info = f"{stem}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        file.writestr(f"{info}/METADATA", metadata)
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


def virtualenv() -> str:
    """What makes an environment with the pip of this one, which takes less than to install it."""
    files = {file.parts[0] for file in distribution("pip").files or () if file.parts[0] != ".."}
    pip = shlex.join(str(distribution("pip").locate_file(name)) for name in sorted(files))
    packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    return (
        f'#!/bin/sh\n{sys.executable} -m venv --without-pip "$3" && ln -s {pip} "$3/{packages}"\n'
    )


class Cluster:
    """A login node of the Alliance: modules, a wheelhouse and an index, as far as pip can tell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wheelhouse = folder / "wheelhouse"
        self.index = folder / "index"
        executable(folder / "bin/virtualenv", virtualenv())
        self.wheelhouse.mkdir()
        self.index.mkdir()
        arrow = folder / "arrow"
        (arrow / "pyarrow").mkdir(parents=True)
        (arrow / "pyarrow/__init__.py").touch()
        (arrow / "pyarrow-25.0.0.dist-info").mkdir()
        (arrow / "pyarrow-25.0.0.dist-info/METADATA").write_text(
            "Metadata-Version: 2.1\nName: pyarrow\nVersion: 25.0.0\n"
        )

    def fill(self, *without: str, **versions: str) -> None:
        """A wheel for all that alliance.txt names, of other versions than the pins."""
        needs = {"datasets": ["pyarrow>=21"], "snakemake": ["yte>=1.5"]}
        for name, lowest in listed("alliance.txt").items():
            if name not in without:
                version = versions.get(name, f"{lowest or '1.0'}.99+computecanada")
                wheel(self.wheelhouse, name, version, *needs.get(name, []))

    def publish(self, name: str, version: str, *requires: str) -> None:
        wheel(self.index / name, name, version, *requires)
        links = "".join(
            f'<a href="{path.name}">{path.name}</a>' for path in (self.index / name).glob("*.whl")
        )
        (self.index / name / "index.html").write_text(links)

    def source(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """What a shell that sources alliance.sh says, and what it then has."""
        script = f"""
            module() {{ echo "module $*"; export PYTHONPATH={shlex.quote(str(self.folder / "arrow"))}; }}
            source {shlex.quote(str(ENVS / "alliance.sh"))} {shlex.join(arguments)} || exit
            echo "entered $VIRTUAL_ENV, xet $HF_HUB_DISABLE_XET"
            python -c 'import takd; print(takd.__file__)'
            python -m pip freeze
        """
        left_out = re.compile("PIP_|PYTHONPATH$|VIRTUAL_ENV$|SCRATCH$|TAKD_MODULES$")
        env = {name: value for name, value in os.environ.items() if not left_out.match(name)}
        env |= {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_FIND_LINKS": str(self.wheelhouse),
            "PIP_INDEX_URL": self.index.as_uri(),
            **variables,
        }
        return subprocess.run(["bash", "-c", script], text=True, capture_output=True, env=env)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_alliance_takes_wheels_of_the_cluster_and_fetches_what_it_lacks(cluster: Cluster) -> None:
    pins = listed("cpu.txt")
    cluster.fill(snakemake="8.4.0+computecanada")  # too old, and what it needs is not there at all
    cluster.publish("snakemake", pins["snakemake"], "yte>=1.5")
    for version in (pins["yte"], "99.0"):
        cluster.publish("yte", version)
    cluster.publish("torch", "99.0")  # newer than the wheelhouse's, and not to be taken
    done = cluster.source(SCRATCH="/scratch/someone")
    folder = cluster.folder / "takd-env"
    assert done.returncode == 0, done.stdout + done.stderr
    assert "module load StdEnv/2023 gcc arrow python/3.11" in done.stdout
    assert f"entered {folder}, xet 1" in done.stdout
    assert str(ROOT / "src/takd/__init__.py") in done.stdout
    assert re.findall("The wheelhouse lacks (.*): fetching it", done.stdout) == ["snakemake", "yte"]
    assert {
        f"snakemake=={pins['snakemake']}",
        f"yte=={pins['yte']}",
        f"torch=={listed('alliance.txt')['torch']}.99+computecanada",
    } <= {line.split(" @ ")[0] for line in done.stdout.splitlines()}
    # at the next login, or in a shell of tmux, it is entered, and nothing is installed
    again = cluster.source(
        PIP_FIND_LINKS="", VIRTUAL_ENV=str(folder), TAKD_MODULES="StdEnv/2023 arrow/25.0.0"
    )
    assert again.returncode == 0, again.stderr
    assert "module load StdEnv/2023 arrow/25.0.0" in again.stdout
    assert "Making" not in again.stdout
    assert "command not found" not in again.stderr


def test_alliance_says_what_neither_has(cluster: Cluster) -> None:
    cluster.fill("tokenizers")
    cluster.publish("yte", listed("cpu.txt")["yte"])
    done = cluster.source()
    assert done.returncode == 1
    assert "The wheelhouse lacks tokenizers: fetching it" in done.stdout
    assert "Neither the wheelhouse nor the index has a tokenizers that fits" in done.stderr
    assert not (cluster.folder / "takd-env/complete").exists()


def test_alliance_refuses_what_cannot_work(cluster: Cluster) -> None:
    scratch = cluster.folder / "scratch"
    done = cluster.source(str(scratch / "env"), SCRATCH=str(scratch))
    assert done.returncode == 1
    assert "is on scratch, where old files are removed one by one" in done.stderr
    shutil.rmtree(cluster.folder / "arrow")
    done = cluster.source()
    assert done.returncode == 1
    assert "The module arrow has no pyarrow for this Python" in done.stderr
    executed = subprocess.run(
        ["bash", str(ENVS / "alliance.sh")], text=True, capture_output=True, check=False
    )
    assert executed.returncode == 1
    assert executed.stderr.startswith("This changes the shell that you are in: source ")
