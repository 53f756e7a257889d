"""The report's words: sentences against results whose truth is known, commands that are run, hostile names."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from sealing import write_lines
from test_report import BY_KD, DATA, DEEP, DIRECT, STUDY, TARGETS, THROUGH, make, run

from takd.analysis import definitions, deviations, measures
from takd.analysis.results import Results, read
from takd.experiment.lineage import of_chain
from takd.report import overview, table
from takd.runtime.records import REPORT

ROOT = Path(__file__).resolve().parents[1]
STRAIGHT, LONGER, KD = (of_chain(*chain[1:]) for chain in (DIRECT, THROUGH, BY_KD))


def results_of(root: Path, spec: dict) -> Results:
    return read(spec, root / "models", root / "evaluations")


def said(results: Results, title: str, data: dict = DATA) -> str:
    """The sentences of one point of the overview."""
    found = overview.points(results, table.build(results), data)
    return " ".join(next(point.sentences for point in found if point.title.startswith(title)))


def rescore(root: Path, spec: dict, truth, prompts: int = 60) -> Results:
    """Give each model scores on more prompts: `truth(lineage, seed, set)` plus the prompt’s own part and noise."""
    for lineage, seed in spec["nodes"]:
        for name in spec["sets"]:
            noise = random.Random(f"{lineage} {seed} {name}")
            folder = root / "evaluations" / lineage / f"seed{seed}" / name
            (row, *_) = map(json.loads, (folder / "generations.jsonl").read_text().splitlines())
            rows, part = [], 0.0
            for prompt in range(prompts):
                # each draw once up and once down: means are the truth, whatever chance says
                part = noise.uniform(-2, 2) if prompt % 2 == 0 else -part
                value = truth(lineage, seed, name) + 5 * (prompt // 2 % 3) + part
                outputs = [output | {"rougeL": value} for output in row["outputs"]]
                rows.append(row | {"id": prompt, "outputs": outputs})
            write_lines(folder / "generations.jsonl", rows)
    return results_of(root, spec)


def test_differences_that_are_there_are_told_and_others_counted(tmp_path):
    spec = make(tmp_path, [DIRECT, THROUGH], sets=("heldout", "other"))

    def truth(lineage, seed, name):
        return {LONGER: 38.0, "teacher-sft": 60.0}.get(lineage, 30.0)

    found = said(rescore(tmp_path, spec, truth), "What was found")
    assert "Distilled against trained on labels alone, 3 comparisons: higher in 1, no" in found
    assert "no difference told in 2 (each for the one training made here)" in found
    name = "3.B teacher → assistant → student (minillm)"
    most = re.search(r"Most higher: (.*?), (\+[\d.]+), (.*?) \(95 % interval from (.*?) to", found)
    assert most and most[1] == name and most[3] == "higher for the one training made here"
    assert float(most[2]) == pytest.approx(8, abs=0.8) and 6.5 < float(most[4]) < 8
    assert "Most lower" not in found
    # one comparison is told in full
    assert (
        f"straight from the teacher: {name} against 2.D teacher → student (minillm) +8." in found
        or f"{name} against 2.D teacher → student (minillm) +7." in found
    )
    assert "the best of 2 chains to student is 3.B" in found and "has ROUGE-L 6" in found


def test_where_nothing_differs_nothing_is_told(tmp_path):
    spec = make(tmp_path, STUDY, sets=("dolly", "vicuna"))
    results = rescore(tmp_path, spec, lambda *_: 30.0)
    found = said(results, "What was found")
    assert found.count("no difference told in any; the estimates are ") == 3
    assert not re.search("Most|higher|lower", found)
    others = said(results, "On the other sets")
    assert "trained on labels alone, 10 comparisons, no difference told in any;" in others
    assert "reverse" not in others  # nothing that could be turned round


def test_several_trainings_that_disagree_are_told_of_these_models_alone(tmp_path):
    spec = make(tmp_path, [DIRECT], (1, 2, 3))
    gains = {1: 1.0, 2: 9.0, 3: 2.0}
    found = said(
        rescore(tmp_path, spec, lambda line, seed, _: 30 + gains[seed] * (line == STRAIGHT)),
        "What was found",
    )
    assert "higher for the 3 trainings made here" in found
    assert "but for others no difference can be told" in found
    agree = rescore(tmp_path, spec, lambda line, seed, _: 30 + 8.0 * (line == STRAIGHT))
    assert re.search(r"\+[78]\.\d, higher \(95 % interval from \+", said(agree, "What was found"))


def test_a_tally_keeps_the_recipe_apart_from_the_models_made_here(tmp_path):
    spec = make(tmp_path, [DIRECT, THROUGH, BY_KD], (1, 2, 3))
    gain = {LONGER: (8, 8, 8), STRAIGHT: (1, 12, 2), KD: (-6, -6, -6)}
    results = rescore(
        tmp_path, spec, lambda line, seed, _: 30 + gain.get(line, (0, 0, 0))[seed - 1]
    )
    found = said(results, "What was found")
    assert (
        "5 comparisons: higher in 1, lower in 1, higher for the trainings made here alone"
        not in found
    )
    assert re.search(
        r"\d comparisons: higher in 1, lower in 1, higher in 1 for the trainings made here alone,"
        r" no difference told in \d",
        found,
    )
    assert "Most lower: 2.D teacher → student (kd), −" in found


def test_a_verdict_that_turns_round_on_another_set_is_said(tmp_path):
    spec = make(tmp_path, [DIRECT, THROUGH], sets=("heldout", "other"))

    def truth(lineage, seed, name):
        return 30 + (lineage == LONGER) * (8 if name == "heldout" else -8)

    results = rescore(tmp_path, spec, truth)
    others = said(results, "On the other sets")
    assert (
        "Of what heldout tells, 2 verdicts turned round elsewhere, the first on other: 3.B"
        in others
    )
    assert "is not the best on other" in others
    same = rescore(tmp_path, spec, lambda line, *_: 30 + 8 * (line == LONGER))
    others = said(same, "On the other sets")
    assert "No verdict there is the reverse of one on heldout." in others
    assert "is also the best on other" in others


def test_one_chain_with_one_seed(tmp_path):
    spec = make(tmp_path, [DIRECT])
    results = results_of(tmp_path, spec)
    titles = [point.title for point in overview.points(results, table.build(results), DATA)]
    assert titles == [
        "What was trained",
        "What was found, on heldout",
        "What the models say of their teachers",
        "What it cost",
        "What it cannot say",
    ]
    trained = said(results, "What was trained")
    assert "the teacher (1.4M parameters) learned from labels" in trained
    assert "passed down 1 chain (1 straight from teacher to student)" in trained
    assert "3 models and, with training seed 1, 3 trainings, on 990 rows of made <up>." in trained
    assert "heldout (6) with decoding seeds 10 and 20 (sampled at temperature 1.0" in trained
    assert "With one training seed" in said(results, "What it cannot say")
    assert "No two models here answer: through assistants" in said(results, "What it cannot say")
    single = said(rescore(tmp_path, spec, lambda *_: 30.0, prompts=1), "What was found")
    assert single.endswith("one prompt tells of no other.")


def test_costs_are_device_time(tmp_path):
    spec = make(tmp_path, [DIRECT, THROUGH])
    results = results_of(tmp_path, spec)
    end = {"seconds": 1800.0, "tokens": 2_000_000, "processes": 4}
    end |= {"device": "Tesla V100", "precision": "fp16"}
    models = {node: replace(model, end=end) for node, model in results.models.items()}
    found = said(replace(results, models=models), "What it cost")
    # six trainings of half an hour on four cards; three of them sft
    assert "Training took 12.0 GPU hours (sft 50 %, minillm 50 %) and 12M tokens" in found
    assert "evaluation 3.6 CPU process minutes" in found  # six of 30 s and 6 s
    assert found.endswith("trained on 4 × Tesla V100, fp16.")


def test_published_numbers_are_held_against_the_intervals(tmp_path):
    spec = make(tmp_path, [DIRECT], targets=TARGETS)
    found = said(results_of(tmp_path, spec), "Against published")
    assert "A study, teacher → student (minillm) on heldout: 78.0 here, 77.0 there, inside" in found
    scores = {"teacher-sft": {"heldout": 95.0}, STRAIGHT: {"heldout": 20.0}}
    targets = [{"source": "Two", "scores": scores}]
    found = said(results_of(tmp_path, spec | {"targets": targets}), "Against published")
    assert found == (
        "Of the 2 numbers in Two, our intervals hold 1; 1 differs by more, most teacher → student (minillm)"
        " on heldout: 78.0 here, 20.0 there."
    )


def test_what_the_models_say_of_their_teachers_is_a_mean_without_a_verdict(tmp_path):
    results = results_of(tmp_path, make(tmp_path, [DIRECT, THROUGH], (1, 2)))
    found = said(results, "What the models say")
    # made results: 0.25 a hop
    assert "reverse KL to the first teacher 0.500 to 0.750 nats a token, exposure" in found
    assert (
        "(ExAccErr) 12.5 %, calibration error on the references 0.125 (labels alone: 0.125)"
        in found
    )
    assert "carry no test" in found


PUBLISHED = {
    "sets": ["a", "b", "c", "d", "e"],
    "decoding_seeds": [10, 20, 30, 40, 50],
    "decoding": {"sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
                 "no_repeat_ngram": 6, "max_new_tokens": 256},
    "training": {"sft": {}, "kd": {}, "minillm": dict(deviations.MINILLM)},
    "overrides": {},
}  # fmt: skip
CORPUS = {"splits": DATA["splits"]}


def on_gpu(results: Results) -> Results:
    end = {"device": "NVIDIA H100", "seconds": 1.0}
    return replace(results, models={n: replace(m, end=end) for n, m in results.models.items()})


def test_nothing_departs_where_the_settings_are_the_papers(tmp_path):
    made = on_gpu(results_of(tmp_path, make(tmp_path, [DIRECT])))
    results = replace(made, spec=made.spec | PUBLISHED)
    assert deviations.departures(results, CORPUS) == []
    results = replace(made, spec=results.spec | {"seeds": [1, 2, 3]}, evaluations=made.evaluations)
    assert deviations.limits(replace(results, spec=results.spec | {"sets": ["heldout"]}), CORPUS)[
        -1
    ].endswith("(arXiv 2306.08543): 1 evaluation set, not 5.")


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"sets": ["a"]}, "1 evaluation set, not 5"),
        ({"decoding_seeds": [1, 2]}, "2 decoding seeds, not 5"),
        ({"decoding": PUBLISHED["decoding"] | {"temperature": 0.7}}, "temperature 0.7, not 1"),
        ({"decoding": PUBLISHED["decoding"] | {"top_p": 0.9}}, "top-p 0.9, not 1"),
        ({"decoding": PUBLISHED["decoding"] | {"top_k": 5}}, "top-k 5, not all tokens"),
        ({"decoding": PUBLISHED["decoding"] | {"sample": False}}, "greedy decoding, not sampling"),
        ({"decoding": PUBLISHED["decoding"] | {"no_repeat_ngram": 0}}, "6-grams may repeat, which"),
        ({"decoding": PUBLISHED["decoding"] | {"max_new_tokens": 32}}, "answers of at most 32"),
        ({"weights": {"teacher": {"gguf": "x"}, "student": {"hub": "y"}}}, "teacher starts from a GGUF"),
        ({"weights": {"teacher": {"scratch": {}}, "student": {"scratch": {}}}}, "all models start from random"),
        ({"overrides": {"student": {"minillm": {"teacher_mix": 0}}}}, "MiniLLM with teacher_mix 0 (not 0.2)"),
        ({"overrides": {"teacher": {"sft": {"lora": {"rank": 4}}}}}, "LoRA, not all weights, for teacher by sft"),
    ],
)  # fmt: skip
def test_each_departure_is_said_alone(changed, words, tmp_path):
    made = on_gpu(results_of(tmp_path, make(tmp_path, [DIRECT])))
    (only,) = deviations.departures(replace(made, spec=made.spec | PUBLISHED | changed), CORPUS)
    assert only.startswith(words)


def test_departures_that_data_and_devices_show(tmp_path):
    made = results_of(tmp_path, make(tmp_path, [DIRECT]))
    results = replace(made, spec=made.spec | PUBLISHED)
    assert deviations.departures(results, CORPUS) == ["trained on a CPU"]
    train = DATA["splits"]["train"] | {"source": "demo train (seed 1)"}
    found = deviations.departures(on_gpu(results), {"splits": {"train": train}})
    assert found[0] == "trained on made-up rows, not on Dolly" and "language-modelling" in found[1]
    leak = {"split": "train", "other": "heldout", "rows": 4, "other_rows": 3, "examples": []}
    report = CORPUS | {"leaks": [leak, leak | {"other": "dev"}, leak | {"other_rows": 0}]}
    (words,) = deviations.leaks(report)
    assert words == "Models were trained on some prompts that they answer: 3 prompts of heldout."
    dropped = DATA["splits"]["train"] | {"counts": {"rows": 9, "kept": 5, "dropped_leaks": 4}}
    assert deviations.leaks(report | {"splits": {"train": dropped}}) == []


def test_other_measures_stand_below_the_scores_with_their_direction(tmp_path):
    page = (run(tmp_path, make(tmp_path, [DIRECT, DEEP], (1, 2))) / "results.html").read_text()
    part = page[page.index('data-measures="heldout"') :]
    part = part[: part.index("</table>")]
    heads = re.findall(
        r'<th scope="col" class="num measure" title="([^"]+)"><button[^>]*>([^<]+)', part
    )
    titles = [title for _, title in heads]
    assert "ROUGE-L" not in titles and {"Reverse KL to its teacher", "Self-BLEU"} <= set(titles)
    (row,) = re.findall(rf'<tr data-lineage="{STRAIGHT}">(.*?)</tr>', part, re.S)
    values = re.findall(r'<td class="num" data-value="([^"]*)">([^<]*)', row)
    shown = dict(zip(titles, values, strict=True))
    assert shown["Reverse KL to its teacher"] == ("0.5", "0.500")
    assert shown["Distinct-2"] == ("20", "20.0") and shown["Self-BLEU"] == ("55.5", "55.5")
    (row,) = re.findall(r'<tr data-lineage="teacher-sft">(.*?)</tr>', part, re.S)
    assert '<td class="num" data-value="">–</td>' in row
    assert len(re.findall("↓ better", part)) == sum(
        m.better == "lower" and m.title in titles for m in measures.MEASURES
    )


def test_every_measure_has_a_definition_of_its_own():
    texts = [definitions.definition(measure) for measure in measures.MEASURES]
    assert len(set(texts)) == len(texts)
    assert set(definitions.DEFINITIONS) == {measure.name for measure in measures.MEASURES}


def test_overview_names_every_other_part(tmp_path):
    report = run(tmp_path, make(tmp_path, [DIRECT]))
    page = (report / "overview.html").read_text()
    for path in report.iterdir():
        if path.name == REPORT:  # for those who check the others
            continue
        assert (f"<code>{path.name}</code>" in page) == (path.name != "overview.html"), path.name
    assert "<svg" in page and not re.search(r"""(?:src|href)\s*=\s*["'][^#]""", page)
