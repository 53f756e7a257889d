"""Several experiments side by side, on made results: what is tested and significant, and when it is made again."""

import csv
import html
import io
import json
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import test_report
from browser import browser, visit
from conftest import Project
from sealing import write_json, write_lines
from test_report import BY_KD, DIRECT, STUDY, THROUGH
from test_staleness import touch

from takd.analysis import compare_settings
from takd.analysis.across_experiments import SAME, Comparison, read_all
from takd.analysis.across_experiments import compare as compare_scores
from takd.analysis.results import Model
from takd.analysis.statistics import holm
from takd.analysis.table import Number
from takd.experiment import comparison
from takd.experiment import experiment as experiments
from takd.experiment.labels import full_text
from takd.experiment.lineage import Node, of_chain
from takd.report import compare
from takd.report.figures import curves
from takd.runtime.errors import InputError
from takd.runtime.files import read_json
from takd.runtime.stage import Stage

SETTINGS: dict[str, Any] = {
    "title": "left out",
    "training": {"minillm": {"teacher_mix": 0.2, "steps": 900}},
    "seeds": [1, 2],
    "data": {
        "train": {"json": "train.jsonl"},
        "dev": {"json": "dev.jsonl"},
        "corpus": None,
        "template": "<script>alert(1)</script>{instruction}",
    },
}
MIXING = {"training": {"minillm": {"teacher_mix": 0.5, "steps": 900}}}
PROMPTS = 24
STUDENT, DEEP = of_chain(*DIRECT[1:]), of_chain(*THROUGH[1:])
Shift = Callable[[str, int, int], float]


def nothing(lineage: str, row: int, draw: int) -> float:
    return 0.0


def better(lineage: str, row: int, draw: int) -> float:
    """The student of the assistant gains 6 points on average; all others are the same models."""
    return 6 + 3 * ((row + draw) % 3 - 1) if lineage == DEEP else 0.0


def noisy(lineage: str, row: int, draw: int) -> float:
    """The student of the assistant answers otherwise, and 0.25 better on average: far less than it varies."""
    return (4 if row % 2 else -4) + 0.25 if lineage == DEEP else 0.0


