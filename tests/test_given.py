"""Models that are there and are taken as they are: as a teacher and alone, from the data to the report."""

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import warm_python
from conftest import Project, made_once, small_experiment
from sealing import write_json

from takd.__main__ import main
from takd.data import demo
from takd.experiment import specs
from takd.experiment.experiment import load
from takd.model_cards import card
from takd.runtime.files import read_json
from takd.runtime.stage import Stage

RESULTS = Path("results/given")
BEFORE = Path("results/small/evaluations/student-sft/seed1/heldout")
AS_GIVEN = RESULTS / "evaluations/before-given/seed0/heldout"
TEMPLATE = "{instruction}\n"
TEMPLATES = {"with_input": "{instruction}\n{input}\n", "without_input": TEMPLATE}


def of_earlier_run(lineage: str, inner: str = "") -> dict[str, Any]:
    folder = f"results/small/models/{lineage}/seed1{inner}"
    return {"weights": {"folder": folder}, "trained": True}


def given_experiment() -> dict[str, Any]:
    """A teacher of an earlier run above a new student, and an earlier student alone."""
    experiment = small_experiment()
    experiment["data"]["template"] = TEMPLATES
    experiment["models"] = {
        "big": of_earlier_run("teacher-sft"),
        "small": experiment["models"]["student"],
        "before": of_earlier_run("student-sft", "/model"),
    }
    experiment["chains"] = [{"models": ["big", "small"], "methods": ["kd"]}, {"models": ["before"]}]
    experiment["seeds"] = [1, 2]
    return experiment


def alone_experiment() -> dict[str, Any]:
    """The earlier student and nothing else: no data to train on, no settings of trainings."""
    experiment = given_experiment()
    experiment["models"] = {"before": experiment["models"]["before"]}
    experiment["tokenizer"] = {"folder": "results/small/models/student-sft/seed1/model"}
    del experiment["training"], experiment["data"]["train"], experiment["data"]["dev"]
    return experiment | {"chains": [{"models": ["before"]}]}


def run_given(folder: Path, finished: Project) -> None:
    """Run both with real stages beside the results of the earlier run."""
    project = finished.copy(folder)
    for name, experiment in (("given", given_experiment()), ("alone", alone_experiment())):
        (folder / f"config/experiments/{name}.yaml").write_text(json.dumps(experiment))
        project.run("--quiet", "rules", "--config", f"experiment={name}")


