"""The page of learning curves: means with bands, single seeds, three x axes, and lines that are shown and hidden."""

import json
import re
from types import SimpleNamespace

import pytest
from browser import browser, visit
from sealing import write_lines
from test_report import BY_KD, DIRECT, STUDY, full_site, make, rows_of, run

from takd.analysis.results import Model, read
from takd.experiment.lineage import split
from takd.report import learning
from takd.report.figures.curves import numbers

LINES = """() => Object.fromEntries([...document.querySelectorAll("figure")].map((figure) => [
    figure.dataset.quantity, [...figure.querySelectorAll("[data-lineage]")].map((line) => line.dataset.lineage)]))"""
LABELS = """(quantity) => [...document.querySelectorAll(`figure[data-quantity="${quantity}"] text`)]
    .map((text) => text.textContent)"""
ONE = "1.5B-sft__120M-minillm"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("learning")
    spec = make(root, STUDY, (1, 2))
    return SimpleNamespace(
        report=run(root, spec), results=read(spec, root / "models", root / "evaluations")
    )


def test_lines_are_hidden_and_shown_and_axes_follow(study):
    results, seen, labels = study.results, [], {}

    def act(page):
        def note():
            seen.append(page.evaluate(LINES))

        note()
        for axis in ("tokens", "minutes", "step"):
            page.select_option("#x", axis)
            labels[axis] = page.evaluate(LABELS, "Loss")
        page.check("#single")
        note()
        page.uncheck("#single")
        page.click("text=hide all")
        labels["nothing"] = page.evaluate(LABELS, "Loss")
        page.check(f'input[value="{ONE}"]')
        note()
        labels["one"] = page.evaluate(LABELS, "ROUGE-L")
        page.click("text=show all")
        labels["all"] = page.evaluate(LABELS, "ROUGE-L")
        page.locator("fieldset", has_text="120M (124M)").get_by_text("none", exact=True).click()
        note()

    with browser() as started:
        visited = visit(started, study.report / "learning.html", act)
        phone = {}

        def measure(page):
            phone["width"] = page.evaluate("document.documentElement.scrollWidth")
            phone["text"] = page.evaluate(
                "Math.min(...[...document.querySelectorAll('figure text')].map(t => t.getBoundingClientRect().height))"
            )

        visit(started, study.report / "learning.html", measure, width=390)
    assert (visited.external, visited.complaints) == ([], [])
    assert phone["width"] <= 390 and phone["text"] >= 10
    means, singles, alone, others = seen
    assert list(means)[:5] == ["ROUGE-L", "Loss", "Reverse KL", "Response length", "Reward"]
    # MiniLLM logs the length of its training responses, too
    assert list(means)[5:] == ["Training loss", "Gradient norm", "Training response length"]
    # a line for each lineage, or one for each training; the head of a chain has one seed
    assert means["Loss"] == [x for m in ("1.5B", "760M", "340M", "120M") for x in ends(results, m)]
    assert sorted(singles["Loss"]) == sorted(node.lineage for node in results.nodes)
    assert set(means["Reward"]) == {x for x in results.lineages if split(x)[-1].method == "minillm"}
    assert alone["Loss"] == [ONE]
    assert others["Loss"] == [x for x in means["Loss"] if split(x)[-1].model != "120M"]
    assert [labels[axis][-1] for axis in ("tokens", "minutes", "step")] == [
        "tokens",
        "minutes",
        "step",
    ]
    assert "300" in labels["step"] and "300" not in labels["minutes"]
    assert labels["nothing"] == ["nothing shown"] and labels["one"] != labels["all"]


def ends(results, model):
    return [lineage for lineage in results.lineages if split(lineage)[-1].model == model]


def test_without_scripts_the_figure_is_shown(study):
    with browser() as started:
        context = started.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto((study.report / "learning.html").resolve().as_uri())
        assert page.locator("noscript svg, .drawing svg").first.is_visible()
        assert not page.locator("#lines").is_visible()
        context.close()


