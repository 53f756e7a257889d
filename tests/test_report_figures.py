"""The pictures of the report: their numbers against results made by hand, and what a drawing may not do."""

import html
import json
import re
from collections import Counter
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from browser import browser, visit
from sealing import write_json, write_lines
from test_report import DEEP, DIRECT, STUDY, THROUGH, make, rows_of, run

from takd.analysis import costs
from takd.analysis.questions import QUESTIONS
from takd.analysis.results import read
from takd.experiment.lineage import Node, of_chain, split
from takd.pages.svg import inline
from takd.report import costs_page
from takd.report.figures import forest, quality, registry, style
from takd.report.figures.curves import learning_curves

NEW = (
    quality.quality,
    learning_curves,
    lambda results: forest.differences(results, "heldout"),
    lambda results: SimpleNamespace(svg=forest.scores(results, "heldout").narrow),
)


def results_of(root, spec):
    return read(spec, root / "models", root / "evaluations")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The eight chains of the study, two training seeds, two evaluation sets."""
    root = tmp_path_factory.mktemp("study")
    spec = make(root, STUDY, (1, 2), ("heldout", "second"))
    return SimpleNamespace(root=root, spec=spec, results=results_of(root, spec))


def end(root, lineage, seed, **values):
    """Change the last line of a training's log."""
    file = root / "models" / lineage / f"seed{seed}" / "metrics.jsonl"
    *rows, last = [json.loads(line) for line in file.read_text().splitlines()]
    write_lines(file, [*rows, last | values])


def test_the_forest_has_every_difference_once_with_its_seeds(study):
    blocks = forest.blocks(study.results, "second", "rougeL")
    assert [block.title for block in blocks] == [
        QUESTIONS[each].title for each in ("direct", "sft", "method")
    ]
    found = {line.label: line for line in blocks[0].lines}
    # one assistant is worth 2.0 in the made-up scores, two are worth 4.0, whatever the hops before the last
    assert {label: line.number.value for label, line in found.items()} == pytest.approx({
        "MiniLLM: 1.5B → 760M → 340M": 2.0,
        "MiniLLM: 1.5B → 760M → 120M": 2.0,
        "MiniLLM: 1.5B → 340M → 120M": 2.0,
        "MiniLLM: 1.5B → 760M → 340M → 120M": 4.0,
        "KD → KD → MiniLLM: 1.5B → 760M → 340M → 120M": 4.0,
    })  # fmt: skip
    assert all(line.seeds == pytest.approx([line.number.value] * 2) for line in found.values())
    gain = next(line for line in blocks[1].lines if line.label == "MiniLLM: 1.5B → 120M")
    assert gain.seeds == pytest.approx([8.0, 8.5]) and gain.number.value == pytest.approx(8.25)
    assert "KD − MiniLLM: 1.5B → 760M" in [line.label for line in blocks[2].lines]
    drawn = forest.differences(study.results, "second")
    for svg in (drawn.svg, drawn.narrow):
        texts = " ".join(" ".join(ElementTree.fromstring(svg).itertext()).split())
        for line in (line for block in blocks for line in block.lines):
            assert line.label in texts
    assert drawn.svg.count("n.s.") > len(found)


def test_scores_stand_by_student_and_size_of_the_teacher(study):
    texts = "".join(ElementTree.fromstring(forest.scores(study.results, "heldout").svg).itertext())
    order = ["120M, 124M parameters", "SFT: 120M", "MiniLLM: 1.5B → 120M", "MiniLLM: 1.5B → 760M → 120M",
             "MiniLLM: 1.5B → 340M → 120M"]  # fmt: skip
    places = [texts.index(each) for each in order]
    assert places == sorted(places)
    # 120M: 23 + 8, 2.0 for the assistant, seeds 1 and 2: 0 and 0.5
    assert "33.2 (" in texts


def test_an_interval_beyond_the_edge_ends_in_an_arrow(study):
    line = forest.blocks(study.results, "second", "rougeL")[0].lines[0]
    wide = line._replace(number=line.number._replace(low=-900.0, high=900.0))
    low, high = forest._limits([forest.Block("", [wide])], signed=True)
    assert -10 < low < 0 < high < 10


def test_an_experiment_without_differences_has_no_forest(tmp_path):
    spec = make(tmp_path, [DIRECT])
    spec["nodes"] = [node for node in spec["nodes"] if node[0] != "student-sft"]
    file = tmp_path / "models" / of_chain(*DIRECT[1:]) / "seed1/manifest.json"
    write_json(file, json.loads(file.read_text()) | {"inputs": {}})
    assert forest.differences(results_of(tmp_path, spec), "heldout") is None
    assert "ROUGE-L" in (run(tmp_path, spec) / "index.html").read_text()