@pytest.fixture(scope="module")
def given(forked: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = made_once(tmp_path_factory, "given", lambda folder: run_given(folder, forked))
    return Project(folder, "warm_runs")


def rows(project: Project, name: str, experiment: str = "given") -> list[dict[str, str]]:
    with open(project.folder / f"results/{experiment}/report" / name, newline="") as file:
        return list(csv.DictReader(file))


def plan(project: Project, *arguments: str, name: str = "given") -> dict[str, int]:
    return project.plan(*arguments, "--config", f"experiment={name}")


def test_no_training_of_them_is_planned(given: Project) -> None:
    jobs = plan(given, "--forceall")
    assert jobs["given"] == 2 and jobs["base"] == 1
    assert jobs["sft"] == jobs["distill_kd"] == 2 and "teacher" not in jobs
    assert jobs["evaluate"] == jobs["likelihoods"] == jobs["card"] == 6
    alone = plan(given, "--forceall", name="alone")
    assert not {"sft", "teacher", "base"} & alone.keys() and alone["given"] == 1
    assert plan(given) == plan(given, name="alone") == {}


def test_they_stand_in_the_table_with_the_scores_that_they_had(given: Project) -> None:
    found = {row["lineage"]: row for row in rows(given, "results.csv")}
    roles = {lineage: row["role"] for lineage, row in found.items()}
    assert roles == {
        "big-given": "teacher",
        "before-given": "given",
        "small-sft": "baseline",
        "big-given__small-kd": "student",
    }
    for lineage in ("big-given", "before-given"):
        row = found[lineage]
        assert (row["training_seeds"], row["n_training_seeds"], row["methods"]) == (
            "",
            "0",
            "given",
        )
        assert (row["steps"], row["training_minutes"]) == ("0", "0")
        assert row["rougeL_low"] == row["rougeL_prompts_low"] != ""
    assert found["big-given__small-kd"]["n_training_seeds"] == "2"
    # the same weights, prompts and seeds give the same responses as in the earlier run
    for file in ("generations.jsonl", "answers.jsonl"):
        assert (given.folder / AS_GIVEN / file).read_bytes() == (
            given.folder / BEFORE / file
        ).read_bytes()
    before = read_json(given.folder / BEFORE / "scores.json")["scores"]["rougeL"]["mean"]
    assert float(found["before-given"]["rougeL"]) == pytest.approx(before, abs=1e-4)


def test_one_set_of_weights_is_compared_with_all_training_seeds(given: Project) -> None:
    found = [row for row in rows(given, "differences.csv") if row["question"] == "given"]
    pairs = {(row["ours"], row["theirs"]) for row in found}
    assert pairs == {(name, "before-given") for name in ("small-sft", "big-given__small-kd")}
    scores = {row["lineage"]: row for row in rows(given, "results.csv")}
    for row in (row for row in found if not row["stratum"]):
        assert row["n_training_seeds"] == "2" and row["family"] == "2"
        if row["measure"] == "rougeL":
            for seed in "12":
                of_seed = float(scores[row["ours"]][f"rougeL_seed_{seed}"])
                gap = of_seed - float(scores["before-given"]["rougeL"])
                assert float(row[f"difference_seed_{seed}"]) == pytest.approx(gap, abs=2e-4)


def test_they_cost_no_training(given: Project) -> None:
    stages = {(row["lineage"], row["stage"]) for row in rows(given, "costs.csv")}
    for lineage in ("big-given", "before-given"):
        assert (lineage, "training") not in stages and (lineage, "evaluation, answers") in stages
    assert {row["training_seeds"] for row in rows(given, "costs.csv")} == {"0", "2"}
    cost = {row["lineage"]: row for row in rows(given, "quality.csv")}
    assert float(cost["big-given"]["hours"]) == float(cost["before-given"]["trainings"]) == 0
    # the student's own training and its start; none of its teacher
    assert cost["big-given__small-kd"]["trainings"] == "1"


def test_the_card_of_a_published_model_names_no_earlier_training(
    given: Project, tmp_path: Path
) -> None:
    project = given.copy(tmp_path / "project")
    results = project.folder / RESULTS
    folder = results / "models/before-given/seed0"
    manifest = read_json(folder / "manifest.json")
    del manifest["origin"]
    write_json(folder / "manifest.json", manifest)
    experiment = load(project.folder / "config/experiments/given.yaml", project.folder)
    inputs = {name: [results / name] for name in ("models", "evaluations")}
    spec = specs.card(experiment, "before-given", 0)
    card.run(Stage(spec, "", inputs, {"card": folder / "card.md"}))
    assert "it was evaluated here, not trained.\n" in (folder / "card.md").read_text()


def test_pages_and_cards_say_that_they_were_not_trained_here(given: Project) -> None:
    report = given.folder / RESULTS / "report"
    for page in ("index", "results", "costs", "provenance", "generations"):
        assert "As given: before" in (report / f"{page}.html").read_text(), page
    provenance = (report / "provenance.html").read_text()
    assert "trained before as teacher-sft, seed 1" in provenance
    tree = (report / "results.html").read_text()
    assert tree.count("one set of weights stands beside") == 1
    card = (given.folder / RESULTS / "models/before-given/seed0/card.md").read_text()
    assert "it was evaluated here, not trained" in card and "`student-sft`, training seed 1" in card
    assert (
        "## Training" not in card and "training of another" not in card and "hf upload" not in card
    )
    taught = (given.folder / RESULTS / "models/big-given__small-kd/seed2/card.md").read_text()
    assert "not trained here" in taught and "## Training" in taught
    alone = given.folder / "results/alone/report"
    assert "No model was trained here." in (alone / "learning.html").read_text()
    assert not (alone / "learning.svg").exists()
    assert [row["lineage"] for row in rows(given, "results.csv", "alone")] == ["before-given"]


def test_only_other_weights_evaluate_it_again(given: Project, tmp_path: Path) -> None:
    project = given.copy(tmp_path / "project")
    path = project.folder / "config/experiments/given.yaml"

    def edited(**changes: Any) -> dict[str, int]:
        experiment = given_experiment()
        experiment["training"]["kd"] |= changes.get("kd", {})
        experiment["models"]["before"] = changes.get("before", experiment["models"]["before"])
        path.write_text(json.dumps(experiment))
        return plan(project)

    scored = ("evaluate", "likelihoods", "card")
    assert edited(kd={"batch_size": 2}) == {
        "distill_kd": 2,
        **dict.fromkeys(scored, 2),
        "report": 1,
    }
    other = of_earlier_run("teacher-sft__student-minillm")
    assert edited(before=other) == {"given": 1, **dict.fromkeys(scored, 1), "report": 1}
    shutil.copytree(
        project.folder / "results/small/models/student-sft/seed1/model", tmp_path / "moved"
    )
    moved = {"weights": {"folder": str(tmp_path / "moved")}, "trained": True}
    # the report names the folder
    assert edited(before=moved) == {"card": 1, "report": 1}


def test_a_damaged_model_is_noticed(given: Project) -> None:
    assert main(["verify", str(given.folder / RESULTS)]) == 0


@pytest.fixture
def own(given: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments that evaluate the earlier student as the earlier run did, on a file with other columns."""
    monkeypatch.setattr(sys, "executable", warm_python.stand_in("warm_snakemake"))
    monkeypatch.setenv(warm_python.EXECUTABLE, warm_python.stand_in("warm_runs"))
    monkeypatch.chdir(tmp_path)
    asked = demo.rows(part="test", rows=8, seed=1)
    lines = [{"question": text, "context": more, "answer": said} for text, more, said in asked]
    Path("held.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = given.folder / "results/small/models/student-sft/seed1"
    return [
        *("evaluate", "--model", str(model), "--data", "held.jsonl", "--output", "out"),
        *("--columns", "instruction=question", "input=context", "output=answer"),
        *("--template", TEMPLATE, "--template-with-input", TEMPLATES["with_input"]),
        *("--seeds", "10", "20", "--max-prompt-length", "48", "--max-new-tokens", "16"),
    ]


def test_a_model_is_evaluated_without_an_experiment(
    own: list[str], given: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*own, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads(Path("out/results.json").read_text())
    assert written["scores"] == printed and written["decoding_seeds"] == [10, 20]
    found = {row["measure"]: row for row in printed}
    folder = given.folder / BEFORE
    before = read_json(folder / "scores.json")["scores"]
    for measure in ("rougeL", "exact_match"):
        assert (
            found[measure]["value"] == before[measure]["mean"] and found[measure]["n_prompts"] == 8
        )
        assert found[measure]["low"] <= found[measure]["value"] <= found[measure]["high"]
    loss = read_json(folder / "likelihoods/likelihoods.json")["references"]["loss"]
    assert loss in [row["value"] for row in printed]
    with open("out/results.csv", newline="") as file:
        assert [row["measure"] for row in csv.DictReader(file)] == list(found)
    # a second time nothing runs, and what is lost is made again
    files = {path: path.stat().st_mtime_ns for path in Path("out/results").rglob("*.json*")}
    (lost,) = [path for path in files if path.name == "likelihoods.json"]
    lost.unlink()
    assert main(own) == 0
    assert "ROUGE-L" in capsys.readouterr().out
    again = {path for path, time in files.items() if path.stat().st_mtime_ns != time}
    assert again == {path for path in files if path.parent == lost.parent}
    assert main(["verify", "out/results"]) == 0
    # other settings make only what they concern
    assert main([*own, "--temperature", "0.5"]) == 0
    changed = {path for path, time in files.items() if path.stat().st_mtime_ns != time}
    assert changed and all("evaluations" in path.parts for path in changed)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--model", "nowhere"], "--model nowhere: holds no model"),
        (["--data", "nothing.jsonl"], "--data nothing.jsonl: nothing.jsonl does not exist"),
        (["--columns", "output"], "--columns output=: must be"),
        (["--template", "no field"], "--template 'no field': must be a name"),
        (["--answer", "[0-9]+"], "answer.pattern has 0 groups, but it must have one"),
        (["--system", "Be brief."], "data.system only goes with `template: chat`"),
        (["--max-new-tokens", "999"], "reads 64 tokens; --max-prompt-length 48 and"),
        (
            ["--temperature", "0"],
            "evaluation.decoding.temperature is 0.0, but must be greater than 0",
        ),
        (["--seeds", "10", "10"], "evaluation.seeds holds 10 twice"),
        (["--greedy"], "evaluation.seeds has 2 entries, but greedy decoding"),
        (["--greedy", "--top-p", "0.9"], "--top-p is for sampling, but --greedy takes"),
        (["--data", "held.jsonl", "held.jsonl"], "two sets are called held"),
    ],
)
def test_bad_options_end_in_one_sentence(
    own: list[str], more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*own, *more]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ") and sentence in line


def test_pickled_weights_are_not_read(own: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("pickled").mkdir()
    shutil.copy(f"{own[2]}/model/config.json", "pickled/config.json")
    Path("pickled/pytorch_model.bin").write_bytes(b"\x80\x04")
    assert main([*own, "--model", "pickled"]) == 1
    assert "holds no whole safetensors; convert its weights" in capsys.readouterr().err


def test_results_as_the_harness_writes_them(given: Project, tmp_path: Path) -> None:
    arguments = ["export", str(given.folder / RESULTS), "--samples", "--output", str(tmp_path)]
    assert main(arguments) == 0
    first = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    assert main(arguments) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == first
    folders = {path.name for path in tmp_path.iterdir()}
    assert (
        "before-given" in folders and "big-given__small-kd__seed2" in folders and len(folders) == 6
    )
    table = {
        (row["lineage"], row["seed"], row["measure"]): float(
            row["value"]
        )  # no seed of what is given
        for row in rows(given, "scores.csv")
        if not row["decoding_seed"]
    }
    for path in tmp_path.glob("*/results_*.json"):
        found = read_json(path)
        name, _, seed = path.parent.name.rpartition("__seed")
        key = (name, seed) if seed.isdecimal() else (path.parent.name, "")
        scores = {
            metric.partition(",")[0]: value
            for metric, value in found["results"]["heldout"].items()
            if "_stderr" not in metric and metric != "alias"
        }
        assert scores == {k[2]: value for k, value in table.items() if k[:2] == key}
        assert found["n-samples"]["heldout"] == {"original": 8, "effective": 8}
        assert found["higher_is_better"]["heldout"]["rougeL"] is True
        assert found["n-shot"] == {"heldout": 0} and found["configs"]["heldout"]["repeats"] == 2
        (samples,) = path.parent.glob("samples_heldout_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        mean = sum(line["rougeL"] for line in lines) / len(lines)
        assert mean == pytest.approx(scores["rougeL"]) and len(lines[0]["resps"][0]) == 2


def test_a_folder_without_results_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path)]) == 1
    assert "holds no evaluation" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--config", "data=here"]) == 1
    assert "--config goes with an experiment" in capsys.readouterr().err
