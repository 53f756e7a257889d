"""From rows to token ids: sources, template, tokenizer, the stages that prepare data, and the data report."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow
import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from takd.data import corpus, prepare, sources, summary, tokenizer
from takd.data.arrow import dataset_of
from takd.data.page import render
from takd.data.template import fill
from takd.data.tokenise import Encoder
from takd.data.tokenizer import folder_digest
from takd.experiment import schema
from takd.runtime.code_digest import SOURCE
from takd.runtime.digests import file_digest
from takd.runtime.errors import InputError
from takd.runtime.files import read_json
from takd.runtime.stage import Stage

SHORT = {"with_input": "Q: {instruction}\n{input}\nA:", "without_input": "Q: {instruction}\nA:"}
WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("a", "e", "ino", "our")]


def row(instruction="Say it.", context="", output="It."):
    return {"instruction": instruction, "input": context, "output": output}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return {"json": str(path)}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer trained on a few made-up words: its manifest."""
    folder = tmp_path_factory.mktemp("tokenizer")
    records = [row(f"Say {word}.", " ".join(WORDS[i:]), word) for i, word in enumerate(WORDS)]
    return train_tokenizer(folder, write(folder / "rows.jsonl", records))


def train_tokenizer(folder, text, vocabulary=300):
    spec = {"source": {"train": {"vocabulary": vocabulary}}, "text": text, "template": SHORT}
    return run_tokenizer(folder, spec)


def run_tokenizer(folder, spec):
    outputs = {"tokenizer": folder / "tokenizer", "manifest": folder / "manifest.json"}
    tokenizer.run(Stage(spec=spec, code="-", outputs=outputs))
    return folder / "manifest.json"


def run_prepare(folder, manifest, split, source, **settings):
    """Run the data stage; the data set and its manifest."""
    spec = {"split": split, "source": source, "template": SHORT} | {"drop_duplicates": False}
    spec |= {"max_length": 64, "max_prompt_length": 48}
    if split == "corpus":
        spec = {"split": split, "source": source, "block_length": 64, "blocks": None}
    spec |= settings
    place = folder / "data" / split
    outputs = {"dataset": place / "dataset", "manifest": place / "manifest.json"}
    prepare.run(Stage(spec=spec, code="-", inputs={"tokenizer": [manifest]}, outputs=outputs))
    return load_from_disk(str(place / "dataset")), read_json(place / "manifest.json")


# sources


def test_lines_end_at_line_feeds_only_and_odd_characters_stay(tmp_path):
    path = tmp_path / "odd.jsonl"
    lines = [
        '\ufeff{"instruction": "a\u2028b\x85c\u2029", "output": "é 😀 {x} \\u0000"}\r\n',
        "\r\n",
        "   \n",
        '{"instruction": "i", "input": null, "output": ["one", "two"]}\n',
        '{"instruction": "i", "input": "in", "output": "", "more": 3}',
    ]
    path.write_bytes("".join(lines).encode())
    assert [row[:4] for row in sources.rows({"json": str(path)})] == [
        (0, "a\u2028b\x85c\u2029", "", ("é 😀 {x} \0",)),
        (1, "i", "", ("one", "two")),
        (2, "i", "in", ("",)),
    ]


