"""Fixtures: a copy of the workflow in which stages only write placeholder outputs."""

import fcntl
import gc
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import warm_client
import warm_python
import yaml

# no test cuts the power, and each wait for the disk takes milliseconds (so in the servers that stages are forked from)
os.fsync = lambda file: None
# threads that wait for each other make tests far slower when workers share the cores
os.environ["OMP_NUM_THREADS"] = "1"
# no test asks the real hub: here nothing answers, at once
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("Snakefile", "rules", "workflow", "config", "profiles", "src", "envs")

# A copy has the real modules of the stages, whose digests are tested, but runs this code in their place.
FAKE_STAGE = """
from takd.runtime.records import RECORDS

OF = {
    "method": "model", "weights": "base", "part": "answers", "noise": "generations",
    "kind": "teacher_outputs", "split": "data",
}


def run(stage):
    stage.say("done")
    for name, path in stage.outputs.items():
        if not path.suffix:
            folder = stage.temporary(path)
            (folder / "weights").write_text(name)
            stage.commit(path)
        elif path.name not in RECORDS:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    for path in stage.outputs.values():
        if path.name == "manifest.json":
            kinds = [kind for key, kind in OF.items() if key in stage.spec]
            stage.write_manifest(path, kind=(kinds or ["tokenizer"])[0])
        elif path.name in RECORDS:
            stage.write_record(path, spec=stage.spec)
"""
NAMED = "    named=named,\n"
IMPORT = "imports.quickly(module).run(stage)"


class Project:
    """A copy of the workflow.

    Args:
        warm: module with the imports of the process that stages are forked from; by default, each is a new process.
    """

    def __init__(self, folder: Path, warm: str | None = None) -> None:
        self.folder, self.warm = folder, warm

    def run(self, *arguments: str, check: bool = True, env: Mapping[str, str] | None = None) -> str:
        """Run snakemake, and return its output."""
        # a profile sets the number of cores
        cores = [] if "--profile" in arguments else ["--cores", "2"]
        command = ["-m", "snakemake", *arguments, *cores]
        env = dict(os.environ if env is None else env)
        if self.warm and not {"--dry-run", "-n", "--touch", "--report"}.intersection(arguments):
            env[warm_python.EXECUTABLE] = warm_python.stand_in(self.warm)
        with tempfile.TemporaryFile() as file:
            status = warm_client.run(
                warm_python.server("warm_snakemake"),
                *(command, str(self.folder), env),
                output=file.fileno(),
            )
            file.seek(0)
            output = file.read().decode(errors="replace")
        assert not check or status == 0, output
        return output

    def plan(self, *arguments: str) -> dict[str, int]:
        """Count the jobs that a run would start by rule, without target rules."""
        printed = self.run("--dry-run", "--quiet", "rules", *arguments)
        if "Nothing to be done" in printed:
            return {}
        table = printed.split("Job stats:")[1].split("\n\n")[0]
        jobs = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.M)}
        return {
            name: count for name, count in jobs.items() if name not in ("all", "compare", "total")
        }

    def jobs(self, *arguments: str) -> list[Any]:
        """List all jobs of a dry run, as the commands `plan` and `doctor` know them."""
        from takd.preflight.jobs import LISTED, Job

        with tempfile.NamedTemporaryFile() as file:
            self.run("--dry-run", *arguments, env={**os.environ, LISTED: file.name})
            return [Job(**job) for job in json.loads(Path(file.name).read_text())]

    def outputs(self, *arguments: str) -> list[str]:
        """List the first output of every job that a run would start."""
        printed = self.run("--dry-run", *arguments)
        return re.findall(r"^    output: ([^,\n]+)", printed, re.M)

    def experiment(self, edit: Callable[[dict[str, Any]], Any], name: str = "small") -> None:
        """Edit an experiment file of this copy."""
        path = self.folder / f"config/experiments/{name}.yaml"
        settings = yaml.safe_load(path.read_text())
        edit(settings)
        path.write_text(yaml.safe_dump(settings, sort_keys=False))

    def replace(self, file: str, old: str, new: str) -> None:
        """Replace a text, which must occur, in a file of this copy."""
        path = self.folder / file
        text = path.read_text()
        assert old in text, f"{file} has no {old!r}"
        path.write_text(text.replace(old, new, 1))

    def copy(self, folder: Path) -> "Project":
        """Copy everything, with results and Snakemake's records, into a folder with new time stamps."""
        shutil.copytree(self.folder, folder, copy_function=shutil.copy)
        return Project(folder, self.warm)


