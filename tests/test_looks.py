"""Training seeds that are added until each question is decided, through Snakemake, with made-up scores."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import Project, make_project, small_experiment

from takd import __main__ as takd
from takd.experiment.experiment import load
from takd.runtime.records import read_record
from takd.watching.stages import places

# As conftest's stages, but an evaluation has the scores of `gaps.json`: distilled minus supervised, by training seed.
FAKES = """
import json
from pathlib import Path

from takd.runtime import records

OF = {"method": "model", "weights": "base", "split": "data"}


def lines(path, rows):
    before = "".join(json.dumps(row) + "\\n" for row in rows[:-1])
    digest = records.closing_digest(before.encode(), rows[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(before + json.dumps({**rows[-1], "digest": digest}) + "\\n")


def run(stage):
    if "decision" in stage.outputs:
        from takd.analysis import look

        return look.run(stage)
    stage.say("done")
    spec = stage.spec
    for name, path in stage.outputs.items():
        if not path.suffix:
            (stage.temporary(path) / "weights").write_text(json.dumps(spec))
            stage.commit(path)
        elif path.name == "metrics.jsonl":
            lines(path, [{"kind": "end", "step": 4, "seconds": 1.0, "tokens": 9, "device": "cpu", "processes": 1}])
        elif path.name == "generations.jsonl":
            gap = json.loads(Path("gaps.json").read_text())[str(spec["seed"])]
            gap = gap if "__" in spec["lineage"] else 0.0
            rows = [
                {"id": i, "outputs": [{"seed": s, "rougeL": 40 + i + gap, "exact_match": 10.0} for s in spec["seeds"]]}
                for i in range(20)
            ]
            path.write_text("".join(json.dumps(row) + "\\n" for row in rows))
        elif path.name not in records.RECORDS:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    for path in stage.outputs.values():
        if path.name == "manifest.json":
            kinds = [kind for key, kind in OF.items() if key in spec]
            sizes = {"teacher": 9, "student": 5}
            stage.write_manifest(
                path, kind=(kinds or ["tokenizer"])[0], parameters=sizes.get(spec.get("model")), weights={}
            )
        elif path.name in records.RECORDS:
            facts = {"decoding": spec.get("decoding"), "decoding_seeds": spec.get("seeds")}
            stage.write_record(path, spec=spec, **facts, rouge_tokenizer="standard")
"""
EQUAL, APART = [0.1, -0.1, 0.0, 0.1, -0.1], [5.1, 4.9, 5.0, 5.1, 4.9]
WIDE, LATE = [6.0, -6.0, 5.0, -5.0, 0.0], [4.0, 1.0, 5.0, 3.0, 3.0]


def with_gaps(project: Project, gaps: list[float]) -> None:
    file = project.folder / "gaps.json"
    file.write_text(json.dumps({str(seed): gap for seed, gap in enumerate(gaps, 1)}))


def looking(folder: Path, gaps: list[float], **until: Any) -> Project:
    experiment = small_experiment()
    experiment["chains"] = [{"models": ["teacher", "student"], "methods": ["kd"]}]
    del experiment["models"]["assistant"], experiment["training"]["minillm"]
    experiment["seeds"] = {"until": {"difference": 1.0, "at_most": 5, **until}}
    project = make_project(folder, experiment)
    (folder / "fakes.py").write_text(FAKES)
    with_gaps(project, gaps)
    return project


def seeds(project: Project) -> list[int]:
    """Training seeds of the distilled student that are there."""
    folder = project.folder / "results/small/models/teacher-sft__student-kd"
    return sorted(int(path.name.removeprefix("seed")) for path in folder.glob("seed*"))


def reported(project: Project) -> list[int]:
    """Training seeds that the report was made of."""
    return json.loads((project.folder / "results/small/report/weights").read_text())["seeds"]


def decisions(project: Project) -> dict[int, bool]:
    found = (project.folder / "results/small/looks").glob("seeds*/decision.json")
    return {
        int(path.parent.name.removeprefix("seeds")): read_record(path)["decided"] for path in found
    }


def test_a_run_stops_at_the_first_look_that_decides(tmp_path, monkeypatch, capsys):
    project = looking(tmp_path / "project", APART)
    # before the first look nobody knows more than the first three seeds
    planned = [" ".join(line.split()) for line in project.run("--dry-run").splitlines()]
    assert "1 look is not there yet" in planned
    assert sum(line.startswith("kd: teacher → student, seed") for line in planned) == 3
    (said,) = (line for line in planned if line.startswith("After 3 training seeds the job `look`"))
    assert "one more seed is trained" in said
    project.run("--quiet", "rules")
    assert seeds(project) == reported(project) == [1, 2, 3] and decisions(project) == {3: True}
    assert project.plan() == {}
    (project.folder / "results/small/report/index.html").write_text("<p>after three seeds</p>")
    project.run("--report", "report.zip")
    with zipfile.ZipFile(project.folder / "report.zip") as site:
        pages = [name for name in site.namelist() if name.endswith("/index.html")]
        assert [site.read(name) for name in pages] == [b"<p>after three seeds</p>"]
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(takd, "ROOT", project.folder)
    experiment = load(project.folder / "config/experiments/small.yaml", project.folder)
    names = {place.name for place in places(experiment)}
    assert "after 3 training seeds" in names and not any("seed 4" in name for name in names)
    # 20 prompts without spread, seeds that differ by 0.1 points
    assert takd.main(["power", "small", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["questions"]
    assert row["question"] == "sft" and row["value"] == pytest.approx(5.0)
    assert row["sd_seeds"] == pytest.approx(0.1) and row["seeds_needed"] == 3
    assert found["seeds"] == 3 and found["prompts"] == 20 and row["told"] < 1.0
    assert takd.main(["power", "small", "--set", "other"]) == 1
    assert "--set other: is not an evaluation set; there are heldout." in capsys.readouterr().err
    # a folder of results, without its experiment
    assert takd.main(["power", "results/small", "--difference", "0.2"]) == 0
    printed = capsys.readouterr().out
    (line,) = (line for line in printed.splitlines() if "KD: teacher → student" in line)
    assert "SFT: student" in line and "0.10 (0.05 to 0.63)" in line


@pytest.mark.usefixtures("warm_plans")
def test_a_plan_says_what_is_needed_at_least_and_at_most(tmp_path, monkeypatch, capsys):
    project = looking(tmp_path / "project", APART)
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(takd, "ROOT", project.folder)
    assert takd.main(["plan", "--experiment", "small", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (line,) = (line for line in found["stages"] if line["stage"].startswith("distill_kd"))
    assert line["jobs"] == 5 and found["at_least"]["seeds"] == 3
    least, most = (
        int(re.search(r"(\d+) jobs", text)[1])
        for text in (found["at_least"]["headline"], found["headline"].partition("At most")[2])
    )
    # of each seed a student and its baseline: trained, scored twice, and their cards
    assert most - least == 2 * 2 * 4


def test_a_run_goes_on_until_the_bound_and_follows_changed_decisions(tmp_path):
    project = looking(tmp_path / "project", WIDE)
    # seeds on the command line are trained without looking
    assert project.plan("--config", "seeds=2")["distill_kd"] == 2
    project.run("--quiet", "rules", "--config", "seeds=3")
    assert reported(project) == [1, 2, 3] and decisions(project) == {}
    # the looks take what is there
    planned = project.plan()
    assert planned["look"] == 1 and "distill_kd" not in planned
    project.run("--quiet", "rules")
    assert seeds(project) == reported(project) == [1, 2, 3, 4, 5]
    assert decisions(project) == {3: False, 4: False} and project.plan() == {}
    # another difference asks the looks again, and the report is that of the first three seeds; nothing is trained
    project.experiment(lambda settings: settings["seeds"]["until"].update(difference=90.0))
    assert project.plan() == {"look": 1, "report": 1}
    printed = project.run("--quiet", "rules")
    assert "look after 3 training seeds: 1 of 1 differences decided" in printed
    assert reported(project) == [1, 2, 3] and decisions(project)[3] is True
    assert project.plan() == {}
    # and back
    project.experiment(lambda settings: settings["seeds"]["until"].update(difference=1.0))
    project.run("--quiet", "rules")
    assert reported(project) == [1, 2, 3, 4, 5] and project.plan() == {}