GOOD = '{"instruction": "i", "output": "o"}\n'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"instruction": "i", "output": "o"', "not valid JSON"),
        ("instruction: i", "not valid JSON"),
        ("[1, 2]", "a list; every line has to be one JSON object"),
        ("7", "a number; every line"),
        ("[" * 100_000, "nested too deeply"),
        ('{"instruction": "i"}', "no key 'output'; its keys are 'instruction'"),
        ('{"prompt": "i", "output": "o"}', "no key 'instruction'; its keys are 'prompt', 'output'"),
        ("{}", "no key 'instruction'; its keys are none"),
        ('{"instruction": 3, "output": "o"}', "'instruction' is a number; it has to be a text"),
        ('{"instruction": null, "output": "o"}', "'instruction' is null"),
        ('{"instruction": "i", "input": ["x"], "output": "o"}', "'input' is a list"),
        ('{"instruction": "i", "output": null}', "'output' is null"),
        ('{"instruction": "i", "output": []}', "'output' is an empty list"),
        ('{"instruction": "i", "output": ["o", 3]}', "'output' is a number"),
        ('{"instruction": "i", "output": {"a": "b"}}', "'output' is an object"),
        ('{"instruction": "i", "output": true}', "'output' is true or false"),
        ('{"instruction": "i\\ud83d", "output": "o"}', "half of a surrogate pair at character 2"),
    ],
)
def test_a_malformed_line_is_refused_with_file_and_line(tmp_path, line, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(GOOD + "\n" + line + "\n" + GOOD)
    with pytest.raises(InputError) as refusal:
        list(sources.rows({"json": str(path)}))
    message = str(refusal.value)
    assert message.startswith(f"{path}, line 3: ") and words in message
    assert "\n" not in message and message.endswith(".")


def test_other_files_that_cannot_be_read_are_refused(tmp_path):
    def refusal(source):
        with pytest.raises(InputError) as found:
            list(sources.rows(source))
        return str(found.value)

    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(GOOD.encode() + '{"instruction": "é"}'.encode("latin-1"))
    assert f"{latin}, line 2: byte 18 is not UTF-8" in refusal({"json": str(latin)})
    array = tmp_path / "array.json"
    array.write_text(json.dumps([row()], indent=1))
    assert "one JSON array" in refusal({"json": str(array)})
    assert "No such file" in refusal({"json": str(tmp_path / "none.jsonl")})
    assert "no such folder" in refusal({"folder": str(tmp_path / "none")})
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in refusal({"folder": str(tmp_path / "empty")})


def test_a_file_that_changed_after_planning_is_refused(tmp_path):
    source = write(tmp_path / "rows.jsonl", [row()])
    planned = {**source, "sha256": [file_digest(tmp_path / "rows.jsonl")]}
    assert len(list(sources.rows(planned))) == 1
    write(tmp_path / "rows.jsonl", [row(), row()])
    with pytest.raises(InputError, match="changed after the workflow was planned"):
        list(sources.rows(planned))


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """One data set in two forms: saved by `datasets`, and as data files."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tables = {
        "train": Dataset.from_list([row("one", "x", "1"), row("two", None, "2")]),
        "test": Dataset.from_list([row("three", "", "3")]),
    }
    DatasetDict(tables).save_to_disk(str(tmp_path / "saved"))
    for name, table in tables.items():
        table.to_parquet(str(tmp_path / "files" / f"{name}.parquet"))
    tables["test"].save_to_disk(str(tmp_path / "single"))
    return tmp_path


# what stands on the hub are data files; `load_dataset` reads those of a folder in the same way
@pytest.mark.parametrize(
    ("kind", "form"), [("folder", "saved"), ("folder", "files"), ("hub", "files")]
)
def test_data_sets_are_read_by_split(saved, kind, form):
    source = {kind: str(saved / form), "revision": None, "config": None}
    train = list(sources.rows({**source, "split": "train"}))
    assert [r[:4] for r in train] == [(0, "one", "x", ("1",)), (1, "two", "", ("2",))]
    assert [r.instruction for r in sources.rows({**source, "split": "test"})] == ["three"]
    with pytest.raises(InputError, match="dev"):
        list(sources.rows({**source, "split": "dev"}))


def test_a_single_saved_data_set_has_no_split_to_choose(saved):
    assert [r.instruction for r in sources.rows({"folder": str(saved / "single")})] == ["three"]


def test_the_stratum_of_a_row_is_a_column_that_is_named(tmp_path):
    source = write(tmp_path / "t.jsonl", [row() | {"kind": "sum"}, row() | {"kind": "sort"}])
    named = source | {"columns": {"stratum": "kind"}}
    assert [found.stratum for found in sources.rows(named)] == ["sum", "sort"]
    assert [found.stratum for found in sources.rows(source)] == ["", ""]
    with pytest.raises(InputError, match="line 1: no key 'sort'"):
        list(sources.rows(source | {"columns": {"stratum": "sort"}}))


def test_a_data_set_with_other_columns_is_refused_with_its_row(saved):
    Dataset.from_list([{"question": "q", "answer": "a"}]).save_to_disk(str(saved / "other"))
    with pytest.raises(InputError, match=r"row 0: no key 'instruction'.*'question', 'answer'"):
        list(sources.rows({"folder": str(saved / "other")}))


def test_plain_text_is_parted_at_blank_lines(tmp_path):
    (tmp_path / "text.txt").write_text("one\ntwo\n\n \nthree\r\n\n")
    assert list(sources.texts({"text": str(tmp_path / "text.txt")})) == ["one\ntwo", "three"]
    source = write(tmp_path / "t.jsonl", [{"text": "a\n\nb"}, {"text": ""}, {"text": "c"}])
    assert list(sources.texts(source)) == ["a\n\nb", "c"]
    with pytest.raises(InputError, match="line 1: no key 'text'"):
        list(sources.texts(write(tmp_path / "t.jsonl", [row()])))


def test_a_folder_of_text_files_is_read_in_order_of_names(tmp_path):
    for name, text in (
        ("b.txt", "three\n\nfour"),
        ("a.txt", "one\ntwo"),
        ("c/a.txt", "five"),
        ("notes.md", "no text of the corpus"),
        (".hidden/a.txt", "nor this"),
    ):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(text)
    # the end of a file ends its paragraph
    source = {"text": str(tmp_path / "texts")}
    assert list(sources.texts(source)) == ["one\ntwo", "three", "four", "five"]
    digests = [["b.txt", file_digest(tmp_path / "texts/b.txt")]]
    (tmp_path / "texts/b.txt").write_text("changed")
    with pytest.raises(InputError, match=r"b\.txt changed after the workflow was planned"):
        list(sources.texts({**source, "sha256": digests}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no \.txt files in this folder"):
        list(sources.texts({"text": str(tmp_path / "empty")}))


@pytest.fixture
def corpora(tmp_path, monkeypatch):
    """Corpora as data files, and the arguments of every `load_dataset`, which does what it always does."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    table = Dataset.from_list([{"text": "one"}, {"text": ""}, {"text": "two"}])
    table.to_parquet(str(tmp_path / "parquet/train.parquet"))
    table.to_json(str(tmp_path / "json/train.jsonl"))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/train.txt").write_text("one\ntwo\n")
    calls, load = [], datasets.load_dataset
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: calls.append(k) or load(*a, **k))
    return tmp_path, calls