def test_a_registered_figure_has_files_a_download_and_a_place(tmp_path, monkeypatch):
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><text>drawn</text></svg>'
    drawing = style.Drawing(svg, [{"chain": "=1", "tokens": 2.5}], note="Few & <many>.")
    plots = [
        style.Plot(
            "lengths", "lengths of responses", lambda _: drawing, "learning.html", "Lengths"
        ),
        style.Plot("nothing", "what no model has", lambda _: None, "learning.html", "Nothing"),
    ]
    monkeypatch.setattr(registry, "PLOTS", (*registry.PLOTS, *plots))
    site = run(tmp_path, make(tmp_path, [DIRECT]))
    assert (site / "lengths.svg").read_text() == svg
    assert (site / "lengths.csv").read_text() == "chain,tokens\n'=1,2.5\n"
    summary = (site / "index.html").read_text()
    assert ">lengths.svg</a>: lengths of responses<" in summary and ">lengths.csv</a>" in summary
    page = (site / "learning.html").read_text()
    assert page.index("<h2>Lengths</h2>") < page.index(">drawn</text>")
    assert "Few &amp; &lt;many&gt;." in page
    assert (
        ">Nothing<" not in page and "nothing.svg" not in summary and not list(site.glob("nothing*"))
    )
    assert "<h2>Lengths</h2>" not in (site / "costs.html").read_text()


def test_colour_is_the_method_and_marker_the_route(study):
    looks = style.looks(study.results)
    assert len({look for look in looks.values()}) == len(looks)
    for lineage, look in looks.items():
        hops = split(lineage)
        assert look.marker == {1: "s", 2: "o"}.get(len(hops), "D")
        same = [other for other in looks if split(other)[-1].method == hops[-1].method]
        assert {looks[other].colour for other in same} == {look.colour}


def test_cost_of_a_lineage_is_what_is_counted_by_hand(tmp_path):
    spec = make(tmp_path, [DIRECT, THROUGH], (1, 2))
    through, above = of_chain(*THROUGH[1:]), "teacher-sft__assistant-minillm"
    end(tmp_path, "teacher-sft", 1, seconds=7200.0, processes=4, tokens=1_000_000)  # 8 hours
    for seed in (1, 2):
        end(tmp_path, "assistant-sft", seed, seconds=3600.0, processes=1, tokens=200_000)
        end(tmp_path, "student-sft", seed, seconds=1800.0, processes=1, tokens=40_000)
        end(tmp_path, above, seed, seconds=3600.0, processes=2, tokens=8_000)
    end(tmp_path, through, 1, seconds=360.0, processes=1, tokens=1_000)
    end(tmp_path, through, 2, seconds=1080.0, processes=1, tokens=3_000)
    results = results_of(tmp_path, spec)
    assert set(costs.needed(results, through, 2)) == {
        Node("teacher-sft", 1), Node("assistant-sft", 2), Node(above, 2),
        Node("student-sft", 2), Node(through, 2),
    }  # fmt: skip
    found = costs.cumulative(results)
    # 8 + 1 + 2 + 0.5, and 0.1 or 0.3
    assert found[through]["hours"] == pytest.approx({1: 11.6, 2: 11.8})
    assert found[through]["tokens"] == {1: 1_249_000, 2: 1_251_000}
    assert found[through]["trainings"] == {1: 5, 2: 5} and found["teacher-sft"]["hours"] == {1: 8.0}
    assert found["student-sft"]["hours"] == {1: 0.5, 2: 0.5}
    assert costs.unit(results) == "CPU hours"
    (row,) = rows_of(quality.quality(results).csv, lineage=through)
    assert (row["hours"], row["hours_least"], row["hours_most"]) == ("11.7", "11.6", "11.8")
    assert row["tokens"] == "1250000" and float(row["rougeL"]) == 80.25
    page = (run(tmp_path, spec) / "costs.html").read_text()
    cells = re.search(rf'<tr data-lineage="{through}">.*?</tr>', page, re.S)[0]
    assert ">11.7<" in cells and "1\u202f250\u202f000" in cells


