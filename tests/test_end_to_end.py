"""A small experiment really run, from the data to the report: twice the same, and its report in a browser."""

import csv
import json
import zipfile
from pathlib import Path

import pytest
from browser import browser, faults, read_site, visit
from conftest import Project, really

from takd.report.pages import NAV

RESULTS = Path("results/small")
TIMED = ("training_minutes",)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run in which one stage of each kind is a new process, and all that the last model takes."""
    project = really(tmp_path_factory.mktemp("real") / "project")
    quiet = ("--quiet", "rules")
    first = [f"{RESULTS}/{name}/manifest.json" for name in ("base/student", "data/heldout")]
    project.run(*first, *quiet)
    above = [
        f"{RESULTS}/{file}"
        for name in ("teacher", "student")
        for file in (
            f"models/{name}-sft/seed1/card.md",
            f"evaluations/{name}-sft/seed1/heldout/likelihoods/likelihoods.json",
        )
    ]
    Project(project.folder, "warm_runs").run(*above, *quiet)
    project.run(*quiet)
    return project


def table(project: Project) -> list[dict[str, str]]:
    """The table of results without what a clock says."""
    with open(project.folder / RESULTS / "report/results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


def test_the_same_experiment_gives_the_same_table(real: Project, forked: Project) -> None:
    """To the last digit; and the same weights, answers, scores and figure, byte for byte.

    Once the stages are new processes, once they are forked from one with all imports.
    """
    again = forked
    assert len(table(real)) == 3 and table(again) == table(real)
    found = [
        *(real.folder / RESULTS).glob("models/**/*.safetensors"),
        *(real.folder / RESULTS).glob("evaluations/**/*.json*"),
        *(real.folder / RESULTS / "report" / name for name in SAME),
    ]
    compared = [path.relative_to(real.folder) for path in found if path.name != "metrics.jsonl"]
    # weights of three models and of two starts; five files of each evaluation
    assert len(compared) == 5 + 3 * 5 + len(SAME)
    for path in compared:
        assert (again.folder / path).read_bytes() == (real.folder / path).read_bytes(), path


def test_every_log_ends_with_the_code_that_wrote_it(real: Project) -> None:
    logs = [*(real.folder / RESULTS).glob("[!d]*/**/metrics.jsonl")]  # without those of the data
    last = {log: json.loads(log.read_text().splitlines()[-1]) for log in logs}
    ends = list(last.values())
    assert len(ends) == 3 * 3  # of a training, its answers and its likelihoods
    # the copied workflow is in no repository, and that of these is the copy
    new = [end["commit"] for log, end in last.items() if "teacher-sft__student-minillm" in str(log)]
    assert new == [None] * 3
    models = [
        json.loads(path.read_text())
        for path in (real.folder / RESULTS / "models").glob("**/manifest.json")
    ]
    assert {end["code"] for end in ends} > {model["code"] for model in models}
    page = (real.folder / RESULTS / "report/provenance.html").read_text()
    assert all(f">{end['code']}</td>" in page for end in ends)


SAME = (
    "differences.csv",
    "scores.csv",
    "scores.parquet",
    "forest.svg",
    "generations.html",
)


def test_its_report_in_a_browser(real: Project, tmp_path: Path) -> None:
    real.run("--report", "report.zip")
    zipfile.ZipFile(real.folder / "report.zip").extractall(tmp_path)
    (start,) = tmp_path.rglob("report.html")
    opened: dict[str, str] = {}
    with browser() as chromium:
        seen = visit(chromium, start, lambda page: opened.update(read_site(page, NAV)))
        assert (seen.external, seen.complaints) == ([], [])
        scores = real.folder / RESULTS / "evaluations/teacher-sft/seed1/heldout/scores.json"
        mean = json.loads(scores.read_text())["scores"]["rougeL"]["mean"]
        assert f"{mean:.1f}" in opened["results.html"] and "Small" in opened["index.html"]
        (index,) = tmp_path.rglob("data/raw/*/index.html")
        for path in [*index.parent.glob("*.html"), next(index.parent.glob("models/*.html"))]:
            for width in (1280, 390):
                found: list[str] = []
                seen = visit(chromium, path, lambda page, to=found: to.extend(faults(page)), width)
                assert (seen.external, seen.complaints, found) == ([], [], []), (path.name, width)