@pytest.mark.parametrize(
    ("kind", "form"), [("hub", "parquet"), ("folder", "parquet"), ("folder", "json")]
)
def test_a_corpus_is_streamed_without_a_copy(corpora, kind, form):
    folder, calls = corpora
    source = {kind: str(folder / form), "split": "train"}
    assert list(sources.texts(source)) == ["one", "two"]
    assert [call["streaming"] for call in calls] == [True] * (form != "json")
    assert not list(folder.rglob("*.arrow"))
    with pytest.raises(InputError, match=r"cannot be loaded: .*dev|no split 'dev'; it has train"):
        list(sources.texts({**source, "split": "dev"}))
    with pytest.raises(InputError, match="no key 'instruction'"):
        list(sources.rows(source))
    copies = bool(list(folder.rglob("*.arrow")))
    assert copies == (form != "json"), "instruction rows are read more than once"


def test_a_folder_of_text_files_is_not_taken_for_one_of_lines(corpora):
    with pytest.raises(InputError, match=r"plain: holds plain text; .* the key text"):
        list(sources.texts({"folder": str(corpora[0] / "plain")}))


def test_a_broken_file_in_a_stream_is_one_sentence(corpora):
    folder, _ = corpora
    with open(folder / "json/train.jsonl", "a") as file:
        file.write('{"text": "thr')
    with pytest.raises(InputError, match=r"json/train\.jsonl, line 4: not valid JSON") as no:
        list(sources.texts({"folder": str(folder / "json"), "split": "train"}))
    assert "\n" not in str(no.value)


# template


def test_braces_of_the_data_are_left_alone():
    filled = fill(SHORT, "Use {input} and {0} and \\1", "{instruction} {}")
    assert filled == "Q: Use {input} and {0} and \\1\n{instruction} {}\nA:"
    assert fill(SHORT, "Do it", "") == "Q: Do it\nA:"
    assert fill({"with_input": "", "without_input": "{x} {instruction}"}, "i", "") == "{x} i"


def test_the_template_of_the_paper():
    named = schema.load_schema()["properties"]["data"]["properties"]["template"]["x-templates"]
    long, short = (fill(named["alpaca"], "Name it.", context) for context in ("A cat.", ""))
    assert long.startswith("Below is an instruction that describes a task, paired with an input")
    assert long.endswith("### Instruction:\nName it.\n\n### Input:\nA cat.\n\n### Response:\n")
    assert short.startswith("Below is an instruction that describes a task. Write a response")
    assert short.endswith("request.\n\n### Instruction:\nName it.\n\n### Response:\n")


# tokenizer


def test_a_trained_tokenizer_loads_in_transformers(words):
    facts = read_json(words)
    loaded = AutoTokenizer.from_pretrained(words.parent / "tokenizer")
    assert facts["kind"] == "tokenizer"
    assert facts["vocabulary"] == len(loaded) == 300
    assert (facts["end"], facts["pad"]) == (loaded.eos_token_id, loaded.pad_token_id)
    assert facts["end"] != facts["pad"]
    text = " Say kino.\n\tñ 😀 <|endoftext|>  x"
    ids = loaded(text, split_special_tokens=True).input_ids
    assert loaded.decode(ids) == text
    assert ids == Encoder.beside(words).prompts([text])[0]
    # words of the data are tokens, so the merges were learnt from it
    assert len(Encoder.beside(words).prompts([" kino tour"])[0]) <= 4


def test_training_a_tokenizer_again_gives_the_same_bytes(words, tmp_path):
    source = {"json": str(words.parent / "rows.jsonl")}
    spec = {"source": {"train": {"vocabulary": 300}}, "text": source, "template": SHORT}
    script = SOURCE.parent / "workflow/scripts/prepare_tokenizer.py"
    command = [sys.executable, str(script), "--spec", json.dumps(spec)]
    command += ["--output", f"tokenizer={tmp_path / 'tokenizer'}"]
    command += ["--output", f"manifest={tmp_path / 'manifest.json'}"]
    environment = {**os.environ, "RAYON_NUM_THREADS": "3", "PYTHONHASHSEED": "5"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    again = read_json(tmp_path / "manifest.json")
    assert again["sha256"] == read_json(words)["sha256"]
    assert again["sha256"] == folder_digest(tmp_path / "tokenizer")


def test_a_vocabulary_that_the_rows_cannot_fill_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"vocabulary is 5000, but .* give \d+ tokens"):
        train_tokenizer(tmp_path, write(tmp_path / "rows.jsonl", [row()]), vocabulary=5000)


