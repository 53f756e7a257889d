"""The pictures of the report: their numbers against results made by hand, and what a drawing may not do."""

import itertools
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
from takd.analysis.results import read
from takd.experiment.lineage import Node, of_chain, split
from takd.report import pages
from takd.report.figures import gains, lattice, quality, teachers
from takd.report.figures.marks import looks_of_students
from takd.report.figures.scope import scoped
from takd.report.figures.style import Look

NEW = (gains.gains, teachers.teachers, lattice.lattice, quality.quality)
BY_KD_FIRST = of_chain(*STUDY[7][1:])


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


def test_gains_are_the_known_differences(study):
    lines = rows_of(gains.gains(study.results).csv, set="second")
    found = {(r["student"], r["assistants"], r["methods"]): r for r in lines}
    # one assistant is worth 2.0 in the made-up scores, two are worth 4.0, whatever the hops before the last
    assert {key: float(row["gain"]) for key, row in found.items()} == {
        ("340M", "760M", "minillm"): 2.0,
        ("120M", "760M", "minillm"): 2.0,
        ("120M", "340M", "minillm"): 2.0,
        ("120M", "760M → 340M", "minillm"): 4.0,
        ("120M", "760M → 340M", "kd → kd → minillm"): 4.0,
    }
    row = found["120M", "760M → 340M", "kd → kd → minillm"]
    assert (row["lineage"], row["direct"]) == (BY_KD_FIRST, "1.5B-sft__120M-minillm")
    assert row["assistant_parameters"] == "354823168" and row["n_training_seeds"] == "2"
    assert float(row["gain_low"]) <= 4.0 <= float(row["gain_high"])
    assert "760M (774M) →" in gains.gains(study.results).svg


def test_an_experiment_without_assistants_says_so_and_has_an_empty_table(tmp_path):
    spec = make(tmp_path, [DIRECT])
    drawing = gains.gains(results_of(tmp_path, spec))
    assert "no chain of this experiment has an assistant" in drawing.svg
    assert drawing.csv == ",".join(gains.COLUMNS) + "\n"


def test_columns_of_gains_do_not_depend_on_there_being_any(study):
    assert list(gains.gains(study.results).numbers[0]) == list(gains.COLUMNS)


def test_an_assistant_without_a_direct_chain_is_another_sentence(tmp_path):
    drawing = gains.gains(results_of(tmp_path, make(tmp_path, [THROUGH])))
    assert "was also taught straight from the head" in drawing.svg and not drawing.numbers


def test_students_stand_at_the_size_of_their_teacher(study):
    lines = rows_of(teachers.teachers(study.results).csv, set="heldout")
    found = {row["lineage"]: row for row in lines}
    assert Counter(row["lineage"] for row in lines).most_common(1)[0][1] == 1
    taught = [lineage for lineage in study.results.lineages if "__" in lineage]
    assert set(found) == {*taught, "760M-sft", "340M-sft", "120M-sft"}
    through = found["1.5B-sft__340M-minillm__120M-minillm"]
    assert through["teacher_parameters"] == "354823168" and through["on_line"] == "True"
    # 120M: 23 + 8, 2.0 for the assistant, seeds 1 and 2: 0 and 0.5
    assert float(through["rougeL"]) == pytest.approx(33.25)
    longer = found["1.5B-sft__760M-minillm__340M-minillm__120M-minillm"]
    assert longer["teacher"] == "340M" and longer["on_line"] == "False"
    assert found[BY_KD_FIRST]["on_line"] == "False"
    level = found["120M-sft"]
    assert level["teacher"] == "" and float(level["rougeL"]) == 23.0


def test_lattice_has_every_path_once(study):
    drawing = lattice.lattice(study.results)
    for name in study.spec["sets"]:
        lines = rows_of(drawing.csv, set=name)
        assert sorted(row["lineage"] for row in lines) == sorted(study.results.lineages)
    boxes = Counter(re.findall(r'id="lineage:([^:]+):0:box[01]"', drawing.svg))
    taught = {lineage for lineage in study.results.lineages if "__" in lineage}
    # supervised students stand at the name of their level: once with each set, as the boxes do
    assert boxes == dict.fromkeys({"1.5B-sft", *taught}, 2)
    assert drawing.svg.count("labels alone:") == 3 * 2
    # a tie in 120M: three hops are worth the same whatever the first two are
    best = {row["lineage"] for row in rows_of(drawing.csv, set="heldout", best_of_ends="True")}
    full = of_chain(*STUDY[6][1:])
    assert best == {of_chain(*STUDY[3][1:]), full, BY_KD_FIRST}