def made(
    root: Path,
    name: str,
    chains: Any = (DIRECT, THROUGH),
    shift: Shift = nothing,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write the results of an experiment, its scores moved by `shift`; returns its part of the stage's settings."""
    folder = root / name
    spec = test_report.make(folder, list(chains), **({"seeds": (1, 2)} | options))
    for lineage, seed in spec["nodes"]:
        at = f"{lineage}/seed{seed}"
        moves = [shift(lineage, row, draw) for row in range(PROMPTS) for draw in range(2)]
        # a model whose answers stay as they are has the same weights
        weights = f"{zlib.crc32(f'{at} {moves if any(moves) else None}'.encode()):064x}"
        manifest = folder / "models" / at / "manifest.json"
        write_json(manifest, read_json(manifest) | {"weights": {"model": weights}})
        for set_name in spec["sets"]:
            answer(folder / "evaluations" / at / set_name, lineage, seed, shift)
    for data in ("train", "dev", *spec["sets"], "tokenizer"):
        facts = {"sha256": "a" * 64, "counts": {"kept": 990}, "code": "c" * 16}
        write_json(folder / "data" / data / "manifest.json", facts)
    for model in spec["models"]:
        facts = {"files": {"model.safetensors": model}, "code": "d" * 16}
        write_json(folder / "base" / model / "manifest.json", facts)
    return {
        "name": name,
        "report": spec,
        "settings": SETTINGS | (settings or {}),
        "made": {f"{lineage}/seed{seed}": comparison.made({}) for lineage, seed in spec["nodes"]},
        "content": None,
    }


def answer(folder: Path, lineage: str, seed: int, shift: Shift) -> None:
    """More prompts than `make` has, enough for a test to tell a difference."""
    scores = read_json(folder / "scores.json")
    mean = scores["scores"]["rougeL"]["mean"] + zlib.crc32(f"{lineage} {seed}".encode()) % 9 / 10
    rows = [
        {"id": row, "instruction": "Do it", "input": "", "references": ["it"], "outputs": [
            {"seed": draw_seed, "text": "it", "tokens": 2, "finished": True, "exact_match": 50.0,
             "rougeL": mean + row % 7 - 3 + shift(lineage, row, draw)}
            for draw, draw_seed in enumerate(scores["decoding_seeds"])]}
        for row in range(PROMPTS)
    ]  # fmt: skip
    write_lines(folder / "generations.jsonl", rows)


def edit(root: Path, change: dict[str, Any], pattern: str) -> None:
    """Change all files of made results whose path has a pattern."""
    found = sorted(root.glob(pattern))
    assert found
    for file in found:
        write_json(file, read_json(file) | change)


def compared(root: Path, *specs: dict[str, Any]) -> Comparison:
    folders = [root / each["name"] for each in specs]
    return compare_scores(read_all({"experiments": list(specs)}, folders))


def run(root: Path, *specs: dict[str, Any]) -> Path:
    """Run the stage as the rule does; the folder of its outputs."""
    outputs = {name: root / "out" / part.file for name, part in comparison.PARTS.items()}
    inputs = {"results": [root / each["name"] for each in specs]}
    compare.run(Stage({"experiments": list(specs)}, "", inputs, outputs))
    return root / "out"


def three_experiments(root: Path) -> list[dict[str, Any]]:
    """A first one, one with a change that matters, one with other chains and one training seed."""
    return [
        made(root, "before"),
        made(root, "more-mixing", shift=better, settings=MIXING),
        made(root, "other", [DIRECT, BY_KD], noisy, {"seeds": [1]}, seeds=(1,)),
    ]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("three")
    specs = three_experiments(root)
    return SimpleNamespace(root=root, specs=specs, out=run(root, *specs))


def rows(path: Path, **wanted: str) -> list[dict[str, str]]:
    found = csv.DictReader(io.StringIO(path.read_text()))
    return [row for row in found if all(row[key] == value for key, value in wanted.items())]


def test_a_difference_has_its_test(three: SimpleNamespace) -> None:
    table = three.out / "comparison.csv"
    (before,) = rows(table, lineage=DEEP, measure="rougeL", experiment="before")
    (after,) = rows(table, lineage=DEEP, measure="rougeL", experiment="more-mixing")
    assert float(after["value"]) - float(before["value"]) == pytest.approx(6, abs=1e-3)
    # 3, 6 and 9 points by turns, averaged over two draws: a mean of 6 over prompts
    assert after["difference"] == "6" and after["significant"] == "higher"
    assert float(after["difference_low"]) > 5 and float(after["p (Holm)"]) < 0.001
    assert after["difference_n_training_seeds"] == "2" and before["difference"] == ""
    page = (three.out / "comparison.html").read_text()
    cells = row_of(page, f'data-lineage="{DEEP}"')
    assert cells[-2].startswith("+6.0 +5.") and cells[-2].endswith("significant, p < 0.001")
    assert row_of(page, "more-mixing")[-2:] == ["training.minillm.teacher_mix", "none"]


def row_of(page: str, start: str) -> list[str]:
    """Texts of the cells of the first row of a table that has a text."""
    row = next(row for row in page.split("<tr")[1:] if start in row).split("</tr>")[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)
    return [" ".join(html.unescape(re.sub(r"<[^>]+>", " ", cell)).split()) for cell in cells]


def test_a_difference_within_its_noise_is_not_significant(tmp_path: Path) -> None:
    specs = [made(tmp_path, "before"), made(tmp_path, "after", shift=noisy)]
    found = compared(tmp_path, *specs).outcomes["heldout", DEEP, 1]
    assert isinstance(found, Number) and found.value == pytest.approx(0.25)
    assert not found.significant and found.verdict == "n.s."
    page = (run(tmp_path, *specs) / "comparison.html").read_text()
    assert row_of(page, ">after")[-2:] == ["none", "none"]
    # in the table and in both forms of the figure
    assert page.count("n.s., p") >= 2 and "significant, p" not in page
    assert page.count(">same model</td>") == 5


def test_equal_models_are_not_tested(three: SimpleNamespace) -> None:
    """They would only make the family larger, and the correction harsher."""
    comparison = compared(three.root, *three.specs)
    assert comparison.outcomes["heldout", STUDENT, 1] == SAME
    assert comparison.tests("heldout") == 1
    # equal answers of other weights are a matter for the test
    copy = {**three.specs[0], "name": "copy"}
    shutil.copytree(three.root / "before", three.root / "copy")
    edit(three.root, {"weights": {"model": "f" * 64}}, f"copy/models/{STUDENT}/seed2/manifest.json")
    found = compared(three.root, three.specs[0], copy).outcomes["heldout", STUDENT, 1]
    assert isinstance(found, Number) and found.p == 1.0


def test_all_tests_on_a_set_are_one_family(tmp_path: Path) -> None:
    first, noise = made(tmp_path, "before"), made(tmp_path, "noise", shift=noisy)
    gain = made(tmp_path, "gain", shift=better)
    alone = [compared(tmp_path, first, each).outcomes["heldout", DEEP, 1] for each in (noise, gain)]
    both = compared(tmp_path, first, noise, gain)
    assert both.tests("heldout") == 2
    together = [both.outcomes["heldout", DEEP, n] for n in (1, 2)]
    assert all(isinstance(found, Number) and found.prompts_p for found in (*alone, *together))
    assert [found.prompts_p for found in together] == holm(found.prompts_p for found in alone)  # type: ignore


def test_only_seeds_that_both_have_are_paired(tmp_path: Path) -> None:
    def by_draw(lineage: str, row: int, draw: int) -> float:
        return 5.0 + row % 2 if draw == 0 else -100.0

    first = made(tmp_path, "before", decoding_seeds=(10, 20))
    other = made(tmp_path, "after", shift=by_draw, seeds=(2, 3), decoding_seeds=(20, 30))
    outcomes = compared(tmp_path, first, other).against("heldout", 1)
    found = outcomes[STUDENT]
    # of both, decoding seed 20 and training seed 2
    assert (
        isinstance(found, Number)
        and found.n_training_seeds == 1
        and found.value == pytest.approx(5.5)
    )
    # the teacher at the head is trained with the first seed alone, and those differ
    assert outcomes["teacher-sft"] == "the two have no training seed in common"
    apart = made(tmp_path, "apart", decoding_seeds=(30, 40))
    reasons = compared(tmp_path, first, apart).reasons("heldout")
    assert list(reasons) == ["apart: the two have no decoding seed in common"]


RECORD = {"sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "no_repeat_ngram": 6}
REFUSED = {
    "other data": (
        {"sha256": "b" * 64},
        "data/heldout/manifest.json",
        "are not the same (sha256 aaaaaaaaaaaa in before, bbbbbbbbbbbb in after)",
    ),
    "other decoding": (
        {"decoding": RECORD | {"temperature": 0.7}},
        "evaluations/*/*/heldout/scores.json",
        "responses are decoded in another way (temperature 1.0 and 0.7)",
    ),
    "other tokens": (
        {"rouge_tokenizer": "unicode"},
        "evaluations/*/*/heldout/scores.json",
        "ROUGE-L of heldout has other tokens (standard and unicode)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_pair_is_not_tested(name: str, tmp_path: Path) -> None:
    change, pattern, reason = REFUSED[name]
    specs = [made(tmp_path, "before"), made(tmp_path, "after", shift=better)]
    edit(tmp_path, change, f"after/{pattern}")
    comparison = compared(tmp_path, *specs)
    assert comparison.tests("heldout") == 0 and len(comparison.against("heldout", 1)) == 6
    assert all(reason in str(outcome) for outcome in comparison.outcomes.values())
    out = run(tmp_path, *specs)
    assert reason in (out / "comparison.html").read_text()
    (row,) = rows(out / "comparison.csv", lineage=DEEP, measure="rougeL", experiment="after")
    assert (
        reason in row["not_tested"]
        and row["difference"] == row["p (Holm)"] == row["significant"] == ""
    )
    assert float(row["value"]) > 0 and float(row["value_low"]) > 0


def test_other_prompts_of_equal_data_are_not_paired(tmp_path: Path) -> None:
    specs = [made(tmp_path, "before"), made(tmp_path, "after", shift=better)]
    for file in tmp_path.glob("after/evaluations/*/*/heldout/generations.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        write_lines(file, [*rows[1:], rows[0]])
    reasons = compared(tmp_path, *specs).reasons("heldout")
    assert list(reasons) == ["after: other prompts of heldout were answered"]


def test_settings_that_differ_are_listed_by_key(three: SimpleNamespace) -> None:
    found = read_all({"experiments": three.specs}, [three.root / e["name"] for e in three.specs])
    lines = {line.what: line.values for line in compare_settings.settings(found)}
    assert lines == {
        "training.minillm.teacher_mix": ["0.2", "0.5", "0.2"],
        "seeds": ["[1, 2]", "[1, 2]", "[1]"],
        f"chain {full_text(DEEP)}": ["trained", "trained", None],
        f"chain {full_text(of_chain(*BY_KD[1:]))}": [None, None, "trained"],
    }
    assert not any(line.differs for line in compare_settings.origins(found))


CHANGES = {
    "code": ({"code": "e" * 16}, f"models/{DEEP}/seed1/manifest.json", "code (training by minillm)"),
    "data": ({"sha256": "b" * 64}, "data/train/manifest.json", "data (train)"),
    "weights": ({"files": {"model.safetensors": "x"}}, "base/student/manifest.json", "starting weights (student)"),
    "version": ({"versions": {"torch": "2.12.0"}}, "models/*/*/manifest.json", "version (torch)"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_no_setting_names_is_seen(name: str, tmp_path: Path) -> None:
    change, pattern, words = CHANGES[name]
    specs = [made(tmp_path, "before"), made(tmp_path, "after")]
    edit(tmp_path, change, f"after/{pattern}")
    page = (run(tmp_path, *specs) / "comparison.html").read_text()
    assert row_of(page, ">after")[-2:] == ["none", words]


def test_models_as_given_have_no_curve(three: SimpleNamespace) -> None:
    found = read_all({"experiments": three.specs}, [three.root / e["name"] for e in three.specs])
    results = {each.name: each.results for each in found}
    svg = curves.experiments(results, ["teacher-given", STUDENT]).svg
    assert full_text(STUDENT) in svg and "As given" not in svg
    assert "<svg" in curves.experiments(results, ["teacher-given"]).svg


def test_other_weights_as_given_are_seen(tmp_path: Path) -> None:
    specs = [made(tmp_path, "before"), made(tmp_path, "after")]
    found = read_all({"experiments": specs}, [tmp_path / spec["name"] for spec in specs])
    node = Node("teacher-given", 0)
    for each in found:
        files = {"files": {"model/model.safetensors": each.name, "model/config.json": "same"}}
        each.results.models[node] = Model(node, files, [], [], {})
    (line,) = [x for x in compare_settings.origins(found) if x.kind == "weights as given"]
    assert line.what == "teacher" and line.differs


def test_models_made_by_other_settings_than_the_file_has_are_named(tmp_path: Path) -> None:
    specs = [made(tmp_path, "before"), made(tmp_path, "after")]
    said = "of its models were trained by other settings than its file has now"
    assert said not in (run(tmp_path, *specs) / "comparison.html").read_text()
    edit(tmp_path, {"spec": {"steps": 1}}, f"after/models/{DEEP}/seed2/manifest.json")
    assert f"<strong>1 {said}</strong>" in (run(tmp_path, *specs) / "comparison.html").read_text()


def test_what_one_alone_has_is_listed(three: SimpleNamespace, tmp_path: Path) -> None:
    page = (three.out / "comparison.html").read_text()
    assert f"<li>Only other has: {full_text(of_chain(*BY_KD[1:]))}.</li>" in page
    sets = [
        made(tmp_path, "before", sets=("heldout",)),
        made(tmp_path, "after", sets=("other",)),
    ]
    page = (run(tmp_path, *sets) / "comparison.html").read_text()
    assert "No evaluation set has the same name" in page
    assert "Only after was evaluated on other." in page


def test_measures_and_costs_stand_side_by_side(three: SimpleNamespace) -> None:
    table = three.out / "comparison.csv"
    by_name = {row["measure"] for row in rows(table, lineage=DEEP, set="heldout")}
    assert {"rougeL", "exact_match", "perplexity", "direct_reverse_kl", "self_bleu"} <= by_name
    minutes = rows(table, lineage=STUDENT, measure="training_minutes")
    # two minutes a training, one training seed in the last
    assert [float(row["value"]) for row in minutes] == [4, 4, 2]
    tokens = rows(table, lineage=STUDENT, measure="training_tokens")
    assert [float(row["value"]) for row in tokens] == [60_000, 60_000, 30_000]
    curve = rows(three.out / "comparison-curves.csv", lineage=STUDENT, experiment="other")
    assert [row["step"] for row in curve] == ["50", "100", "200", "300"]
    assert [row["step"] for row in curve if row["kept"] == "True"] == ["200"]


def test_the_same_results_give_the_same_bytes(three: SimpleNamespace, tmp_path: Path) -> None:
    again = run(tmp_path, *three_experiments(tmp_path))
    for part in comparison.PARTS.values():
        assert (again / part.file).read_bytes() == (three.out / part.file).read_bytes()


def test_hostile_texts_are_escaped(tmp_path: Path) -> None:
    bad = {"data": {"corpus": None, "template": "<img src=x onerror=alert(1)>\u202e"}}
    specs = [made(tmp_path, "before"), made(tmp_path, "after", settings=bad)]
    page = (run(tmp_path, *specs) / "comparison.html").read_text(encoding="utf-8")
    assert "<img" not in page and "<script>alert" not in page and "<b>results" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;⟨U+202E⟩" in page and "\u202e" not in page
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["'](https?:|//)""", page)


def test_in_the_browser(three: SimpleNamespace, tmp_path: Path) -> None:
    names = ("study", "study-with-a-name-that-is-rather-long", "study.3")
    shifts: list[Shift] = [nothing, noisy, better]
    long = {"data": {"corpus": None, "template": "x" * 300}}
    study = run(
        tmp_path,
        *(
            made(tmp_path, n, STUDY, s, long if s is noisy else None, sets=("dolly", "vicuna"))
            for n, s in zip(names, shifts, strict=True)
        ),
    )  # fmt: skip
    order: list[list[float]] = []

    def sort(page: Any) -> None:
        for _ in range(2):
            page.click("table#scores-heldout button:has-text('more-mixing') >> nth=0")
            cells = "table#scores-heldout tr[data-lineage] td:nth-child(3)"
            order.append(page.eval_on_selector_all(cells, "all => all.map(c => +c.dataset.value)"))

    outside = """() => {
        const box = document.documentElement.getBoundingClientRect();
        return [...document.querySelectorAll("text")].filter((text) => {
            const found = text.getBoundingClientRect();
            return found.left < box.left || found.right > box.right || found.bottom > box.bottom;
        }).map((text) => text.textContent);
    }"""
    with browser() as started:
        seen = visit(started, three.out / "comparison.html", sort)
        assert order[0] == sorted(order[1], reverse=True) and order[0] != order[1]
        assert "+6.0" in seen.text and (seen.external, seen.complaints) == ([], [])
        for out in (three.out, study):
            ElementTree.parse(out / "comparison-curves.svg")
            found: list[Any] = []
            visit(
                started,
                out / "comparison-curves.svg",
                lambda page, to=found: to.extend(page.evaluate(outside)),
            )
            assert not found
            visit(
                started,
                out / "comparison.html",
                lambda page, to=found: to.append(
                    page.evaluate("document.documentElement.scrollWidth")
                ),
                width=390,
            )
            assert found[0] <= 390


def test_names_are_checked() -> None:
    assert comparison.others(None, "a") == []
    assert comparison.others("b, c", "a") == comparison.others(["b", "c"], "a") == ["b", "c"]
    for value, said in {
        "a": "'a' is the experiment itself",
        "b,b": "'b' stands there twice",
        "b,": "'' cannot be compared",
        "../b": "'../b' cannot be compared",
        ",".join(map(str, range(10))): "names 10 experiments; at most 9",
    }.items():
        with pytest.raises(InputError, match=re.escape(said)):
            comparison.others(value, "a")
    assert comparison.folder(["b", "c"]) == "b+c"
    long = [f"{'long' * 12}{n}" for n in range(3)]
    assert len(comparison.folder(long)) < 120
    assert comparison.folder(long) != comparison.folder([*long[:2], f"{'long' * 12}9"])


def write(project: Project, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Another experiment file, beside small."""
    shutil.copy(
        project.folder / "config/experiments/small.yaml",
        project.folder / f"config/experiments/{name}.yaml",
    )
    project.experiment(change, name)


def test_variables_go_to_the_files_that_have_them(project: Project) -> None:
    write(project, "asks", lambda e: e["data"].update(dev={"json": "{place}/dev.jsonl"}))
    first, second = comparison.load_all(project.folder, "small", "asks", {"place": "data"})
    assert second.settings["data"]["dev"]["json"] == "data/dev.jsonl"
    assert "place" not in str(first.settings)
    with pytest.raises(InputError, match=r"the variable other, given by --config, is in no path"):
        comparison.load_all(project.folder, "small", "asks", {"place": "data", "other": "x"})
    with pytest.raises(InputError, match=r"nothing says what \{place\} is"):
        comparison.load_all(project.folder, "small", "asks", {})


@pytest.mark.parametrize("name", ["with", "experiment", "seeds"])
def test_reserved_names_are_no_variables(project: Project, name: str) -> None:
    write(project, "asks", lambda e: e["data"].update(dev={"json": f"{{{name}}}/dev.jsonl"}))
    project.experiment(lambda e: e.update(variables={name: "data"}), "asks")
    with pytest.raises(InputError, match=f"no variable can be called {name}"):
        experiments.load(project.folder / "config/experiments/asks.yaml", project.folder)


def test_experiments_without_a_common_model_are_refused(project: Project) -> None:
    def renamed(settings: dict[str, Any]) -> None:
        settings["models"] = {f"{k}2": v for k, v in settings["models"].items()}
        for chain in settings["chains"]:
            chain["models"] = [f"{model}2" for model in chain["models"]]

    write(project, "apart", renamed)
    with pytest.raises(InputError, match="'small' has no model in common with apart"):
        comparison.require_shared(comparison.load_all(project.folder, "small", "apart", {}))


# compare itself may not follow an option that takes several words
WITH = ("--nolock", "compare", "--config", "with=other")


@pytest.fixture(scope="module")
def two(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A finished experiment, another one whose results lie there without any record, and their comparison."""
    project = finished.copy(tmp_path_factory.mktemp("two") / "project")
    write(project, "other", lambda e: e["training"]["minillm"].update(steps=8))
    shutil.copytree(project.folder / "results/small", project.folder / "results/other")
    assert project.plan(*WITH) == {"build_comparison": 1}
    project.run(*WITH, "--quiet")
    assert (project.folder / "results/small/comparison/other/comparison.html").is_file()
    return project


def rewrite(file: str) -> Callable[[Project], None]:
    """Another content with the old time stamps, as from a backup."""

    def change(project: Project) -> None:
        path = project.folder / file
        times = path.stat()
        path.write_text(json.dumps({"another": "content"}))
        os.utime(path, (times.st_atime, times.st_mtime))

    return change


def rewrite_answers(project: Project) -> None:
    path = project.folder / f"results/other/evaluations/{STUDENT}/seed1/heldout/generations.jsonl"
    path.write_text('{"another": "content"}')


ONCE = {"build_comparison": 1}
FIRST = {"distill_minillm": 3, "evaluate": 3, "likelihoods": 3, "card": 3, "report": 1, **ONCE}
EDITS: dict[str, tuple[Callable[[Project], Any], dict[str, int]]] = {
    "touch of everything": (touch, {}),
    "scores of the other": (
        rewrite(f"results/other/evaluations/{STUDENT}/seed1/heldout/scores.json"),
        ONCE,
    ),
    "model of the other": (rewrite(f"results/other/models/{DEEP}/seed1/manifest.json"), ONCE),
    "answers of the other": (rewrite_answers, ONCE),
    "setting of the other": (
        lambda p: p.experiment(lambda e: e["training"]["minillm"].update(steps=9), "other"),
        ONCE,
    ),
    "setting of the first": (
        lambda p: p.experiment(lambda e: e["training"]["minillm"].update(steps=9)),
        FIRST,
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_it_is_made_again_when_results_change(two: Project, tmp_path: Path, name: str) -> None:
    change, expected = EDITS[name]
    project = two.copy(tmp_path / "copy")
    change(project)
    assert project.plan(*WITH) == expected


def test_an_unfinished_experiment_is_named_and_never_trained(two: Project, tmp_path: Path) -> None:
    project = two.copy(tmp_path / "copy")
    place = f"results/other/models/{DEEP}/seed1"
    (project.folder / place / "manifest.json").unlink()
    scores = project.folder / f"results/other/evaluations/{STUDENT}/seed1/heldout/scores.json"
    scores.unlink()
    said = project.run("--dry-run", *WITH, check=False)
    assert (
        "Error: Experiment 'other' is not finished, so nothing can be compared with it: it lacks"
        f" {place}/manifest.json and 1 more of its files; run it first: snakemake --profile"
        " profiles/local --config experiment=other" in said
    )
    assert "Traceback" not in said and "job" not in said
    said = project.run("--dry-run", "--nolock", "compare", check=False)
    assert "Error: compare needs the experiments to compare with: snakemake" in said
    assert "Traceback" not in said


def test_snakemakes_report_shows_the_comparison(two: Project, tmp_path: Path) -> None:
    project = two.copy(tmp_path / "copy")
    page = project.folder / "results/small/comparison/other/comparison.html"
    page.write_text("<!DOCTYPE html><p>side by side</p>")
    (project.folder / "results/small/report/index.html").write_text("<!DOCTYPE html><p>site</p>")
    project.run(*WITH, "--report", "report.zip")
    zipfile.ZipFile(project.folder / "report.zip").extractall(tmp_path / "unzipped")
    texts = []

    def walk(opened: Any) -> None:
        texts.append(opened.inner_text("body"))
        assert opened.locator(".system-message, .problematic").count() == 0
        opened.click("text=Comparison >> nth=0")
        opened.wait_for_selector("td a")
        texts.append(opened.inner_text("body"))
        assert opened.locator("tbody tr").count() == len(comparison.PARTS)

    with browser() as started:
        seen = visit(started, next((tmp_path / "unzipped").rglob("report.html")), walk)
    assert (seen.external, seen.complaints) == ([], [])
    assert "What differs, in settings and in scores" in texts[1]