def test_a_folder_without_a_pad_token_gets_the_end_token(words, tmp_path):
    ready = tmp_path / "ready"
    loaded = AutoTokenizer.from_pretrained(words.parent / "tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=loaded.backend_tokenizer, eos_token="<|endoftext|>"
    ).save_pretrained(ready)
    assert AutoTokenizer.from_pretrained(ready).pad_token is None
    manifest = run_tokenizer(tmp_path, {"source": {"folder": str(ready)}})
    facts = read_json(manifest)
    assert facts["pad"] == facts["end"] == read_json(words)["end"]
    assert (facts["vocabulary"], facts["begin"]) == (300, [])
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer").pad_token == "<|endoftext|>"
    # which folder it came from does not matter
    first = manifest.read_bytes()
    ready.rename(tmp_path / "moved")
    assert (
        run_tokenizer(tmp_path, {"source": {"folder": str(tmp_path / "moved")}}).read_bytes()
        == first
    )


def test_a_begin_token_of_the_family_stands_before_prompts_only(words, tmp_path):
    from tokenizers.processors import TemplateProcessing

    backend = AutoTokenizer.from_pretrained(words.parent / "tokenizer").backend_tokenizer
    backend.add_special_tokens(["<s>"])
    begin = backend.token_to_id("<s>")
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>"
    ).save_pretrained(tmp_path / "ready")
    manifest = run_tokenizer(tmp_path, {"source": {"folder": str(tmp_path / "ready")}})
    assert read_json(manifest)["begin"] == [begin]
    encoder = Encoder.beside(manifest)
    plain = Encoder.beside(words)
    assert encoder.prompts(["Say kino."])[0] == [begin, *plain.prompts(["Say kino."])[0]]
    assert encoder.responses(["kino"]) == plain.responses(["kino"])


def test_tokenizers_that_are_of_no_use_are_refused(words, tmp_path):
    def refusal(source):
        with pytest.raises(InputError) as found:
            run_tokenizer(tmp_path, {"source": source})
        return str(found.value)

    assert "no such file or folder" in refusal({"folder": str(tmp_path / "none")})
    (tmp_path / "empty").mkdir()
    assert "cannot be read" in refusal({"folder": str(tmp_path / "empty")})
    loaded = AutoTokenizer.from_pretrained(words.parent / "tokenizer")
    endless = PreTrainedTokenizerFast(tokenizer_object=loaded.backend_tokenizer)
    endless.save_pretrained(tmp_path / "endless")
    assert "has no end-of-text token" in refusal({"folder": str(tmp_path / "endless")})
    # a GPT-2 folder whose files have other names than transformers expects
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2/config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "gpt2/encoder.json").write_text("{}")
    assert "is empty" in refusal({"folder": str(tmp_path / "gpt2")})


