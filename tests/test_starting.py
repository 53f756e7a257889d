"""What stages import, each started as Snakemake starts it: the start is most of the time of a small one.

Those that import torch are forked from a process that has imported nothing else.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import warm_python
from conftest import ROOT, Project

from takd.runtime import imports

# runs a stage, then prints all modules that it has imported
OBSERVED = """
import json, os, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code
print(json.dumps([name for name, module in sys.modules.items() if module]))
"""
FROM_SOURCE = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
MODELS = {"torch", "transformers", "accelerate", "nltk", "datasets"}
PAGES = {
    "matplotlib",
    "scipy",
    "pandas",
    "jsonschema",
    "snakemake",
    "datasets",
    "deepspeed",
    "peft",
}
NEEDLESS = {
    "tokenizer": MODELS | PAGES | {"numpy"},
    "data_report": MODELS | PAGES,
    "distill_minillm": PAGES,
    "evaluate": PAGES,
    "likelihoods": PAGES | {"nltk"},
    "card": MODELS | {"matplotlib", "scipy.stats", "jsonschema", "snakemake"},
    "report": MODELS | {"scipy.stats", "matplotlib.pyplot", "jsonschema", "snakemake"},
}


@pytest.fixture(scope="module")
def commands(forked: Project) -> dict[str, str]:
    """The command of one stage of each rule."""
    printed = forked.run("--dry-run", "--forceall", "--printshellcmds")
    told = re.findall(r"rule (\w+):.*?^Shell command: ([^\n]*)", printed, re.M | re.S)
    return {rule: command.rpartition(" 2> ")[0] for rule, command in told}


@pytest.mark.parametrize("rule", NEEDLESS)
def test_modules_that_a_stage_does_not_import(
    rule: str, commands: dict[str, str], forked: Project, tmp_path: Path
) -> None:
    project = forked.copy(tmp_path / "copy")
    (tmp_path / "observed.py").write_text(OBSERVED)
    python = sys.executable if "torch" in NEEDLESS[rule] else warm_python.stand_in("torch")
    command = commands[rule].replace("python3 ", f"{python} {tmp_path}/observed.py ", 1)
    done = subprocess.run(command, shell=True, cwd=project.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    assert "takd.runtime.command_line" in imported
    assert ("torch" in imported) == ("torch" not in NEEDLESS[rule])
    assert not imported & NEEDLESS[rule]


def test_the_judge_imports_no_library_of_models() -> None:
    program = "import sys, takd.evaluation.judge; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=FROM_SOURCE
    )
    assert not set(done.stdout.split()) & (MODELS | PAGES)


def test_transformers_knows_its_models_after_one_scan(tmp_path: Path) -> None:
    program = """
import json, sys
from transformers.utils import import_utils
from takd.runtime.imports import scan_transformers_once
scan, scanned = import_utils.create_import_structure_from_path, []
def counted(path):
    scanned.append(str(path))
    return scan(path)
import_utils.create_import_structure_from_path = counted
if "once" in sys.argv:
    scan_transformers_once()
import transformers.models
from transformers import AutoModelForCausalLM, GPT2Config
known = sorted((name, where) for name, where in transformers.models._class_to_module.items())
model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=8, n_head=2))
print(json.dumps([scanned, known, model.num_parameters()]))
"""
    (tmp_path / "scans.py").write_text(program)
    found = []
    for how in ("once", "twice"):
        command = [warm_python.stand_in("torch"), tmp_path / "scans.py", how]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=FROM_SOURCE)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    (once, *after), (twice, *before) = found
    assert after == before
    whole = [path for path in twice if path not in once]
    assert len(whole) > 400 and any("models" in path for path in whole)


def test_a_library_that_is_in_use_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    imports.hide("json", "nowhere_else")
    assert sys.modules["json"] is json
    with pytest.raises(ModuleNotFoundError):
        imports.quickly("nowhere_else")