def test_a_start_is_counted_once_and_only_if_there_was_one(tmp_path):
    # the middle model starts from base weights: its supervised training is nobody's need
    spec = make(tmp_path, [DEEP])
    deep = of_chain(*DEEP[1:])
    middle = "teacher-sft__assistant-kd__middle-minillm"
    file = tmp_path / "models" / middle / "seed1/manifest.json"
    write_json(file, json.loads(file.read_text()) | {"inputs": {"base": ["0" * 64]}})
    found = costs.needed(results_of(tmp_path, spec), deep, 1)
    assert Counter(node.lineage for node in found) == dict.fromkeys(
        ["teacher-sft", "assistant-sft", "teacher-sft__assistant-kd", middle, "student-sft", deep],
        1,
    )


def test_hours_are_named_after_the_devices(tmp_path):
    spec = make(tmp_path, [DIRECT])
    end(tmp_path, "teacher-sft", 1, device="NVIDIA H100")
    assert costs.unit(results_of(tmp_path, spec)) == "hours of CPU or GPU"
    for lineage in ("student-sft", of_chain(*DIRECT[1:])):
        end(tmp_path, lineage, 1, device="NVIDIA H100")
    assert costs.unit(results_of(tmp_path, spec)) == "GPU hours"


def test_both_stages_of_an_evaluation_and_its_judge_stand_among_the_costs(tmp_path):
    spec = make(tmp_path, [DIRECT]) | {"judge": {"model": "<b>judge</b>", "endpoint": "http://x"}}
    for lineage, seed in spec["nodes"]:
        folder = tmp_path / "evaluations" / lineage / f"seed{seed}/heldout"
        said = {"lineage": lineage, "seed": seed, "set": "heldout", "score": 90.0}
        write_json(folder / "judge/judge.json", said | {"n": 5, "unreadable": 1})
    results = results_of(tmp_path, spec)
    table = costs_page.by_stage(results, costs.runs(results))
    rows = {str(row.cells[0].text): row.cells[1:] for group in table.groups for row in group.rows}
    found = {stage: [str(cell.text) for cell in cells] for stage, cells in rows.items()}
    # runs, minutes, hours, tokens
    assert found["evaluation, answers"] == ["3", "1.5", "0.03", "1\u202f500"]
    assert found["evaluation, likelihoods"] == ["3", "0.3", "0.01", "150"]
    assert found["evaluation, judge"] == ["3", *["not recorded"] * 3]
    # two minutes a training, and 0.6 an evaluation: what is not recorded adds nothing
    assert found["all"][1] == "7.8"
    page = (run(tmp_path, spec) / "costs.html").read_text()
    assert "&lt;b&gt;judge&lt;/b&gt;" in page and "18" in page


def test_the_same_results_draw_the_same_bytes(study, tmp_path):
    again = results_of(tmp_path, make(tmp_path, STUDY, (1, 2), ("heldout", "second")))
    for draw in NEW:
        assert draw(study.results) == draw(again)


def test_hostile_labels_are_text_and_no_more(tmp_path):
    labels = ["<b>&\"'</b>", r"$\frac$", "a\x07b\ud800", 'id="axes_1"']
    chains = [(label, *chain[1:]) for label, chain in zip(labels, STUDY, strict=False)]
    site = run(tmp_path, make(tmp_path, chains))
    page = (site / "index.html").read_text()
    shown = html.unescape(page)
    assert "<b>" not in page
    for label in labels:
        assert re.sub("[\x07\ud800]", "\N{REPLACEMENT CHARACTER}", label) in shown


def test_inlined_drawings_share_no_identifier(study):
    drawings = [draw(study.results).svg for draw in NEW]
    page = "".join(map(inline, drawings))
    counts = Counter(re.findall(r'\bid="([^"]+)"', page))
    assert counts and max(counts.values()) == 1
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', page))
    assert used and used <= set(counts)
    # as files they do clash: this is what it is for
    plain = Counter(re.findall(r'\bid="([^"]+)"', "".join(drawings)))
    assert max(plain.values()) > 1


def test_inlining_changes_nothing_to_be_seen(study, tmp_path):
    svg = quality.quality(study.results).svg
    with browser() as started:
        shown = []
        for text in (svg[svg.index("<svg") :], str(inline(svg))):
            file = tmp_path / "page.html"
            file.write_text(
                f"<!DOCTYPE html><style>svg {{ width: 700px; height: 900px }}</style>{text}"
            )
            picture = tmp_path / "picture.png"
            visit(started, file, picture=picture)
            shown.append(picture.read_bytes())
    assert shown[0] == shown[1]