def test_boxes_of_the_lattice_do_not_cover_each_other(study):
    plan = lattice._plan(study.results)
    places = [(plan.levels[split(x)[-1].model], at) for x, at in plan.across.items()]
    for down in plan.levels.values():
        row = sorted(at for level, at in places if level == down)
        assert all(b - a >= lattice.BOX for a, b in itertools.pairwise(row))


def test_one_chain_has_no_best_end(tmp_path):
    drawing = lattice.lattice(results_of(tmp_path, make(tmp_path, [DIRECT])))
    assert not rows_of(drawing.csv, best_of_ends="True") and "thick box" not in drawing.svg


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
    found = {cost.lineage: cost for cost in cumulative_costs.accumulate(results)}
    # 8 + 1 + 2 + 0.5, and 0.1 or 0.3
    assert found[through].hours == pytest.approx({1: 11.6, 2: 11.8})
    assert found[through].tokens == {1: 1_249_000, 2: 1_251_000}
    assert found[through].mean_hours == pytest.approx(11.7) and found[through].trainings == 5
    assert found["teacher-sft"].hours == {1: 8.0} and found["student-sft"].mean_hours == 0.5
    assert costs.unit(results) == "CPU hours"
    (row,) = rows_of(quality.quality(results).csv, lineage=through)
    assert (row["hours"], row["hours_least"], row["hours_most"]) == ("11.7", "11.6", "11.8")
    assert row["tokens"] == "1250000" and row["tag"] == "3.B" and float(row["rougeL"]) == 80.25
    page = (run(tmp_path, spec) / "costs.html").read_text()
    cells = re.search(rf'<tr data-lineage="{through}">.*?</tr>', page, re.S)[0]
    assert ">11.7</td>" in cells
    assert "1\u202f250\u202f000" in cells and "CPU hours with all that it needs" in page


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
    found = costs.by_stage(costs.by_lineage(results_of(tmp_path, spec)), 1)
    minutes = {stage.stage: (stage.runs, stage.minutes, stage.tokens) for stage in found}
    assert minutes["evaluation, answers"] == pytest.approx((3, 1.5, 1500))
    assert minutes["evaluation, likelihoods"] == pytest.approx((3, 0.3, 150))
    assert minutes["evaluation, judge"] == (3, None, None)
    page = (run(tmp_path, spec) / "costs.html").read_text()
    assert "(&lt;b&gt;judge&lt;/b&gt;) rated 18 answers" in page and "not recorded" in page
    # two minutes a training, and 0.6 an evaluation: what is not recorded adds nothing
    assert "<strong>7.8</strong>" in page


@pytest.mark.parametrize("draw", NEW)
def test_the_same_results_draw_the_same_bytes(draw, study, tmp_path):
    again = results_of(tmp_path, make(tmp_path, STUDY, (1, 2), ("heldout", "second")))
    assert draw(study.results) == draw(again)


@pytest.mark.parametrize("draw", NEW)
def test_every_drawing_says_n_and_keeps_text(draw, study):
    svg = draw(study.results).svg
    said = "6 prompts × 2 decoding seeds, 2 training seeds"
    assert svg.count(said) == len(study.spec["sets"]) and "<text" in svg


@pytest.mark.parametrize("label", ["<b>&\"'</b>", r"$\frac$", "a\x07b", "\ud800", 'id="axes_1"'])
def test_hostile_labels_are_text_and_no_more(label, tmp_path):
    spec = make(tmp_path, [(label, *DIRECT[1:]), THROUGH])
    results = results_of(tmp_path, spec)
    shown = re.sub("[\x07\ud800]", "\N{REPLACEMENT CHARACTER}", label)
    for draw in NEW:
        svg = draw(results).svg
        texts = "".join(ElementTree.fromstring(svg).itertext())
        svg.encode()
        if draw is lattice.lattice:
            assert shown in texts
            inlined = ElementTree.fromstring(scoped(svg))
            assert shown in "".join(inlined.itertext())


def test_students_and_methods_differ_without_colour(study):
    looks = looks_of_students(study.results)
    taught = [look for hop, look in looks.items() if hop.method != "sft"]
    assert len({look.marker for look in taught}) == len(taught) == 5
    assert all(isinstance(look, Look) for look in looks.values())


def test_inlined_drawings_share_no_identifier(study):
    drawings = [draw(study.results).svg for draw in NEW]
    page = "".join(map(pages.inline, drawings))
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
        for text in (svg[svg.index("<svg") :], str(pages.inline(svg))):
            file = tmp_path / "page.html"
            file.write_text(
                f"<!DOCTYPE html><style>svg {{ width: 700px; height: 900px }}</style>{text}"
            )
            picture = tmp_path / "picture.png"
            visit(started, file, picture=picture)
            shown.append(picture.read_bytes())
    assert shown[0] == shown[1]