def test_a_tokenizer_out_of_a_gguf_file(words, tmp_path):
    gguf = pytest.importorskip("gguf", reason="reading GGUF files needs the package gguf")
    model = json.loads((words.parent / "tokenizer/tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    file = gguf.GGUFWriter(tmp_path / "words.gguf", "llama")
    file.add_tokenizer_model("gpt2")
    file.add_token_list(tokens)
    file.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    file.add_token_merges([" ".join(merge) for merge in model["merges"]])
    file.add_eos_token_id(0)
    file.add_bos_token_id(0)
    file.add_vocab_size(len(tokens))
    file.add_context_length(64)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    manifest = run_tokenizer(tmp_path, {"source": {"gguf": str(tmp_path / "words.gguf")}})
    assert read_json(manifest)["end"] == 0
    assert Encoder.beside(manifest).responses(["kino"]) == Encoder.beside(words).responses(["kino"])


def test_special_tokens_in_the_data_stay_text(words, tmp_path):
    text = "a <|endoftext|> b <|pad|> c"
    source = write(tmp_path / "rows.jsonl", [row(text, text, text)])
    (data,), manifest = run_prepare(
        tmp_path, words, "train", source, max_prompt_length=99, max_length=200
    )
    facts = read_json(words)
    assert manifest["counts"]["kept"] == 1
    assert not {facts["end"], facts["pad"]} & set(data["prompt_ids"])
    assert data["response_ids"][-1] == facts["end"]
    assert not {facts["end"], facts["pad"]} & set(data["response_ids"][:-1])
    loaded = AutoTokenizer.from_pretrained(words.parent / "tokenizer")
    assert loaded.decode(data["response_ids"][:-1]) == text


# prepare


def test_the_data_set_on_disk(words, tmp_path):
    records = [row("Say ba.", "de fino", ["ba", "be"]), row("Say a long thing.", "", "gour " * 90)]
    data, manifest = run_prepare(tmp_path, words, "train", write(tmp_path / "r.jsonl", records))
    assert data.column_names == [
        *("id", "prompt_ids", "response_ids", "instruction", "input", "references"),
    ]
    kinds = {field.name: str(field.type) for field in data.data.schema}
    assert kinds["id"] == "int64"
    assert kinds["prompt_ids"] == kinds["response_ids"] == "list<item: int32>"
    first, second = data
    encoder, end = Encoder.beside(words), read_json(words)["end"]
    assert first["prompt_ids"] == encoder.prompts(["Q: Say ba.\nde fino\nA:"])[0]
    assert first["response_ids"] == encoder.responses(["ba"])[0]
    assert first["response_ids"][-1] == end
    assert (first["id"], first["input"], first["references"]) == (0, "de fino", ["ba", "be"])
    # a long answer is cut, and then does not pretend to have ended
    assert len(second["prompt_ids"]) + len(second["response_ids"]) == 64
    assert end not in second["response_ids"]
    assert manifest["counts"]["cut_responses"] == 1
    assert manifest["named"] == {"cut_responses": [1]}
    assert manifest["tokens"] == {
        "prompt": sum(map(len, data["prompt_ids"])),
        "response": sum(map(len, data["response_ids"])),
    }


def test_rows_that_training_drops_are_counted_and_named(words, tmp_path):
    held_out = write(tmp_path / "test.jsonl", [row("leak", "x"), row("other")])
    records = [
        row("keep "),
        row("leak", "x", "another answer"),
        row("leak"),
        row("keep ", "", "another answer"),
        row("keep"),
        row("empty", "", " \n"),
        row("long " * 60),
        row("late", "", ["", "second"]),
    ]
    source = write(tmp_path / "train.jsonl", records)
    data, manifest = run_prepare(tmp_path, words, "train", source)
    assert data["id"][:] == [0, 1, 2, 3, 4, 7]
    assert manifest["counts"]["duplicates"] == 1
    settings = {"drop_duplicates": True, "drop_leaks": True, "exclude": [held_out]}
    data, manifest = run_prepare(tmp_path, words, "train", source, **settings)
    assert data["id"][:] == [0, 2, 4, 7]
    assert data["references"][3] == ["second"]
    counts = manifest["counts"]
    assert counts == {
        "rows": 8,
        "further_turns": 0,
        "without_answer": 0,
        "kept": 4,
        "dropped_leaks": 1,
        "duplicates": 1,
        "dropped_duplicates": 1,
        "empty_output": 1,
        "dropped_prompt_too_long": 1,
        "shortened_prompts": 0,
        "cut_responses": 0,
        "dropped_response_length": 0,
        "without_input": 7,
        "blank_input": 0,
        "blank_instruction": 0,
        "blank_references": 1,
    }
    assert manifest["named"] == {
        "dropped_leaks": [1],
        "duplicates": [3],
        "dropped_duplicates": [3],
        "empty_output": [5],
        "dropped_prompt_too_long": [6],
        "blank_references": [7],
    }


def test_a_long_prompt_leaves_dev_by_count_but_shortens_in_an_evaluation_set(words, tmp_path):
    long = "kino tour " * 60
    records = [row("Short."), row("Take this.", long), row(long), row("Short, too.")]
    source = write(tmp_path / "rows.jsonl", records)
    data, manifest = run_prepare(tmp_path, words, "dev", source)
    assert data["id"][:] == [0, 3]
    assert manifest["counts"]["dropped_prompt_too_long"] == 2
    data, manifest = run_prepare(tmp_path, words, "heldout", source)
    assert data["id"][:] == [0, 1, 2, 3]
    assert manifest["counts"]["kept"] == 4
    assert manifest["counts"]["shortened_prompts"] == 2
    assert manifest["named"]["shortened_prompts"] == [1, 2]
    loaded = AutoTokenizer.from_pretrained(words.parent / "tokenizer")
    with_input, without = (loaded.decode(data[i]["prompt_ids"]) for i in (1, 2))
    # the template is whole, what is gone is the end of the longer field
    assert with_input.startswith("Q: Take this.\nkino tour") and with_input.endswith("\nA:")
    assert without.startswith("Q: kino tour") and without.endswith("\nA:")
    assert all(46 <= len(ids) <= 48 for ids in data["prompt_ids"][1:3])
    assert data["input"][1] == long
    with pytest.raises(InputError, match="even without its longer field"):
        run_prepare(tmp_path, words, "heldout", source, max_prompt_length=4)


def test_an_evaluation_row_needs_a_reference(words, tmp_path):
    source = write(tmp_path / "rows.jsonl", [row(), row("Say.", "", ["", " "])])
    with pytest.raises(InputError, match=r"rows.jsonl, row 1 .*: the output is empty"):
        run_prepare(tmp_path, words, "heldout", source)


def test_a_split_with_nothing_to_keep_is_refused(words, tmp_path):
    source = write(tmp_path / "rows.jsonl", [row("long " * 60), row(output="")])
    with pytest.raises(
        InputError, match=r"none of 2 rows is kept for 'train' \(1 prompts .* 1 outp"
    ):
        run_prepare(tmp_path, words, "train", source)
    (tmp_path / "nothing.jsonl").write_text("\n")
    with pytest.raises(InputError, match="none of 0 rows"):
        run_prepare(tmp_path, words, "train", {"json": str(tmp_path / "nothing.jsonl")})


def test_equal_rows_have_an_equal_manifest_and_other_rows_another_digest(words, tmp_path):
    records = [row(f"Say {word}.", "", word) for word in WORDS]
    source = write(tmp_path / "rows.jsonl", records)
    path = tmp_path / "data/train/manifest.json"
    run_prepare(tmp_path, words, "train", source)
    first = path.read_bytes()
    run_prepare(tmp_path, words, "train", source)
    assert path.read_bytes() == first
    # nor do place, layout and the order of keys make other rows
    elsewhere = tmp_path / "of a colleague"
    elsewhere.mkdir()
    turned = [dict(reversed(record.items())) for record in records]
    moved = write(elsewhere / "same.jsonl", turned)
    run_prepare(tmp_path, words, "train", {**moved, "sha256": [file_digest(Path(moved["json"]))]})
    assert path.read_bytes() == first
    write(tmp_path / "rows.jsonl", [*records[:-1], {**records[-1], "output": [WORDS[-1], "That."]}])
    _, manifest = run_prepare(tmp_path, words, "train", source)
    assert manifest["sha256"] != json.loads(first)["sha256"]


def test_many_rows_keep_the_order_of_the_source(words, tmp_path):
    records = [row(f"Say {i}.", "", WORDS[i % len(WORDS)]) for i in range(2 * prepare.BATCH + 7)]
    data, _ = run_prepare(tmp_path, words, "train", write(tmp_path / "r.jsonl", records))
    assert data["id"][:] == list(range(len(records)))
    assert data["instruction"][:] == [record["instruction"] for record in records]


TEXTS = ["kino tour", "ba de fino", "gour " * 30, "me"]


def test_a_corpus_becomes_blocks_of_one_length(words, tmp_path):
    source = write(tmp_path / "c.jsonl", [{"text": text} for text in TEXTS])
    data, manifest = run_prepare(tmp_path, words, "corpus", source, block_length=16)
    stream = [token for ids in Encoder.beside(words).responses(TEXTS) for token in ids]
    blocks = len(stream) // 16
    assert blocks > 2
    assert data["input_ids"][:] == [stream[i * 16 : i * 16 + 16] for i in range(blocks)]
    left = len(stream) - 16 * blocks
    assert manifest["counts"] == {
        "documents": 4,
        "blocks": blocks,
        "left_over_tokens": left,
        "empty_documents": 0,
    }
    with pytest.raises(InputError, match="do not fill one block of 512 tokens"):
        run_prepare(tmp_path, words, "corpus", source, block_length=512)


def test_a_corpus_takes_no_more_blocks_than_wanted(words, tmp_path, capsys):
    source = write(tmp_path / "c.jsonl", [{"text": text} for text in TEXTS])
    everything, _ = run_prepare(tmp_path, words, "corpus", source, block_length=8)
    total = len(everything)
    for wanted in range(1, total + 1):
        data, manifest = run_prepare(
            tmp_path, words, "corpus", source, block_length=8, blocks=wanted
        )
        assert data["input_ids"][:] == everything["input_ids"][:wanted]
        assert manifest["counts"]["blocks"] == wanted
        assert manifest["tokens"] == {"text": 8 * wanted}
    capsys.readouterr()
    data, manifest = run_prepare(tmp_path, words, "corpus", source, block_length=8, blocks=999)
    assert len(data) == total
    assert manifest["counts"]["left_over_tokens"] > 0
    assert "documents, all that there are of the 999 wanted" in capsys.readouterr().out


@pytest.fixture
def hub(monkeypatch):
    """Puts a stream of documents in the place of the hub's data set; counts what is taken from it."""
    taken = []

    def serve(documents):
        def stream():
            for document in documents:
                taken.append(document)
                yield {"text": document, "url": "somewhere"}

        def load(name, config, *, split, revision, streaming):
            assert (name, split, streaming) == ("some/corpus", "train", True)
            return stream()

        monkeypatch.setattr("datasets.load_dataset", load)
        return {"hub": "some/corpus", "revision": "1" * 40, "config": None, "split": "train"}

    return serve, taken


def test_a_stream_is_read_only_until_the_blocks_are_full(words, tmp_path, monkeypatch, hub):
    serve, taken = hub
    monkeypatch.setattr(corpus, "PORTION", 1)
    source = serve(f"kino {i}" for i in itertools.count() if i < 10_000 or pytest.fail("goes on"))
    data, manifest = run_prepare(tmp_path, words, "corpus", source, block_length=16, blocks=30)
    stream = [token for ids in Encoder.beside(words).responses(taken) for token in ids]
    assert data["input_ids"][:] == [stream[i : i + 16] for i in range(0, 30 * 16, 16)]
    # the last document that was taken is the one that fills the last block
    before = sum(map(len, Encoder.beside(words).responses(taken[:-1])))
    assert before < 30 * 16 <= len(stream)
    counts = {"blocks": 30, "left_over_tokens": 0, "empty_documents": 0}
    assert manifest["counts"] == {"documents": len(taken), **counts}
    assert manifest["unused"]["keys"]["url"]["rows"] == len(taken)


def test_documents_are_tokenised_in_portions_that_change_nothing(words, tmp_path, monkeypatch, hub):
    serve, taken = hub
    texts = [f"{word} " * (1 + i % 7) for i, word in enumerate(WORDS * 8)]
    portions, encode = [], Encoder.responses
    monkeypatch.setattr(
        Encoder, "responses", lambda self, texts: portions.append(texts) or encode(self, texts)
    )
    found = []
    for size in (1, 100, 2**20):
        portions.clear(), taken.clear()
        monkeypatch.setattr(corpus, "PORTION", size)
        _, manifest = run_prepare(
            tmp_path, words, "corpus", serve(texts), block_length=16, blocks=20
        )
        assert all(sum(map(len, portion[:-1])) < size for portion in portions)
        found.append((manifest["sha256"], manifest["counts"]))
        # of what was taken, no more than a portion is for nothing
        unused = taken[manifest["counts"]["documents"] :]
        assert sum(map(len, unused)) <= size
    assert found[0] == found[1] == found[2]


def test_a_stream_that_breaks_off_leaves_nothing_and_is_read_again(words, tmp_path, hub):
    serve, _ = hub
    place = tmp_path / "data/corpus"

    def broken():
        yield from TEXTS
        raise ConnectionError("Server Disconnected\nmore of it")

    with pytest.raises(InputError) as refusal:
        run_prepare(tmp_path, words, "corpus", serve(broken()), block_length=8)
    assert str(refusal.value) == (
        "hub some/corpus, split train: breaks off after 4 rows (ConnectionError: Server Disconnected);"
        " start again, to read all of it."
    )
    assert list(place.iterdir()) == []
    _, manifest = run_prepare(tmp_path, words, "corpus", serve(TEXTS), block_length=8)
    whole = run_prepare(tmp_path / "other", words, "corpus", serve(TEXTS), block_length=8)[1]
    assert manifest == whole
    # what was whole before is not touched by a later attempt
    with pytest.raises(InputError):
        run_prepare(tmp_path, words, "corpus", serve(broken()), block_length=8)
    assert read_json(place / "manifest.json") == whole
    assert sorted(path.name for path in place.iterdir()) == [
        "dataset",
        "manifest.json",
        "metrics.jsonl",
    ]


@pytest.mark.slow
def test_training_maps_the_blocks_into_memory_and_reads_only_a_batch(words, tmp_path):
    """Arrow's pool holds what was read into memory; mapped files are not in it."""

    (tmp_path / "c.txt").write_text("kino tour ba de fino\n" * 40_000)
    source = {"text": str(tmp_path / "c.txt")}
    data, _ = run_prepare(tmp_path, words, "corpus", source, block_length=64)
    size = 4 * 64 * len(data)
    assert size > 2**20
    manifest = tmp_path / "data/corpus/manifest.json"
    stage = Stage(spec={}, code="-", inputs={"corpus": [manifest]})
    before = pyarrow.total_allocated_bytes()
    corpus = dataset_of(stage, "corpus")
    batch = corpus[[len(corpus) - 1, 0, 7]]["input_ids"]
    assert [len(block) for block in batch] == [64] * 3
    assert pyarrow.total_allocated_bytes() - before < size / 10
    held = load_from_disk(str(manifest.parent / "dataset"), keep_in_memory=True)
    assert pyarrow.total_allocated_bytes() - before >= size and len(held) == len(corpus)


@pytest.mark.slow
def test_an_error_reaches_the_console_as_one_sentence(words, tmp_path):
    (tmp_path / "bad.jsonl").write_text(GOOD + "{\n")
    spec = {"split": "train", "source": {"json": str(tmp_path / "bad.jsonl")}, "template": SHORT}
    spec |= {"max_length": 64, "max_prompt_length": 48}
    script = SOURCE.parent / "workflow/scripts/prepare_data.py"
    command = [sys.executable, str(script), "--spec", json.dumps(spec)]
    command += ["--input", f"tokenizer={words}", "--output", f"dataset={tmp_path / 'dataset'}"]
    done = subprocess.run(
        [*command, "--output", f"manifest={tmp_path / 'm.json'}"], capture_output=True, text=True
    )
    assert done.returncode == 1
    error = f"Error: {tmp_path / 'bad.jsonl'}, line 2: not valid JSON"
    assert done.stdout.startswith(error) and done.stdout.count("\n") == 1
    first, _, second = done.stderr.splitlines()  # the log says what and where before
    assert first.startswith("takd.data.prepare on ") and second.startswith(error)
    assert not (tmp_path / "m.json").exists() and not (tmp_path / "dataset").exists()


@pytest.mark.slow
def test_preparing_data_does_without_torch_and_transformers(words, tmp_path):
    source = write(tmp_path / "rows.jsonl", [row()])
    code = f"""
import sys
from pathlib import Path
from takd.data import prepare, summary, tokenizer
from takd.runtime.stage import Stage
place = Path({str(tmp_path)!r})
spec = {{"split": "train", "source": {source!r}, "template": {SHORT!r}, "max_length": 64}}
spec["max_prompt_length"] = 48
outputs = {{"dataset": place / "dataset", "manifest": place / "manifest.json"}}
inputs = {{"tokenizer": [Path({str(words)!r})]}}
prepare.run(Stage(spec=spec, code="-", inputs=inputs, outputs=outputs))
sys.exit(f"imported {{sys.modules.keys() & {{'torch', 'transformers'}}}}")
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == "imported set()", done.stderr


# the data report


@pytest.fixture
def report(words, tmp_path):
    """The report of three splits with leaks, and its page."""
    files = {
        "train": [row("a"), row("b", "x"), row("a", "", "else"), row("c <b>"), row("long " * 60)],
        "dev": [row("b", "x", "other"), row("d"), row("e")],
        "test": [row("d"), row("a"), row("a", "x"), row("c <b>", "", "gour " * 80)],
    }
    splits = {name: write(tmp_path / f"{name}<b>.jsonl", rows) for name, rows in files.items()}
    write(tmp_path / "c.jsonl", [{"text": "kino " * 60}])
    splits["corpus"] = {"json": str(tmp_path / "c.jsonl")}
    for split, source in splits.items():
        run_prepare(tmp_path, words, split, source)
    manifests = [tmp_path / "data" / split / "manifest.json" for split in reversed(splits)]
    outputs = {"report": tmp_path / "report.json", "page": tmp_path / "report.html"}
    spec = {"splits": splits, "sets": ["test"]}
    summary.run(Stage(spec=spec, code="-", inputs={"data": manifests}, outputs=outputs))
    return read_json(outputs["report"]), outputs["page"].read_text(encoding="utf-8")


def test_the_data_report_counts_and_names_leaks(report):
    found = {(leak["split"], leak["other"]): leak for leak in report[0]["leaks"]}
    assert {pair: (leak["rows"], leak["other_rows"]) for pair, leak in found.items()} == {
        ("train", "dev"): (1, 1),
        ("train", "test"): (3, 2),
        ("dev", "test"): (1, 1),
    }
    assert found["train", "test"]["examples"] == [
        {"row": 0, "other_row": 1},
        {"row": 2, "other_row": 1},
        {"row": 3, "other_row": 3},
    ]


def test_the_data_report_counts_rows_and_measures_lengths(report, words):
    splits = report[0]["splits"]
    assert list(splits) == ["corpus", "dev", "test", "train"]
    train = splits["train"]
    assert (train["counts"]["rows"], train["counts"]["kept"], train["dropped"]) == (5, 4, 1)
    assert train["counts"]["duplicates"] == 1
    assert train["named"]["dropped_prompt_too_long"] == [4]
    prompts = ["Q: a\nA:", "Q: b\nx\nA:", "Q: a\nA:", "Q: c <b>\nA:"]
    lengths = sorted(map(len, Encoder.beside(words).prompts(prompts)))
    assert train["lengths"]["prompt"]["max"] == lengths[-1]
    assert train["lengths"]["prompt"]["median"] == lengths[1]
    assert splits["test"]["counts"]["cut_responses"] == 1
    assert splits["corpus"]["counts"]["documents"] == 1


def test_the_page_of_the_data_report_stands_alone(report):
    data, page = report
    assert not any(word in page for word in ("http:", "https:", "src=", "<link", "@import", "url("))
    assert 'name="viewport"' in page
    assert "train&lt;b&gt;.jsonl" in page and "<b>" not in page
    train = page.split('<td class="name">train</td>')[1].split("</tr>")[0]
    assert '<td class="num">5</td><td class="num">4</td>' in train
    leak = page.split('<td class="name">train</td><td>test</td>')[1].split("</tr>")[0]
    assert '>3</td><td class="num">2</td>' in leak and "0 → 1, 2 → 1, 3 → 3" in leak
    blocks = data["splits"]["corpus"]["counts"]["blocks"]
    text = " ".join(page.split())
    left = data["splits"]["corpus"]["counts"]["left_over_tokens"]
    assert (
        f"Corpus: {blocks} blocks with {64 * blocks} tokens from 1 documents; {left} tokens" in text
    )
    data["splits"]["corpus"]["wanted"] = blocks
    text = " ".join(render(data).split())
    assert (
        "from 1 documents; these are all that was wanted, and the rest was not read. Source" in text
    )


def test_a_report_needs_every_split(tmp_path):
    spec = {"splits": {"train": {"json": "x"}}, "sets": []}
    with pytest.raises(InputError, match="needs the manifest of split 'train'"):
        summary.run(Stage(spec=spec, code="-", outputs={"report": tmp_path / "r.json"}))
