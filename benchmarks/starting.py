"""Starting: CPU seconds of stages that have next to nothing to do, each a process of its own.

    python benchmarks/starting.py [--before FOLDER] [--quick] [--json FILE]

A copy of the workflow runs an experiment whose models have some thousand parameters. Then one stage of each kind runs
again and again, as Snakemake starts it: a training of four steps, an evaluation of eight prompts. What that takes are
its imports. `import torch` and a dry run of snakemake are measured beside them. `--before` names another checkout of
the repository, whose stages run in alternation with this one's.
"""

import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import yaml
from harness import Comparison, Report, command_line, progress, start

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = "python3 workflow/scripts"
PARTS = ("Snakefile", "rules", "workflow", "config", "profiles", "src", "envs")
KINDS = (
    "tokenizer",
    "data",
    "base",
    "teacher",
    "distill_minillm",
    "evaluate",
    "likelihoods",
    "card",
    "report",
)


def scratch(layers: int) -> dict[str, object]:
    """A model with random weights."""
    shape = {"architecture": "gpt2", "layers": layers, "width": 16, "heads": 2, "positions": 128}
    return {"weights": {"scratch": shape}}


def rows(part: str, count: int) -> dict[str, object]:
    """Rows of the demo's generator."""
    return {"demo": {"part": part, "rows": count, "seed": 1}}


STEPS = {"steps": 4, "batch_size": 4, "evaluate_every": 2}
EXPERIMENT = {
    "title": "Starting",
    "description": "Stages with next to nothing to do.",
    "tokenizer": {"train": {"vocabulary": 550}},
    "models": {"teacher": scratch(3), "student": scratch(1)},
    "data": {
        "train": rows("train", 40),
        "dev": rows("dev", 4),
        "max_length": 128,
        "max_prompt_length": 96,
    },
    "chains": [{"models": ["teacher", "student"], "methods": ["minillm"]}],
    "seeds": [1],
    "training": {"sft": STEPS, "minillm": STEPS},
    "evaluation": {"sets": {"heldout": rows("test", 8)}, "seeds": [10, 20]},
    "report": {"samples": 2},
}


def main() -> None:
    parser = command_line(__doc__)
    text = "another checkout, whose stages run in alternation with this one's"
    parser.add_argument("--before", type=Path, metavar="FOLDER", help=text)
    arguments = parser.parse_args()
    report = Report(__doc__, arguments, start(arguments))
    checkouts = {"now": ROOT}
    if arguments.before:
        checkouts = {"before": arguments.before.resolve(), **checkouts}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, command in commands(folder).items():
            contenders = {
                of: command.replace(SCRIPTS, f"{sys.executable} {checkout}/workflow/scripts")
                for of, checkout in checkouts.items()
            }
            report.add(name, alternate(contenders, folder, 2 if arguments.quick else 5))
        bare = {
            "import torch": f"{sys.executable} -c 'import torch'",
            "dry run": f"{sys.executable} -m snakemake --quiet --dry-run --cores 2",
        }
        report.add("for comparison", alternate(bare, folder, 2 if arguments.quick else 5))
    report.finish()


def commands(folder: Path) -> dict[str, str]:
    """Run the experiment in a folder, and return the command of one stage of each kind."""
    for part in PARTS:
        source = ROOT / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
    (folder / "config/config.yaml").write_text("experiment: small\n")
    (folder / "config/experiments/small.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    progress("all stages once")
    snakemake = [sys.executable, "-m", "snakemake", "--quiet", "rules", "--cores", "2"]
    subprocess.run(snakemake, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    dry = [*snakemake[:3], "--cores", "2", "--dry-run", "--forceall", "--printshellcmds"]
    said = subprocess.run(dry, cwd=folder, check=True, capture_output=True, text=True).stdout
    told = re.findall(r"rule (\w+):.*?^Shell command: (\S.*?)$", said, re.M | re.S)
    # without the digest of the code, which another checkout does not have
    stages = {rule: re.sub(r" --code \w+", "", command) for rule, command in told}
    return {kind: stages[kind] for kind in KINDS}


def alternate(contenders: Mapping[str, str], folder: Path, turns: int) -> Comparison:
    """CPU seconds of commands that run in turn, user and system, with those of their children."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-1, turns):
        for name, command in contenders.items():
            before = spent()
            subprocess.run(command, shell=True, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            if turn >= 0:
                seconds[name].append(spent() - before)
                progress(f"{name}: {seconds[name][-1]:.2f} s of CPU  {command[:60]}")
    return Comparison(seconds, next(iter(seconds)), unit="s of CPU")


def spent() -> float:
    """CPU seconds of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
