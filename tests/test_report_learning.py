"""The page of learning curves, driven as a reader does: lines are shown and hidden in all panels."""

import json
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from browser import browser, visit
from sealing import write_lines
from test_report import BY_KD, DIRECT, STUDY, make, rows_of, run

from takd.analysis.results import Model, read
from takd.experiment.lineage import split
from takd.report.figures import panels

VISIBLE = """() => Object.fromEntries([...document.querySelectorAll("figure")].map((figure) => [
    figure.dataset.quantity,
    [...figure.querySelectorAll("[data-lineage]")].filter((line) => line.getClientRects().length)
        .map((line) => line.dataset.lineage)]))"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("learning")
    spec = make(root, STUDY, (1, 2))
    return SimpleNamespace(
        report=run(root, spec), results=read(spec, root / "models", root / "evaluations")
    )


def test_lines_are_hidden_and_shown_in_all_panels(study):
    results = study.results
    one = "1.5B-sft__120M-minillm"
    seen = []

    def act(page):
        def note():
            seen.append(page.evaluate(VISIBLE))

        note()
        page.uncheck(f'input[value="{one}"]')
        note()
        page.click("text=hide all")
        note()
        page.check(f'input[value="{one}"]')
        note()
        page.click("text=show all")
        page.locator("fieldset", has_text="120M (124M)").get_by_text("none", exact=True).click()
        note()
        page.locator("fieldset", has_text="120M (124M)").get_by_text("all", exact=True).click()
        note()

    with browser() as started:
        visited = visit(started, study.report / "learning.html", act)
    assert (visited.external, visited.complaints) == ([], [])
    every, without, none, alone, others, again = seen
    assert list(every) == ["ROUGE-L", "Loss", "Reverse KL", "Response length", "Reward"]
    # a line for each training; with a ring in the first panel
    trainings = Counter(node.lineage for node in results.nodes)
    assert Counter(every["Loss"]) == trainings
    assert Counter(every["ROUGE-L"]) == {name: 2 * count for name, count in trainings.items()}
    rewarded = {name: n for name, n in trainings.items() if split(name)[-1].method == "minillm"}
    assert Counter(every["Reward"]) == rewarded
    for quantity, lines in every.items():
        assert without[quantity] == [line for line in lines if line != one], quantity
        assert none[quantity] == [] and set(alone[quantity]) == {one}, quantity
        kept = [line for line in lines if split(line)[-1].model != "120M"]
        assert others[quantity] == kept and len(kept) < len(lines), quantity
    assert again == every


def test_without_scripts_everything_is_shown_and_no_box_can_be_ticked(study):
    path = study.report / "learning.html"
    with browser() as started:
        context = started.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto(path.resolve().as_uri())
        assert page.locator("label", has_text="minillm from 1.5B").first.is_visible()
        for hidden in ("input", "button"):
            found = page.locator(hidden)
            assert found.count() and not any(each.is_visible() for each in found.all()), hidden
        line = page.locator(f'figure [data-lineage="{STUDY_END}"]')
        assert line.count() and all(each.is_visible() for each in line.all())
        context.close()


STUDY_END = "1.5B-sft__760M-minillm__340M-minillm__120M-minillm"


def test_the_page_can_be_read_on_a_phone(study):
    found = {}

    def act(page):
        found["width"] = page.evaluate("document.documentElement.scrollWidth")
        found["text"] = page.evaluate(
            "Math.min(...[...document.querySelectorAll('figure text')].map(t => t.getBoundingClientRect().height))"
        )
        found["boxes"] = page.locator("input").first.bounding_box()

    with browser() as started:
        visit(started, study.report / "learning.html", act, width=390)
    # a line of text, ascenders and descenders
    assert found["width"] <= 390 and found["text"] >= 10
    assert found["boxes"]["width"] >= 16


def test_identifiers_are_unique_and_point_to_something(study):
    page = (study.report / "learning.html").read_text()
    counts = Counter(re.findall(r'\bid="([^"]+)"', page))
    assert max(counts.values()) == 1
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', page)) <= set(counts)


def test_every_value_of_a_panel_stands_in_a_csv(study):
    found = panels.panels(study.results)
    dev = {row["quantity"] for row in rows_of((study.report / "learning.csv").read_text())}
    train = {row["quantity"] for row in rows_of((study.report / "training.csv").read_text())}
    for panel in found:
        model = next(iter(study.results.models.values()))
        log = dev if panel.quantity.log == "dev" else train
        assert not panel.svg or panel.quantity.column(model) in log


def test_reverse_kl_is_the_term_that_the_method_logs():
    def column(**settings):
        manifest = {"spec": {"settings": settings}}
        return panels.reverse_kl(Model(None, manifest, [], [], {}))

    assert column(single_step_weight=1.0) == "single_step_kl"
    assert column(divergence="reverse_kl") == "divergence"
    assert column(divergence="forward_kl") == "single_step_kl"


def test_a_quantity_that_nothing_logs_is_named_and_not_drawn(tmp_path):
    report = run(tmp_path, make(tmp_path, [BY_KD]))
    page = (report / "learning.html").read_text()
    assert "Reward: no method of this experiment logs it." in page
    assert 'data-quantity="Reward"' not in page and 'data-quantity="Loss"' in page


def test_values_before_training_do_not_press_the_others_into_a_line(tmp_path):
    spec = make(tmp_path, [DIRECT])
    file = tmp_path / "models/teacher-sft/seed1/metrics.jsonl"
    before = {"kind": "dev", "step": 0, "seconds": 0.0, "loss": 900.0, "rougeL": 75.0}
    write_lines(file, [before, *map(json.loads, file.read_text().splitlines())])
    found = panels.panels(read(spec, tmp_path / "models", tmp_path / "evaluations"))
    cut = {panel.quantity.title: panel.cut for panel in found}
    assert cut == dict.fromkeys(cut, False) | {"Loss": True}
    ticks = re.findall(r"<text[^>]*>([\d.−]+)</text>", found[1].svg)
    assert "900" not in ticks and any(float(tick) < 2 for tick in ticks if "−" not in tick)
    page = (run(tmp_path, spec) / "learning.html").read_text()
    assert page.count("lie beyond the edge") == 1
    assert ",0,loss,900" in (tmp_path / "report/learning.csv").read_text()


def test_names_are_escaped_and_the_same_results_give_the_same_bytes(tmp_path):
    texts = []
    for place in ("a", "b"):
        root = tmp_path / place
        texts.append((run(root, make(root, [DIRECT])) / "learning.html").read_bytes())
    assert texts[0] == texts[1] and b"Made-up &lt;b&gt;results" in texts[0]