def small_experiment() -> dict[str, Any]:
    """Experiment with one chain with and one without an assistant, two methods, one seed."""

    def model(layers: int) -> dict[str, Any]:
        shape = {"architecture": "gpt2", "layers": layers, "width": 16, "heads": 2, "positions": 64}
        return {"weights": {"scratch": shape}}

    def rows(part: str, count: int) -> dict[str, Any]:
        return {"demo": {"part": part, "rows": count, "seed": 1}}

    sft = {"steps": 4, "batch_size": 4, "evaluate_every": 2}
    return {
        "title": "Small",
        "description": "For tests.",
        "tokenizer": {"train": {"vocabulary": 300}},
        "models": {"teacher": model(3), "assistant": model(2), "student": model(1)},
        "data": {
            "train": rows("train", 40),
            "dev": {"json": "data/dev.jsonl"},
            "max_length": 64,
            "max_prompt_length": 48,
        },
        "chains": [
            {"models": ["teacher", "student"], "methods": ["kd", "minillm"]},
            {"models": ["teacher", "assistant", "student"], "methods": ["minillm"]},
        ],
        "seeds": [1],
        "training": {"sft": dict(sft), "kd": dict(sft), "minillm": dict(sft)},
        "evaluation": {"sets": {"heldout": rows("test", 8)}, "seeds": [10, 20]},
        "report": {"samples": 2},
    }


def writing_experiment() -> dict[str, Any]:
    """Experiment whose teacher precomputes responses for two students and top-k outputs for two others."""
    experiment = small_experiment()
    sft = experiment["training"]["sft"]
    experiment["training"] = {
        "sft": sft,
        "seqkd": dict(sft),
        "kd": {**sft, "teacher_outputs": "top_k"},
    }
    experiment["chains"] = [
        {"models": ["teacher", name], "methods": ["seqkd", "kd"]}
        for name in ("assistant", "student")
    ]
    experiment["teacher_cache"] = {"shards": 2, "top_k": 8, "seed": 5}
    return experiment


def copy_workflow(folder: Path, experiment: Mapping[str, Any]) -> None:
    """Copy the workflow unchanged, with the given experiment as the default one, called small."""
    folder.mkdir(parents=True)
    for part in PARTS:
        source, ignored = ROOT / part, shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=ignored)
        else:
            shutil.copy(source, folder / part)
    (folder / "config/config.yaml").write_text("experiment: small\n")
    (folder / "config/experiments/small.yaml").write_text(yaml.safe_dump(dict(experiment)))


def make_project(folder: Path, experiment: Mapping[str, Any]) -> Project:
    """Copy the workflow, with stages that only write placeholder outputs."""
    copy_workflow(folder, experiment)
    (folder / "data").mkdir()
    (folder / "data/dev.jsonl").write_text('{"instruction": "Say b.", "output": "b"}\n')
    (folder / "fakes.py").write_text(FAKE_STAGE)
    command_line = folder / "src/takd/runtime/command_line.py"
    text = command_line.read_text()
    assert IMPORT in text
    # after the code digest is computed, and outside of any stage's imports
    fake = 'sys.path.insert(0, os.getcwd())\n        imports.quickly("fakes").run(stage)'
    command_line.write_text(text.replace(IMPORT, fake))
    # do not import methods to find out whether the teacher is read: torch takes seconds
    script = folder / "workflow/scripts/train.py"
    text = script.read_text()
    assert NAMED in text
    script.write_text(text.replace(NAMED, ""))
    return Project(folder, "warm_fakes")


@pytest.fixture
def warm_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that ask Snakemake for its jobs take a process that is forked, as `Project` does."""
    monkeypatch.setattr(sys, "executable", warm_python.stand_in("warm_snakemake"))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A copy of the workflow with the small experiment, before any run."""
    return make_project(tmp_path / "project", small_experiment())


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Make a folder once for all processes of a test run: the first calls `make`, the others wait."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert done.exists() or not folder.exists(), f"making {folder} failed before"
        if not done.exists():
            make(folder)
            done.touch()
    return folder


def run_small(folder: Path, experiment: Mapping[str, Any]) -> None:
    """Run an experiment with stages that only write placeholder outputs."""
    make_project(folder, experiment).run("--quiet", "rules")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy in which the small experiment has run. Shared: tests must copy it before changing it."""
    run = partial(run_small, experiment=small_experiment())
    return Project(made_once(tmp_path_factory, "finished", run), "warm_fakes")


@pytest.fixture(scope="session")
def finished_writing(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy in which the experiment with precomputed teacher outputs has run. Shared like `finished`."""
    run = partial(run_small, experiment=writing_experiment())
    return Project(made_once(tmp_path_factory, "finished_writing", run), "warm_fakes")


