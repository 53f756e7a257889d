"""The report on made-up results: numbers against hand-computed ones, odd texts, and the pages in a browser."""

import csv
import functools
import io
import json
import os
import posixpath
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from browser import browser, read_site, visit
from conftest import Project, made_once
from sealing import write_json, write_lines

from takd.analysis.result_files import wall_minutes
from takd.analysis.results import read
from takd.experiment import captions
from takd.experiment.labels import size_text
from takd.experiment.lineage import nodes, of_chain, split
from takd.pages import environment
from takd.report import build, pages, score_tables
from takd.report.figures.registry import PLOTS
from takd.runtime.errors import InputError
from takd.runtime.records import REPORT
from takd.runtime.stage import Stage

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "teacher": 1_400_000, "assistant": 520_000, "middle": 300_000, "student": 150_000,
    "1.5B": 1_557_611_200, "760M": 774_030_080, "340M": 354_823_168, "120M": 124_439_808,
}  # fmt: skip
BASE = dict(zip(SIZES, [95.0, 75.0, 72.0, 70.0, 27.0, 25.0, 24.0, 23.0], strict=True))
ODD = "<script>alert(1)</script> & “naïve” \u202e\x00 \ud83d\n\nsecond line " + "long " * 400
PAGES = [file for file in pages.NAV if "#" not in file]

DATA = {
    "splits": {
        "train": {
            "source": "made <up>",
            "counts": {
                "rows": 1000, "kept": 990, "duplicates": 0, "without_input": 10,
                "shortened_prompts": 0, "cut_responses": 0,
            },
            "sha256": "ab" * 32,
            "dropped": 10,
            "unused": {"keys": {}, "files": []},
            "named": {},
            "lengths": {"prompt": {"median": 9, "p95": 20, "max": 30}},
        },
        "corpus": {
            "source": "text",
            "counts": {"blocks": 77, "documents": 5, "left_over_tokens": 3, "empty_documents": 0},
            "sha256": "cd" * 32,
            "tokens": {"text": 7700},
            "wanted": None,
        },
    },
    "leaks": [],
}  # fmt: skip

DIRECT = ("2.D", ["teacher", "student"], ["minillm"])
BY_KD = ("2.D", ["teacher", "student"], ["kd"])
THROUGH = ("3.B", ["teacher", "assistant", "student"], ["minillm", "minillm"])
DEEP = (None, ["teacher", "assistant", "middle", "student"], ["kd", "minillm", "minillm"])
STUDY = [
    ("2.B", ["1.5B", "760M"], ["minillm"]),
    ("2.C", ["1.5B", "340M"], ["minillm"]),
    ("2.D", ["1.5B", "120M"], ["minillm"]),
    ("3.A", ["1.5B", "760M", "340M"], ["minillm"] * 2),
    ("3.B", ["1.5B", "760M", "120M"], ["minillm"] * 2),
    ("3.C", ["1.5B", "340M", "120M"], ["minillm"] * 2),
    ("3.D", ["1.5B", "760M", "340M", "120M"], ["minillm"] * 3),
    ("3.D by kd first", ["1.5B", "760M", "340M", "120M"], ["kd", "kd", "minillm"]),
]


def score(lineage, seed, set_name):
    """Made-up ROUGE-L: easy to add up by hand."""
    hops = split(lineage)
    base = BASE[hops[-1].model]
    gain = {"sft": 0.0, "kd": 0.5, "minillm": 8.0}[hops[-1].method] + 2.0 * max(0, len(hops) - 2)
    return base + gain + 0.5 * (seed - 1) * (len(hops) > 1) - 40 * (set_name == "other")