def test_a_mean_has_a_band_and_the_exported_steps_of_its_seeds(study):
    """Loss at step 50 is 1.2 for both seeds; ROUGE-L of a student is half a point higher with the second."""
    data = learning.data(study.results)
    runs = [run for run in data["runs"] if run["lineage"] == ONE]
    assert [run["seed"] for run in runs] == [1, 2] and {run["kept"] for run in runs} == {200}
    first, second = (run["values"]["ROUGE-L"]["value"] for run in runs)
    assert [b - a for a, b in zip(first, second, strict=True)] == pytest.approx([0.5] * 4)
    assert runs[0]["values"]["Reverse KL"]["step"] == list(range(10, 301, 10))
    assert runs[0]["values"]["Reverse KL"]["tokens"][-1] == 30_000
    assert runs[0]["values"]["Reverse KL"]["minutes"][-1] == pytest.approx(100 / 60, abs=1e-3)
    svg = (study.report / "learning.svg").read_text()
    assert svg.count("FillBetweenPolyCollection") >= len(study.results.lineages) - 1


def test_every_value_of_the_page_is_in_a_csv(study):
    found = {
        (row["lineage"], row["seed"], row["step"], row["quantity"]): float(row["value"])
        for name in ("learning", "training")
        for row in rows_of((study.report / f"{name}.csv").read_text())
    }
    for each in learning.data(study.results)["runs"]:
        values = each["values"]["ROUGE-L"]
        for step, value in zip(values["step"], values["value"], strict=True):
            key = (each["lineage"], str(each["seed"]), str(step), "rougeL")
            assert found[key] == pytest.approx(value, rel=1e-4)
    assert {"single_step_kl", "gradient_norm", "reward"} <= {key[-1] for key in found}


def test_reverse_kl_is_the_term_that_the_method_logs():
    def column(**settings):
        manifest = {"spec": {"settings": settings}}
        return learning.reverse_kl(Model(None, manifest, [], [], {}))

    assert column(single_step_weight=1.0) == "single_step_kl"
    assert column(divergence="reverse_kl") == "divergence"
    assert column(divergence="forward_kl") == "single_step_kl"


def test_a_quantity_that_nothing_logs_is_not_drawn(tmp_path):
    spec = make(tmp_path, [BY_KD])
    data = learning.data(read(spec, tmp_path / "models", tmp_path / "evaluations"))
    titles = [each["title"] for each in data["quantities"]]
    assert "Reward" not in titles and titles[:2] == ["ROUGE-L", "Loss"]


def test_long_logs_are_thinned_on_the_page(tmp_path):
    spec = make(tmp_path, [BY_KD])
    file = tmp_path / "models/teacher-sft/seed1/metrics.jsonl"
    *_, end = map(json.loads, file.read_text().splitlines())
    rows = [{"kind": "train", "step": step, "loss": 1.0 / step} for step in range(1, 1001)]
    write_lines(file, [*rows, end])
    results = read(spec, tmp_path / "models", tmp_path / "evaluations")
    (run_of,) = [r for r in learning.data(results)["runs"] if r["lineage"] == "teacher-sft"]
    assert len(run_of["values"]["Training loss"]["step"]) == 250
    assert (
        len([row for row in numbers(results, "train") if row["lineage"] == "teacher-sft"]) == 1000
    )


def test_values_before_training_do_not_press_the_others_into_a_line(tmp_path):
    spec = make(tmp_path, [DIRECT])
    file = tmp_path / "models/teacher-sft/seed1/metrics.jsonl"
    before = {"kind": "dev", "step": 0, "seconds": 0.0, "loss": 900.0, "rougeL": 9000.0}
    write_lines(file, [before, *map(json.loads, file.read_text().splitlines())])
    report = run(tmp_path, spec)
    ticks = re.findall(r">([\d.]+)<", (report / "learning.svg").read_text())
    assert max(map(float, ticks)) < 1000
    with browser() as started:
        text = visit(started, report / "learning.html").text
    assert text.count("lie beyond the edge") == 2
    assert ",0,loss,900" in (tmp_path / "report/learning.csv").read_text()


def test_names_are_escaped(tmp_path_factory):
    page = (full_site(tmp_path_factory).report / "learning.html").read_text()
    assert "Made-up &lt;b&gt;results" in page


def test_no_caption_says_a_thing_twice():
    for each in (*learning.FIRST, *learning.OWN):
        words = re.findall(r"\w+", f"{each.title}, {each.about}".lower())
        small = {"a", "of", "on", "the", "to", "log"}
        assert not {word for word in words if words.count(word) > 1} - small, words
