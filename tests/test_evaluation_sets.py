"""Evaluation sets: limits on answers, expected counts and digests, several references, inputs, long prompts."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from test_data import SHORT, row, run_prepare, words, write  # noqa: F401 - `words` is a fixture
from test_experiment import GOOD, edit, read

from takd import __main__ as questions
from takd.data import filters, sources, summary
from takd.data.page import render
from takd.experiment import specs
from takd.experiment.experiment import load
from takd.runtime.digests import file_digest
from takd.runtime.errors import InputError
from takd.runtime.files import read_json
from takd.runtime.stage import Stage

ELEVEN = "one two three four five six seven eight nine ten eleven"
ROOT = Path(__file__).resolve().parents[1]


def numbers(source, **settings):
    """Row numbers of what a source gives, and of what its limits leave out."""
    left_out = []
    kept = [found.number for found in sources.rows({**source, **settings}, left_out.append)]
    return kept, [found.number for found in left_out]


def digest(records):
    """`rows_sha256` as docs/data.md says it: by hand, from what is in the file."""
    lines = [
        json.dumps([r["instruction"], r["input"], r["output"]], separators=(",", ":")) + "\n"
        for r in records
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# lengths


@pytest.mark.parametrize(
    ("output", "length"),
    [
        (ELEVEN, 11),
        (ELEVEN.removesuffix(" eleven"), 10),
        (ELEVEN.replace(" ", "\n\n\t "), 11),
        (ELEVEN.replace(" ", "\u00a0"), 11),  # no-break spaces part words
        (f"  {ELEVEN} ", 11),
        (ELEVEN.replace(" eleven", " - eleven"), 12),  # a dash that stands alone
        (ELEVEN.replace("ten eleven", "ten-eleven, and"), 11),  # one that clings
        ("日本語の文には空白がない", 1),
        ("", 0),
        ([ELEVEN, "short"], 11),
        (["short", ELEVEN], 1),  # the first decides, as it is what training learns
        (["", " \n", ELEVEN], 11),  # but not a blank one
        ([" "], 0),
    ],
)
def test_words_are_what_white_space_parts_in_the_first_reference(tmp_path, output, length):
    source = write(tmp_path / "rows.jsonl", [row(output=output)])
    assert [filters.words(found) for found in sources.rows(source)] == [length]
    kept = [numbers(source, min_response_words=limit)[0] for limit in (length or 1, length + 1)]
    assert kept == [[0] if length else [], []]


def test_limits_are_included_and_rows_keep_their_numbers(tmp_path):
    outputs = ["x " * count for count in (5, 11, 3, 6, 10, 12)]
    source = write(tmp_path / "rows.jsonl", [row(output=output) for output in outputs])
    assert numbers(source) == ([0, 1, 2, 3, 4, 5], [])
    assert numbers(source, min_response_words=11) == ([1, 5], [0, 2, 3, 4])
    assert numbers(source, max_response_words=5) == ([0, 2], [1, 3, 4, 5])
    assert numbers(source, min_response_words=6, max_response_words=10) == ([3, 4], [0, 1, 2, 5])
    # a part is one of the source
    assert numbers(source, min_response_words=11, rows=[0, 3]) == ([1], [0, 2])
    assert numbers({"demo": {"part": "test", "rows": 5}}, min_response_words=99)[0] == []


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"min_response_words": 11}, "answers of 11 words or more"),
        ({"max_response_words": 5}, "answers of up to 5 words"),
        ({"min_response_words": 6, "max_response_words": 10}, "answers of 6 to 10 words"),
    ],
)
def test_the_data_report_says_the_limits(limits, says):
    assert sources.describe({"json": "a.jsonl", **limits}) == f"a.jsonl, {says}"
    demo = {"demo": {"part": "dev", "rows": 3}}
    assert sources.describe({**demo, **limits}) == f"demo dev (seed 1), {says}"


def test_rows_that_are_too_short_are_counted_and_named(tmp_path, words):  # noqa: F811
    records = [row(f"Say {i}.", output=ELEVEN if i % 3 else "Too short.") for i in range(9)]
    source = {**write(tmp_path / "rows.jsonl", records), "min_response_words": 11, "expect_rows": 6}
    dataset, manifest = run_prepare(tmp_path, words, "mine", source, max_length=200)
    assert dataset["id"] == [1, 2, 4, 5, 7, 8]
    counts = manifest["counts"]
    assert (counts["rows"], counts["kept"], counts["dropped_response_length"]) == (9, 6, 3)
    assert manifest["named"]["dropped_response_length"] == [0, 3, 6]

    outputs = {"report": tmp_path / "data.json", "page": tmp_path / "data.html"}
    train = write(tmp_path / "train.jsonl", [row("Say 3.", output="short")])
    run_prepare(tmp_path, words, "train", train)
    spec = {"splits": {"train": train, "dev": train, "mine": source}, "sets": ["mine"]}
    run_prepare(tmp_path, words, "dev", train)
    manifests = [tmp_path / "data" / name / "manifest.json" for name in spec["splits"]]
    summary.run(Stage(spec=spec, code="-", inputs={"data": manifests}, outputs=outputs))
    report = read_json(outputs["report"])
    assert report["splits"]["mine"]["dropped"] == 3
    page = render(report)
    assert "response too short or too long" in page and "answers of 11 words or more" in page
    hit = {(leak["split"], leak["other"]): leak["rows"] for leak in report["leaks"]}
    assert hit["train", "mine"] == 0, "row 3 of mine is not in the set"


def test_a_set_of_which_nothing_is_long_enough_is_refused(tmp_path, words):  # noqa: F811
    source = {**write(tmp_path / "rows.jsonl", [row(), row("Say more.")]), "min_response_words": 3}
    with pytest.raises(
        InputError, match=r"none of 2 rows is kept for 'mine'.* 2 answers of other l"
    ):
        run_prepare(tmp_path, words, "mine", source)


# counts and digests


def test_another_number_of_rows_is_refused_with_both(tmp_path):
    source = write(tmp_path / "s-ni.jsonl", [row(output=ELEVEN), row("Again."), row(output="x")])
    assert len(numbers(source, expect_rows=3)[0]) == 3
    assert numbers(source, expect_rows=1, min_response_words=11) == ([0], [1, 2])
    assert numbers(source, expect_rows=2, rows=[1, None]) == ([1, 2], [])
    for settings, found in (
        ({"expect_rows": 1694}, 3),
        ({"expect_rows": 2}, 3),
        ({"expect_rows": 3, "min_response_words": 11}, 1),
        ({"expect_rows": 3, "rows": [0, 2]}, 2),
    ):
        with pytest.raises(InputError) as refusal:
            numbers(source, **settings)
        says = f": there are {found} rows, but `expect_rows` of the experiment says"
        assert f"{says} {settings['expect_rows']}: " in str(refusal.value)
        assert str(refusal.value).startswith(f"{tmp_path}/s-ni.jsonl")


def test_the_digest_is_of_rows_and_not_of_how_they_are_written(tmp_path):
    records = [
        row("Où?", "là\u2028 \U0001f600", ["une", "", "deux"]),
        row("Say it.", "", ["It."]),
    ]
    wanted = digest(records)
    assert wanted != digest(records[::-1])
    plain = write(tmp_path / "plain.jsonl", records)
    assert len(numbers(plain, rows_sha256=wanted)[0]) == 2
    # as another program writes the same rows: not escaped, further keys, other order, text for a list of one
    other = tmp_path / "other.jsonl"
    lines = [
        json.dumps({"topic": 3, **dict(sorted(r.items())), "prompt": "x"}, ensure_ascii=False)
        for r in records
    ]
    lines[1] = '{"output": "It.", "input": null, "instruction": "Say it."}'
    other.write_text("\r\n\n".join(lines), encoding="utf-8")
    assert file_digest(other) != file_digest(tmp_path / "plain.jsonl")
    assert len(numbers({"json": str(other)}, rows_sha256=wanted)[0]) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"instruction": "Say More."},
        {"input": "out"},
        {"output": ["More"]},
        {"output": ["More.", "Much more."]},
    ],
)
def test_rows_that_differ_anywhere_are_refused_with_both_digests(tmp_path, change):
    records = [row("Say it.", "in", ["It.", "That."]), row("Say more.", "in", ["More."])]
    wanted, changed = digest(records), [records[0], {**records[1], **change}]
    source = write(tmp_path / "rows.jsonl", changed)
    says = f"its rows is {digest(changed)}, but `rows_sha256` of the experiment says {wanted}"
    with pytest.raises(InputError, match=says):
        numbers(source, rows_sha256=wanted)


def mine(**settings):
    """The experiment of test_experiment with a further set."""
    source = json.dumps({"json": "data/mine.jsonl", **settings})
    heldout = "    heldout: {demo: {part: test, rows: 10}}\n"
    return edit(heldout, f"{heldout}    mine: {source}\n", GOOD)


def test_a_file_with_another_digest_is_refused_when_the_workflow_is_planned(tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data/mine.jsonl"
    write(path, [row()])
    right, wrong = file_digest(path), "0" * 64
    known = specs.data(read(tmp_path, mine()), "mine")["source"]
    assert known == {"json": "data/mine.jsonl", "sha256": [right]}
    assert specs.data(read(tmp_path, mine(sha256=right)), "mine")["source"] == known
    says = f"data/mine.jsonl has the sha256 {right}, but the experiment says {wrong}"
    with pytest.raises(InputError, match=says):
        specs.data(read(tmp_path, mine(sha256=wrong)), "mine")
    path.unlink()  # planning needs no files
    assert specs.data(read(tmp_path, mine(sha256=right)), "mine")["source"] == known


def test_settings_of_a_set_reach_its_stage(tmp_path):
    settings = {"min_response_words": 11, "expect_rows": 80, "rows_sha256": "1" * 64}
    source = specs.data(read(tmp_path, mine(**settings)), "mine")["source"]
    assert {key: source[key] for key in settings} == settings


def test_a_command_prints_what_pins_the_rows(tmp_path, monkeypatch, capsys):
    """And goes on after a set that is not there or not as expected."""
    records = [row("Say it.", "", ["It."]), row("Say more.", "", [ELEVEN])]
    text = mine(min_response_words=11, expect_rows=80, rows_sha256="0" * 64)
    missing = "    missing: {json: data/missing.jsonl}\n"
    text = text.replace("    mine:", f"{missing}    mine:")
    read(tmp_path, text)
    for name in ("train", "mine"):
        write(tmp_path / f"data/{name}.jsonl", records)
    monkeypatch.setattr(questions, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert questions.main(["data", "--experiment", "mine"]) == 1
    said = capsys.readouterr()
    lines = dict(line.split(": ", 1) for line in said.out.splitlines())
    assert lines["mine"] == f"{{expect_rows: 1, rows_sha256: {digest(records[1:])}}}"
    assert lines["train"] == f"{{expect_rows: 2, rows_sha256: {digest(records)}}}"
    assert set(lines) == {"train", "dev", "heldout", "mine"}
    assert said.err.startswith("missing: data/missing.jsonl: ")


# what the sets of the paper look like


def test_references_inputs_and_long_prompts_of_a_set(tmp_path, words):  # noqa: F811
    """As S-NI has them: lists of references, long inputs; as Vicuna: no key `input`. No row is lost."""
    long = " ".join(["bino"] * 200)
    records = [
        {"topic": "t", **row("Say it.", long, ["bino bino", "", "bino"]), "prompt": "x"},
        {"instruction": "Say bino.", "category": "c", "output": "bino"},
        row("Say fe.", "fe", ["fe"]),
    ]
    source = {**write(tmp_path / "rows.jsonl", records), "expect_rows": 3}
    dataset, manifest = run_prepare(tmp_path, words, "s-ni", source)
    assert dataset["references"] == [["bino bino", "bino"], ["bino"], ["fe"]]
    assert dataset["input"] == [long, "", "fe"], "the text stays whole for whoever reads it"
    assert manifest["counts"]["shortened_prompts"] == 1 and manifest["named"] == {
        "shortened_prompts": [0],
        "blank_references": [0],
    }
    assert manifest["counts"]["kept"] == manifest["counts"]["rows"] == 3
    assert max(map(len, dataset["prompt_ids"])) <= 48
    # for training the same row is left out, and counted too
    dataset, manifest = run_prepare(tmp_path, words, "train", source)
    assert dataset["id"] == [1, 2]
    assert manifest["counts"]["dropped_prompt_too_long"] == 1
    assert manifest["named"]["dropped_prompt_too_long"] == [0]


PAPER = {"dolly": 500, "self-inst": 242, "vicuna": 80, "s-ni": 1694, "un-ni": 10_000}


@pytest.mark.parametrize("name", ["gpt2-dolly", "opt-dolly", "llama-dolly"])
def test_experiments_of_the_paper_name_its_sets_seeds_and_decoding(name, tmp_path):
    for folder in ("config", "workflow"):
        shutil.copytree(ROOT / folder, tmp_path / folder)  # where there are no data
    path = tmp_path / f"config/experiments/{name}.yaml"
    experiment = load(path, tmp_path)
    found = {set_: specs.data(experiment, set_) for set_ in experiment.sets}
    assert {set_: spec["source"]["expect_rows"] for set_, spec in found.items()} == PAPER
    # of the largest, the first 10,000 rows of a file at a known commit, no digest is published
    pinned = {set_ for set_, spec in found.items() if "rows_sha256" in spec["source"]}
    assert pinned == set(PAPER) - {"un-ni"}
    for spec in found.values():
        assert (spec["max_length"], spec["max_prompt_length"]) == (512, 256)
        assert spec["template"]["with_input"].startswith("Below is an instruction that describes a")
    report = specs.report(experiment)
    assert report["decoding_seeds"] == [10, 20, 30, 40, 50]
    wanted = {"sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 256}
    assert report["decoding"] == {**wanted, "no_repeat_ngram": 6}
    assert report["dev_decoding"] == {**wanted, "no_repeat_ngram": 0}