def make(
    root, chains, seeds=(1,), sets=("heldout",), targets=(), samples=3, decoding_seeds=(10, 20)
):
    """Write the files of a finished run below `root`; returns the settings of the report."""
    lineages = [of_chain(models, methods) for _, models, methods in chains]
    students = list(dict.fromkeys(m for _, models, _ in chains for m in models[1:]))
    found = nodes(lineages, list(seeds), students)
    decoding = {"sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "no_repeat_ngram": 6}
    used = {m for _, models, _ in chains for m in models}
    for number, (lineage, seed) in enumerate(found):
        hop = split(lineage)[-1]
        folder = root / "models" / lineage / f"seed{seed}"
        write_json(
            folder / "manifest.json",
            {
                "kind": "model", "lineage": lineage, "seed": seed, "method": hop.method,
                "model": hop.model, "parameters": SIZES[hop.model], "steps": 900, "spec": {},
                "code": "0123456789abcdef", "weights": {"model": f"{number:064x}"},
                # what is distilled starts from the supervised model
                "inputs": {"init": ["0" * 64]} if "__" in lineage else {},
                "best": {"rougeL": {"step": 200, "value": 70.0}, "loss": {"step": 100, "value": 1.0}},
                "versions": {"torch": "2.13.0", "deepspeed": None},
            },
        )  # fmt: skip
        train = [
            {"kind": "train", "step": step, "steps": 300, "seconds": step / 3, "tokens": 100 * step,
             "loss": 5 / step + 0.1 * seed, "learning_rate": 1e-4, "gradient_norm": 1.0}
            | ({"single_step_kl": 30 / step, "response_length": 12.0, "reward": -30 / step}
               if hop.method == "minillm" else {})
            for step in range(10, 301, 10)
        ]  # fmt: skip
        dev = [
            {"kind": "dev", "step": step, "seconds": step / 3, "loss": 1 + 10 / step, "n": 200,
             "rougeL": score(lineage, seed, "heldout") - 1000 / step, "exact_match": 20.0,
             "response_length": 12.0}
            for step in (50, 100, 200, 300)
        ]  # fmt: skip
        end = {"kind": "end", "step": 300, "seconds": 120.0, "tokens": 30_000, "device": "cpu",
               "processes": 1, "precision": "fp32", "skipped": 3}  # fmt: skip
        write_lines(folder / "metrics.jsonl", [*train, *dev, end])
        (folder / "card.md").write_text(f"---\nlicense: mit\n---\n# {lineage}\n")
        for name in sets:
            write_evaluation(root, lineage, seed, name, decoding, decoding_seeds)
    (root / "data/report").mkdir(parents=True)
    (root / "data/report/report.html").write_text("<!DOCTYPE html><p>rows: 1000</p>")
    write_json(root / "data/report/report.json", DATA)
    return {
        "experiment": "made-up",
        "title": "Made-up <b>results</b>",
        "description": "Numbers to be added up by hand & no more.",
        "models": {model: SIZES[model] for model in SIZES if model in used},
        "weights": {
            model: {"hub": f"made/{model}", "revision": "12ab" * 10}
            for model in SIZES
            if model in used
        },
        "tokenizer": {"hub": "made/tokenizer", "revision": "34cd" * 10},
        "chains": [
            {"label": label, "lineage": lineage}
            for (label, _, _), lineage in zip(chains, lineages, strict=True)
        ],
        "nodes": [list(node) for node in found],
        "teacher_cache": [],
        "sets": list(sets),
        "seeds": list(seeds),
        "decoding": decoding | {"max_new_tokens": 32},
        "dev_decoding": decoding | {"no_repeat_ngram": 0},
        "decoding_seeds": list(decoding_seeds),
        "targets": list(targets),
        "samples": samples,
        "judge": None,
        "training": {
            method: {"steps": 900, "betas": [0.9, 0.95], "learning_rate": 5e-6}
            for method in ("sft", "kd", "minillm")
        },
        "overrides": {"assistant": {"sft": {"rows": 1000}}},
    }


def write_evaluation(root, lineage, seed, name, decoding, decoding_seeds):
    value = score(lineage, seed, name)
    folder = root / "evaluations" / lineage / f"seed{seed}" / name
    texts = ["the answer", ODD, ""]
    rows = [
        {"id": 7 * row, "instruction": f"Do {row} <now>", "input": "" if row % 2 else "with input",
         "references": ["the answer", "an answer"][: 1 + row % 2],
         "outputs": [
             {"seed": s, "text": texts[row % 3], "tokens": 12, "finished": row % 3 != 1,
              "rougeL": value + (3 if row % 2 else -3),
              "exact_match": value / 2 + (3 if row % 2 else -3)}
             for s in decoding_seeds]}
        for row in range(6)
    ]  # fmt: skip
    write_lines(folder / "generations.jsonl", rows)
    measure = {"rougeL": value, "exact_match": value / 2}
    write_json(
        folder / "scores.json",
        {
            "lineage": lineage, "seed": seed, "set": name, "n": 6, "decoding": decoding,
            "decoding_seeds": list(decoding_seeds), "rouge_tokenizer": "standard",
            "cut_off": 0.25, "response_tokens": {"mean": 12.1},
            "diversity": {
                **{f"distinct_{n}": {"mean": 10.0 * n, "by_seed": {}} for n in (1, 2, 4)},
                "self_bleu": {"mean": 55.5},
            },
            "scores": {
                key: {"mean": mean, "by_seed": {str(s): mean for s in decoding_seeds}}
                for key, mean in measure.items()
            },
        },
    )  # fmt: skip
    write_lines(
        folder / "metrics.jsonl", [{"kind": "end", "seconds": 30.0, "tokens": 500, "device": "cpu"}]
    )
    write_json(folder / "likelihoods/likelihoods.json", likelihoods(lineage, seed, name))
    write_lines(folder / "likelihoods/prompts.jsonl", [{"id": 7 * row} for row in range(6)])
    write_lines(
        folder / "likelihoods/metrics.jsonl",
        [{"kind": "end", "seconds": 6.0, "tokens": 50, "device": "cpu"}],
    )


def likelihoods(lineage, seed, name):
    """As the stage of this name writes them: a teacher only where there is one."""
    hops = split(lineage)
    against = {
        "own": {"teacher_perplexity": 3.5, "reverse_kl": 0.25 * len(hops), "forward_kl": 0.5},
        "teacher": {"forward_kl": 0.75},
        "exposure_bias": {"excess_accumulated_error": 12.5},
    }
    return {
        "lineage": lineage, "seed": seed, "set": name, "n": 6,
        "references": {"loss": 1.5, "perplexity": 4.4817, "calibration_error": 0.125},
        **({role: against for role in ("direct", "first")} if len(hops) > 1 else {}),
    }  # fmt: skip


def run(root, spec):
    """Run the stage as the rule does, all parts of the report; returns the folder."""
    inputs = {
        "models": [root / "models"],
        "evaluations": [root / "evaluations"],
        "teachers": [root / "teachers"],
        "data_report": [root / "data/report/report.json"],
    }
    build.run(Stage(spec, "", inputs, {"site": root / "report"}))
    return root / "report"


TARGETS = [
    {"source": "A paper, table 1", "scores": {"teacher-sft": {"heldout": 96.5}}},
    {"source": "A study", "scores": {"teacher-sft__student-minillm": {"heldout": 77.0}}},
]
SHAPES = {
    "one seed, no assistant": ([DIRECT], {}),
    "two sets, two seeds": (
        [DIRECT, BY_KD, THROUGH],
        {"seeds": (1, 2), "sets": ("heldout", "other")},
    ),
    "deep, three seeds": ([THROUGH, DEEP], {"seeds": (1, 2, 3), "targets": TARGETS}),
    "one prompt, one decoding seed": ([BY_KD], {"samples": 1, "decoding_seeds": (10,)}),
    "study, five sets": (
        STUDY,
        {"sets": ("dolly", "self-instruct", "vicuna", "sni", "unni"), "samples": 1},
    ),
    "no samples": ([DIRECT], {"samples": 0}),
}


# four chains of depth two to four, two seeds, two sets, targets, all six prompts as samples
FULL = ([DIRECT, BY_KD, THROUGH, DEEP], (1, 2), ("heldout", "other"), TARGETS, 6)


def site_of(root, *arguments, **options):
    """Make up results below `root` and the report on them."""
    spec = make(root, *arguments, **options)
    return SimpleNamespace(root=root, spec=spec, report=run(root, spec))


def full_site(factory):
    """The site of `FULL`, which the files of tests share; tests must not change it."""

    def write(root):
        (root / "spec.json").write_text(json.dumps(site_of(root, *FULL).spec))

    root = made_once(factory, "full_report", write)
    spec = json.loads((root / "spec.json").read_text())
    return SimpleNamespace(root=root, spec=spec, report=root / "report")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return full_site(tmp_path_factory)


@pytest.fixture(scope="module")
def shaped(tmp_path_factory):
    """A function that returns the site of a shape of experiment, made once."""

    @functools.cache
    def made(shape):
        chains, options = SHAPES[shape]
        return site_of(tmp_path_factory.mktemp("shape"), chains, **options)

    return made


def rows_of(text, **wanted):
    found = csv.DictReader(io.StringIO(text))
    return [row for row in found if all(row[key] == value for key, value in wanted.items())]


def test_import_needs_no_torch():
    code = "import sys, takd.report.build; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "src")})


def test_csv_holds_the_numbers_computed_by_hand(full):
    text = (full.report / "results.csv").read_text()
    (row,) = rows_of(text, lineage="teacher-sft__student-minillm", set="heldout")
    # seeds 1 and 2: 78.0 and 78.5
    assert float(row["rougeL"]) == pytest.approx(78.25)
    assert float(row["rougeL_se_training_seeds"]) == pytest.approx(0.25)
    assert float(row["rougeL_se_decoding_seeds"]) == 0
    assert float(row["exact_match"]) == pytest.approx(39.125)
    # per prompt 78.25 ± 3, three of each: sd = 3 sqrt(6/5), over sqrt(6)
    assert float(row["rougeL_se_prompts"]) == pytest.approx(3 / 5**0.5, abs=1e-4)
    # Cochran and Cox: variances 1.8 and 1/16, t of 5 and of 1 degree of freedom
    half = (1.8 * 2.57058 + 12.7062 / 16) / (1.8 + 1 / 16) ** 0.5
    assert float(row["rougeL_low"]) == pytest.approx(78.25 - half, abs=1e-3)
    assert float(row["rougeL_high"]) == pytest.approx(78.25 + half, abs=1e-3)
    assert 75 < float(row["rougeL_prompts_low"]) < 77
    # the supervised student has 70.0 for both seeds: 8.0 and 8.5 on every prompt
    assert float(row["gain_over_sft"]) == pytest.approx(8.25)
    assert float(row["gain_over_sft_low"]) == pytest.approx(8.25 - 12.7062 / 4, abs=1e-3)
    assert float(row["gain_over_sft_prompts_low"]) == pytest.approx(8.25)
    # of 64 ways to choose the signs of six equal differences two reach them: 1/32, times the family of seven
    assert float(row["gain_over_sft_p (Holm)"]) == pytest.approx(7 / 32, rel=0.15)
    assert row["gain_over_sft_n"] == "2" and row["gain_over_sft_significant"] == ""
    assert row["gain_over_direct"] == ""
    assert row["published_1"] == "" and float(row["published_2"]) == 77.0
    assert float(row["published_2_difference"]) == pytest.approx(1.25)
    assert row["published_2_in_interval"] == "True"
    assert (row["label"], row["chain"], row["methods"]) == ("2.D", "teacher → student", "minillm")
    assert (
        row["n_training_seeds"] == "2" and row["prompts"] == "6" and row["training_minutes"] == "2"
    )
    (row,) = rows_of(text, lineage=of_chain(*THROUGH[1:]), set="other")
    # 80.0 and 80.5 less 40; straight from the teacher: 78.0 and 78.5 less 40
    assert float(row["rougeL"]) == pytest.approx(40.25)
    assert float(row["gain_over_direct"]) == pytest.approx(2.0)
    assert float(row["gain_over_direct_se_training_seeds"]) == 0
    (row,) = rows_of(text, lineage="teacher-sft", set="heldout")
    assert row["role"] == "teacher" and row["gain_over_sft"] == ""
    assert row["rougeL_se_training_seeds"] == "" and row["rougeL_low"] == row["rougeL_prompts_low"]
    assert float(row["published_1_difference"]) == pytest.approx(-1.5)


def test_every_difference_stands_in_a_csv(full):
    text = (full.report / "differences.csv").read_text()
    lines = rows_of(text, set="other", question="method", measure="rougeL")
    (row,) = [row for row in lines if row["ours"] == of_chain(*BY_KD[1:])]
    assert row["theirs"] == of_chain(*DIRECT[1:]) and row["n_training_seeds"] == "2"
    # 0.5 against 8.0 above the same start, in both trainings and on all prompts
    assert (row["difference"], row["difference_low"], row["family"]) == ("-7.5", "-7.5", "2")
    assert float(row["p (Holm)"]) == pytest.approx(2 / 32, rel=0.15) and row["significant"] == ""


def test_every_lineage_stands_once_per_set_and_under_its_own_chain(full):
    lines = rows_of((full.report / "results.csv").read_text())
    lineages = {lineage for lineage, _ in map(tuple, full.spec["nodes"])}
    assert sorted((r["lineage"], r["set"]) for r in lines) == sorted(
        (lineage, name) for lineage in lineages for name in full.spec["sets"]
    )
    results = read(full.spec, full.root / "models", full.root / "evaluations")
    found = [(group.title, [row.lineage for row in group.rows]) for group in
             score_tables.main_table(results, "other").groups]  # fmt: skip
    assert [title for title, _ in found] == ["Top teacher", "SFT baselines", "Chains", "Assistants"]
    assert sorted(lineage for _, rows in found for lineage in rows) == sorted(lineages)
    assert dict(found)["Chains"] == [of_chain(*each[1:]) for each in (DIRECT, BY_KD, THROUGH, DEEP)]


def test_models_that_answered_other_prompts_are_not_compared(tmp_path):
    spec = make(tmp_path, [DIRECT])
    file = tmp_path / "evaluations/teacher-sft/seed1/heldout/generations.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write_lines(file, [rows[0] | {"id": 99}, *rows[1:]])
    with pytest.raises(
        InputError, match=r"teacher-sft.* holds other prompts than those of student-sft"
    ):
        read(spec, tmp_path / "models", tmp_path / "evaluations")
    write_lines(file, [rows[0] | {"outputs": rows[0]["outputs"][:1]}, *rows[1:]])
    with pytest.raises(InputError, match="prompt 0: has 1 answers, expected 2"):
        read(spec, tmp_path / "models", tmp_path / "evaluations")


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_experiment_gives_a_whole_site(shape, shaped):
    spec, site = shaped(shape).spec, shaped(shape).report
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    models = {f"models/{lineage}.html" for lineage, _ in spec["nodes"]}
    # these need a budget or exact divergences, which made-up results do not have
    absent = {"flops", "exact"}
    drawings = {f"{plot.name}.svg" for plot in PLOTS if plot.name not in absent}
    drawings |= {"quality.csv", "learning.csv"}
    shown = {
        name.partition("#")[0]
        for name in re.findall(r'href="([^"]+)" download', (site / "index.html").read_text())
    }
    assert shown == files - {*PAGES, *models, REPORT}
    assert files == {*PAGES, *build.FILES, build.PARQUET, *drawings, *models, REPORT}
    for path in site.glob("*.svg"):
        assert "<text" in path.read_text(), f"{path.name}: text is not text"
        ElementTree.parse(path)
    # every link leads to a file of the site, and to an element where it names one that no script makes
    pages_of = {name: (site / name).read_text() for name in files if name.endswith(".html")}
    ids = {name: set(re.findall(r'\bid="([^"]+)"', page)) for name, page in pages_of.items()}
    for name, page in sorted(pages_of.items()):
        assert not re.search(r"""(?:src|href|action|data)\s*=\s*["']?(https?:|//)""", page), name
        assert "@import" not in page and "url(http" not in page
        for link in set(re.findall(r'<a [^>]*href="([^"]+)"', page)):
            file, _, anchor = link.partition("#")
            target = (
                posixpath.normpath(posixpath.join(posixpath.dirname(name), file)) if file else name
            )
            assert target in files, (name, link)
            scripted = target in ("learning.html", "generations.html")
            assert not anchor or scripted or anchor in ids[target], (name, link)


def test_the_same_results_give_the_same_bytes(full, tmp_path):
    again = site_of(tmp_path, *FULL).report
    for path in full.report.rglob("*.*"):
        assert (again / path.relative_to(full.report)).read_bytes() == path.read_bytes(), path.name


def test_texts_of_models_are_escaped_and_made_visible(full):
    page = (full.report / "generations.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert "Do 0 &lt;now&gt;" in page and "naïve" in page
    assert "\x00" not in page and "␀" in page and "⟨U+D83D⟩" in page and "⟨U+202E⟩" in page
    assert "(empty)" in page and "cut off after 12 tokens" in page
    assert "Made-up &lt;b&gt;results&lt;/b&gt;" in (full.report / "results.html").read_text()
    assert environment.visible("a\tb\n\x7f") == "a\tb\n⟨U+007F⟩"


def test_samples_are_spaced_evenly_over_the_set(shaped):
    deep = shaped("deep, three seeds")
    results = read(deep.spec, deep.root / "models", deep.root / "evaluations")
    assert list(results.samples["heldout"]) == [0, 14, 28]
    assert len(results.samples["heldout"][14]) == len(deep.spec["nodes"])


def test_costs_add_up(full):
    lines = rows_of((full.report / "costs.csv").read_text())
    trained = sum(float(r["minutes"]) for r in lines if r["stage"] == "training")
    scored = sum(float(r["minutes"]) for r in lines if r["stage"] != "training")
    count = len(full.spec["nodes"])
    skipped = [int(r["skipped"]) for r in lines if r["stage"] == "training"]
    assert sum(skipped) == 3 * count
    assert trained == pytest.approx(2.0 * count) and scored == pytest.approx(0.6 * 2 * count)
    assert f">{trained + scored:.1f}</td>" in (full.report / "costs.html").read_text()


def test_later_line_of_a_resumed_log_holds(tmp_path):
    spec = make(tmp_path, [DIRECT])
    log = tmp_path / "models/teacher-sft/seed1/metrics.jsonl"
    *rows, end = map(json.loads, log.read_text().splitlines())
    write_lines(log, [*rows, {"kind": "train", "step": 10, "loss": 123.0}, end])
    model = read(spec, tmp_path / "models", tmp_path / "evaluations").of("teacher-sft")[0]
    assert [row["step"] for row in model.train] == list(range(10, 301, 10))
    assert model.train[0]["loss"] == 123.0 and wall_minutes(model.end) == 2.0


def test_missing_or_foreign_files_are_named(tmp_path):
    spec = make(tmp_path, [DIRECT])
    folder = tmp_path / "evaluations/teacher-sft/seed1/heldout"
    scores = json.loads((folder / "scores.json").read_text())
    write_json(folder / "scores.json", scores | {"seed": 5})
    with pytest.raises(InputError, match=r"scores\.json: is of lineage teacher-sft, seed 5"):
        run(tmp_path, spec)
    (folder / "scores.json").unlink()
    with pytest.raises(InputError, match=r"heldout/scores\.json: not found"):
        run(tmp_path, spec)


def test_a_known_number_in_the_browser_and_sorting(full):
    with browser() as started:
        order = []

        def sort(page):
            scores = "#scores-heldout tr[data-lineage] td:nth-child(2)"
            for _ in range(3):
                page.click("#scores-heldout button:has-text('ROUGE-L') >> nth=0")
                order.append(
                    page.eval_on_selector_all(scores, "all => all.map(c => +c.dataset.value)")
                )

        seen = visit(started, full.report / "results.html", sort)
        assert "78.2\n74.3 to 82.2" in seen.text and "+8.2\n+5.1 to +11.4\n" in seen.text
        down, up, back = order
        assert down == sorted(back, reverse=True) and up == sorted(back) and back not in (down, up)
        assert len(back) == len({lineage for lineage, _ in full.spec["nodes"]})


def test_no_text_of_a_figure_is_cut_off(full, shaped):
    study = shaped("study, five sets").report
    outside = """() => {
        const box = document.documentElement.getBoundingClientRect();
        return [...document.querySelectorAll("text")].filter((text) => {
            const found = text.getBoundingClientRect();
            return found.left < box.left || found.right > box.right || found.bottom > box.bottom;
        }).map((text) => text.textContent);
    }"""
    with browser() as started:
        page = started.new_page(viewport={"width": 1280, "height": 900})
        drawings = [path for site in (full.report, study) for path in site.glob("*.svg")]
        for path in drawings:
            page.goto(path.as_uri())
            assert (path.name, page.evaluate(outside)) == (path.name, [])
        page.close()
    assert {path.name for path in drawings} >= {"forest.svg", "quality.svg", "learning.svg"}


def test_decoding_is_said_in_words(full):
    assert (
        "sampled at temperature 1.0, no top-k, no top-p"
        in (full.report / "results.html").read_text()
    )
    assert captions.decoding({"sample": False, "no_repeat_ngram": 0}) == "greedy, repeats allowed"


SNAKEFILE = """
import json, sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(workflow.basedir)
PACKAGE = Path("src/takd")
sys.path.insert(0, str(ROOT / "src"))
from takd.experiment.lineage import Node
from takd.runtime.code_digest import code_digest
from takd.runtime.digests import canonical_json

SETTINGS = json.loads((ROOT / "spec.json").read_text())
EXPERIMENT = SimpleNamespace(
    name="made-up",
    nodes=[Node(*node) for node in SETTINGS["nodes"]],
    trainings=[Node(*node) for node in SETTINGS["nodes"]],
    sets=SETTINGS["sets"],
    teacher_cache=[],
    teacher_logs=[],
)
specs = SimpleNamespace(report=lambda experiment: SETTINGS)
config["experiment"] = "made-up"


pathvars:
    results="results/made-up",
    logs="logs/made-up",


def parameters(stage, *modules, **own):
    spec = lambda wildcards: canonical_json(SETTINGS)
    return {"spec": spec, "code": code_digest(*modules), "outputs": written, **own}


def written(wildcards, output):
    return " ".join(f"--output {name}={path}" for name, path in output.items())


def below_results(*names, **files):
    paths = {**{name: name for name in names}, **files}
    return " ".join(f"--input {name}=results/made-up/{path}" for name, path in paths.items())


def command(script):
    options = "--spec {params.spec:q} --code {params.code} {params.inputs} {params.outputs}"
    return f"python3 workflow/scripts/{script}.py {options} 2> {{log:q}}"


READ = [f"likelihoods/{name}" for name in ("likelihoods.json", "prompts.jsonl", "metrics.jsonl")]
MEASURED = ["scores.json", "generations.jsonl", "metrics.jsonl", *READ]
MODEL = "<results>/models/{node.lineage}/seed{node.seed}"
MANIFEST, LOG, CARD = (f"{MODEL}/{name}" for name in ("manifest.json", "metrics.jsonl", "card.md"))
SCORES = "<results>/evaluations/{node.lineage}/seed{node.seed}/{set}/{file}"


def of_nodes(pattern, attribute="nodes", **more):
    return collect(pattern, node=getattr(EXPERIMENT, attribute), **more)


include: "rules/report.smk"


rule all:
    default_target: True
    input:
        SITE,
"""


def test_snakemake_report_opens_offline_and_shows_a_known_number(tmp_path):
    for name in ("src", "workflow", "rules", "envs"):
        (tmp_path / name).symlink_to(ROOT / name)
    spec = make(tmp_path / "results/made-up", [DIRECT, THROUGH], (1, 2), ("held_out",))
    write_json(tmp_path / "spec.json", spec)
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    # what rules/common.smk does for the real workflow: stages run under the interpreter of Snakemake
    path = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    Project(tmp_path).run(env=path)
    Project(tmp_path).run("--report", "report.zip", env=path)
    zipfile.ZipFile(tmp_path / "report.zip").extractall(tmp_path / "unzipped")
    seen = {}

    def walk(page):
        """As a reader does: the first page, then each page that it links to, within Snakemake's own page."""
        assert page.locator(".system-message, .problematic").count() == 0
        assert page.evaluate("Object.values(results).map((r) => r.job_properties.params)") == [""]
        seen.update(read_site(page, pages.NAV))

    with browser() as started:
        shown = visit(started, next((tmp_path / "unzipped").rglob("report.html")), walk)
        assert (shown.external, shown.complaints) == ([], [])
    assert "made-up" in seen["provenance.html"] and "Does the assistant help?" in seen["index.html"]
    assert "74.3 to 82.2" in seen["results.html"] and "held_out" in seen["results.html"]
    (index,) = (tmp_path / "unzipped").rglob("data/raw/*/index.html")
    assert {path.name for path in index.parent.glob("*.html")} == set(PAGES)


def test_sizes_of_models_are_short():
    assert size_text(1.56e9) == "1.56B" and size_text(760e6) == "760M"
    assert size_text(99_700_000) == "99.7M" and size_text(2e9) == "2B"
    assert size_text(14_300_000) == "14.3M" and size_text(153_000) == "153K"