def really(folder: Path, warm: str | None = None) -> Project:
    """Copy the workflow for two small models and the real stages, on the CPU; nothing runs yet."""
    experiment = small_experiment()
    experiment["chains"] = [{"models": ["teacher", "student"], "methods": ["minillm"]}]
    del experiment["models"]["assistant"], experiment["training"]["kd"]
    template = {"with_input": "{instruction}\n{input}\n", "without_input": "{instruction}\n"}
    experiment["data"]["template"] = template
    copy_workflow(folder, experiment)
    (folder / "data").mkdir()
    rows = [{"instruction": f"Say {letter}.", "output": letter} for letter in "bcdefghi"]
    (folder / "data/dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Project(folder, warm)


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy in which real stages have run, forked from a process with all imports. Shared like `finished`."""

    def run(folder: Path) -> None:
        really(folder, "warm_runs").run("--quiet", "rules")

    return Project(made_once(tmp_path_factory, "forked", run), "warm_runs")


# Files that take longest, which start first: a long one at the end would leave the other worker idle. Beside the first,
# which shares nothing, the second makes what many others take.
LONGEST = (
    *("test_training_matrix", "test_end_to_end", "test_staleness", "test_report", "test_training"),
    *("test_gpu_check", "test_looks", "test_hub_run", "test_plan", "test_methods_on_policy"),
    *(
        "test_budget",
        "test_given",
        "test_store",
        "test_module",
        "test_pretended_cuda",
        "test_ending",
    ),
    *("test_enumerable", "test_stages", "test_starting", "test_environments", "test_compare"),
    *("test_exporting", "test_deepspeed", "test_cards", "test_chat_end_to_end", "test_sweeps"),
    *("test_decoder", "test_all_families", "test_minillm", "test_footprint", "test_sampling"),
    *("test_decoding_distribution", "test_report_browser", "test_report_figures", "test_doctor"),
    # on a Slurm cluster: minutes of waiting for time limits beside what computes, and not at the end
    *("test_demo", "test_faults_of_time", "test_faults_of_clusters", "test_faults_of_jobs"),
)
# Files of which most tests start processes, trainings or a browser: `pytest -m "not slow"` does not even read them.
SLOW = {
    *(
        "test_all_families",
        "test_cards",
        "test_chat_end_to_end",
        "test_checkpoints",
        "test_compare",
        "test_csv_cells",
    ),
    *("test_dag", "test_decoding_distribution", "test_deepspeed", "test_deterministic"),
    *("test_end_to_end", "test_ending", "test_given", "test_looks", "test_module", "test_store"),
    "test_store_nodes",
    "test_decoder",
    *("test_environments", "test_evaluation_likelihoods", "test_evaluation_plan"),
    *("test_exporting", "test_failures", "test_footprint", "test_fuzzing", "test_generation"),
    *("test_csvfile", "test_gpu_check", "test_half_precision_stages", "test_hub", "test_hub_run"),
    "test_offline",
    *("test_options", "test_precision", "test_pretended_cuda", "test_resources"),
    *("test_rouge_tokens", "test_tidy", "test_evaluation_judge", "test_vocabulary"),
    *("test_doctor", "test_downloads", "test_families", "test_layers", "test_methods_on_policy"),
    *("test_model_checks", "test_plan"),
    *("test_profiles", "test_staleness", "test_starting", "test_training", "test_training_faults"),
    *("test_training_matrix", "test_zero3_chunks", "test_given", "test_store"),
    *(path.stem for path in (ROOT / "tests").glob("test_report*.py")),
}
# Tests with these run Snakemake or stages. Of those with a finished run, one is not slow: it runs each kind of stage.
SLOW_FIXTURES = {"project", "finished", "finished_writing", "forked", "space", "workspace"}
EACH_KIND = "test_stages"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes seconds")
    # until all tests are imported: collections would search a million objects, none of them garbage
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        gc.disable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out slow files where only fast tests are asked for."""
    return True if config.option.markexpr == "not slow" and collection_path.stem in SLOW else None


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def kept_out_of_collections() -> None:
    """Likewise what the tests of a file leave behind: code that draws on a card collects garbage each time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow tests, and put those of the longest files first."""
    for item in items:
        runs = SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ()))
        if item.path.stem in SLOW or (runs and item.path.stem != EACH_KIND):
            item.add_marker("slow")
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))
