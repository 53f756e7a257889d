"""Data and tokenizers that a library cannot read: one sentence with the file and what to do, and never its error."""

import json
import re
import socket

import datasets
import pytest
from test_base import save_tokenizer
from test_data import run_tokenizer

from takd.data import downloads, sources
from takd.models import shapes
from takd.runtime.errors import InputError
from takd.runtime.files import read_json_object

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 1234\n"
ROWS = [{"instruction": "Say it.", "output": "It."}] * 20


def one_sentence(call):
    with pytest.raises(InputError) as told:
        call()
    said = str(told.value)
    assert said.endswith(".") and "\n" not in said, said
    return said


def half(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def saved(folder):
    datasets.Dataset.from_list(ROWS).save_to_disk(folder)


def parquet(folder):
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "train.parquet")


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def then(make, name, change):
    def both(folder):
        make(folder)
        (path,) = folder.glob(name)
        change(path)

    return both


GOOD_ROW = b'{"instruction": "Say it.", "output": "It."}\n'
WHOLE = (
    "fetch .*again|git lfs pull|its files have to be whole|has to be a whole compressed file"
    "|save the file as UTF-8|correct the quotes|has to be one JSON object"
)
FOLDERS = {
    "half a parquet file": (then(parquet, "*.parquet", half), "train.parquet is no parquet file"),
    "pointer": (written("train.parquet", POINTER), "train.parquet is a pointer of git-lfs"),
    "empty parquet": (written("train.parquet", b""), "train.parquet is empty"),
    "parquet that is a page": (written("train.parquet", b"<html>"), "train.parquet is a web page"),
    "half an arrow file": (then(saved, "*.arrow", half), "ArrowInvalid"),
    "empty arrow": (then(saved, "*.arrow", lambda p: p.write_bytes(b"")), "arrow is empty"),
    "no arrow": (then(saved, "*.arrow", lambda path: path.unlink()), "data-00000-of-00001.arrow"),
    "state": (then(saved, "state.json", lambda p: p.write_text("{}")), "KeyError: '_data_files'"),
    "info": (then(saved, "dataset_info.json", lambda p: p.write_text("[]")), "AttributeError"),
    "csv in Latin-1": (
        written("train.csv", b"instruction,output\n\xff,\xe9\n"),
        "line 2: byte 1 is not UTF-8",
    ),
    "csv that ends": (written("train.csv", b'instruction,output\n"x\n'), "line 2: not valid CSV"),
    "json that ends": (written("train.jsonl", GOOD_ROW + b'{"a":\n'), "line 2: not valid JSON"),
    "gzip": (written("train.jsonl.gz", b"\x1f\x8b\x08\x00junkjunk"), "decompressing"),
    "zip": (written("train.zip", b"PK\x03\x04junk"), "not a zip file"),
    "no data": (written("code.py", b"print(1)"), "No .supported. data files"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_data_that_is_damaged(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    make, says = FOLDERS[kind]
    make(tmp_path / "data")
    said = one_sentence(lambda: list(sources.rows({"folder": str(tmp_path / "data")})))
    assert re.search(says, said) and re.search(WHOLE, said) and str(tmp_path) in said, said


@pytest.mark.parametrize("content", [POINTER, b"<!DOCTYPE html>\n", b"PK\x03\x04{}\n"])
def test_a_file_of_lines_that_is_something_else(tmp_path, content):
    (tmp_path / "rows.jsonl").write_bytes(content)
    said = one_sentence(lambda: list(sources.rows({"json": str(tmp_path / "rows.jsonl")})))
    assert said.startswith(f"{tmp_path}/rows.jsonl is a ")


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def in_json(change):
    return lambda folder: changed(folder / "tokenizer.json", change)


TOKENIZERS = {
    "half": (lambda folder: half(folder / "tokenizer.json"), "tokenizer.json is not JSON"),
    "pointer": (written("tokenizer.json", POINTER), "git lfs pull"),
    "empty": (written("tokenizer.json", b""), "tokenizer.json is empty; fetch"),
    "Latin-1": (written("tokenizer.json", b'{"a": "\xff"}'), "tokenizer.json is not JSON"),
    "list": (written("tokenizer_config.json", b"[]"), "tokenizer_config.json has to hold"),
    "no settings": (written("tokenizer_config.json", b"{"), "tokenizer_config.json is not JSON"),
    "no model": (in_json(lambda content: content.pop("model")), "Model missing"),
    "unknown model": (in_json(lambda content: content["model"].update(type="X")), "ModelUntagged"),
    "merges": (
        in_json(lambda content: content["model"].update(merges=[["q", "q"]])),
        "Token `q` out of vocabulary",
    ),
    "ids": (in_json(lambda content: content["model"].update(vocab={"a": "x"})), "expected u32"),
    "end": (written("tokenizer_config.json", b'{"eos_token": 5}'), "Special token eos_token"),
    "class": (written("tokenizer_config.json", b'{"tokenizer_class": 5}'), "AttributeError"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_that_is_damaged(tmp_path, kind):
    save_tokenizer(tmp_path / "source")
    damage, says = TOKENIZERS[kind]
    damage(tmp_path / "source")
    source = {"folder": str(tmp_path / "source")}
    said = one_sentence(lambda: run_tokenizer(tmp_path, {"source": source}))
    assert re.search(says, said) and str(tmp_path) in said, said


@pytest.mark.parametrize("content", [b"GGUF junk", b"", POINTER])
def test_a_gguf_file_without_a_tokenizer(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    source = {"gguf": str(tmp_path / "m.gguf")}
    said = one_sentence(lambda: run_tokenizer(tmp_path, {"source": source}))
    assert "m.gguf cannot be read" in said


@pytest.mark.parametrize(
    "url",
    [
        "https://[::1/rows.jsonl",
        "https://exa mple/rows.jsonl",
        "https://example:port/rows.jsonl",
        "https://example.invalid/für.jsonl",
        "https:///rows.jsonl",
        f"https://{'a' * 70}.invalid/rows.jsonl",
    ],
)
def test_an_address_that_is_none(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "WAIT", 0.0)

    def nowhere(*args, **kwargs):
        raise OSError("no net here")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    said = one_sentence(lambda: downloads.fetch({"url": url, "sha256": "0" * 64}))
    assert said.startswith(f"{url} cannot be fetched")


@pytest.mark.parametrize("content", [b"{", b"[]", b"", POINTER, b"\xff\xfe{"])
def test_a_configuration_that_a_plan_reads(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert one_sentence(lambda: read_json_object(path, "model 'm'")).startswith(
        f"model 'm': {path} "
    )


def test_a_plan_reads_the_settings_of_the_text():
    nested = {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 99}
    shape = shapes.of_config({"model_type": "gemma3", "text_config": nested, "hidden_size": 1})
    assert (shape.width, shape.layers, shape.vocabulary) == (64, 3, 99)
