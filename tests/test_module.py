"""The workflow as a module of a Snakefile in a folder of the user's own."""

import shutil
import zipfile
from pathlib import Path

import yaml
from conftest import Project, copy_workflow, make_project, small_experiment
from test_looks import WIDE, decisions, looking, reported, seeds

MODULE = """
configfile: "config/config.yaml"

module takd:
    snakefile: "{clone}/workflow/Snakefile"
    config: config

use rule * from takd
"""


def use(clone: Path, folder: Path) -> Project:
    """Make a folder with an experiment, its data and a Snakefile that declares a clone as a module."""
    (folder / "config/experiments").mkdir(parents=True)
    experiment = small_experiment() | {"title": "Own"}
    (folder / "config/experiments/own.yaml").write_text(yaml.safe_dump(experiment))
    (folder / "config/config.yaml").write_text("experiment: own\n")
    (folder / "Snakefile").write_text(MODULE.format(clone=clone))
    (folder / "data").mkdir()
    shutil.copy(clone / "fakes.py", folder)  # the placeholder stages
    return Project(folder, "warm_fakes")


def test_an_own_folder_has_its_experiments_data_and_results(tmp_path: Path) -> None:
    clone = make_project(tmp_path / "clone", small_experiment())
    own = use(clone.folder, tmp_path / "own folder")
    # a dry run needs no data; a run is refused before its first job, as in the clone itself
    assert own.plan()["teacher"] == 1
    refused = own.run(check=False)
    assert "data.dev.json is 'data/dev.jsonl', which does not exist" in refused
    assert not list(own.folder.glob("results/**/manifest.json"))
    (own.folder / "data/dev.jsonl").write_text('{"instruction": "Say b.", "output": "b"}\n')
    own.run("models", "--quiet", "rules")
    assert own.outputs("models") == []
    assert (own.folder / "results/own/models/teacher-sft/seed1/manifest.json").is_file()
    assert not (clone.folder / "results").exists()
    # experiments that come with the workflow run there as well
    assert own.plan("--config", "experiment=small")["teacher"] == 1
    own.experiment(lambda e: e["training"]["minillm"].update(steps=5), "own")
    stale = own.outputs("models")
    assert stale and all("-minillm/" in path for path in stale), stale
    # a clone that is moved changes the commands of no stage
    own.experiment(lambda e: e["training"]["minillm"].update(steps=4), "own")
    clone.folder.rename(tmp_path / "elsewhere")
    (own.folder / "Snakefile").write_text(MODULE.format(clone=tmp_path / "elsewhere"))
    assert own.outputs("models") == []


def test_seeds_are_added_until_they_are_enough(tmp_path: Path) -> None:
    """Each look decides by the results in the user's folder, and its jobs are those of the module's rules."""
    clone = looking(tmp_path / "clone", WIDE, at_most=4)
    own = use(clone.folder, tmp_path / "own")
    shutil.copy(clone.folder / "gaps.json", own.folder)
    demo = ("--config", "experiment=small")
    shutil.copytree(clone.folder / "data", own.folder / "data", dirs_exist_ok=True)
    said = own.run("--quiet", "rules", *demo)
    assert "look after 3 training seeds: 0 of 1 differences decided" in said
    assert decisions(own) == {3: False} and reported(own) == seeds(own) == [1, 2, 3, 4]
    assert own.plan(*demo) == {}
    assert not (clone.folder / "results").exists()


def test_an_empty_folder_goes_from_the_demo_to_its_report(tmp_path: Path) -> None:
    """With the real stages, the experiment and its data from the clone, results here, and nothing left to do."""
    experiment = small_experiment()
    experiment["chains"] = [{"models": ["teacher", "student"], "methods": ["kd"]}]
    for other in ("assistant", "minillm"):
        experiment["models" if other == "assistant" else "training"].pop(other)
    experiment["data"] |= {
        "dev": {"demo": {"part": "dev", "rows": 8, "seed": 1}},
        "template": {"with_input": "{instruction}\n{input}\n", "without_input": "{instruction}\n"},
    }
    clone = tmp_path / "clone"
    copy_workflow(clone, experiment)
    (clone / "config/experiments/small.yaml").rename(clone / "config/experiments/demo.yaml")
    folder = tmp_path / "empty folder"
    folder.mkdir()
    (folder / "Snakefile").write_text(MODULE.partition("\n\n")[2].format(clone=clone))
    own, demo = Project(folder, "warm_runs"), ("--config", "experiment=demo")
    own.run("--quiet", "rules", *demo)
    assert "Nothing to be done" in own.run(*demo)
    own.run("--report", "report.zip", *demo)
    with zipfile.ZipFile(folder / "report.zip") as file:
        assert any(name.endswith("/report.html") for name in file.namelist())
    for page in ("index.html", "scores.csv"):
        assert (folder / "results/demo/report" / page).is_file(), page
    (card,) = folder.glob("results/demo/models/teacher-sft__student-kd/seed1/card.md")
    assert "from_pretrained" in card.read_text()
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} <= {
        *("Snakefile", "results", "logs", "report.zip", "benchmarks")
    }
    assert not (clone / "results").exists()


def test_a_module_without_the_package_is_refused(tmp_path: Path) -> None:
    clone = make_project(tmp_path / "clone", small_experiment())
    own = use(clone.folder, tmp_path / "own")
    shutil.rmtree(clone.folder / "src")
    assert "takd runs from a clone of its repository" in own.run("-n", check=False)
