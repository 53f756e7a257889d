"""What a source holds and is not read is counted and said; text is read as text, whatever the format of its file."""

import bz2
import csv
import gzip
import io
import json
import zipfile

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import parquet
from test_data import run_prepare, train_tokenizer, write

from takd.data import sources, summary
from takd.data.tally import Unused
from takd.runtime.errors import InputError
from takd.runtime.files import read_json
from takd.runtime.stage import Stage

# what loaders of tables take for missing values, numbers, dates or truth values
TEXTS = [
    *("NA", "N/A", "None", "null", "nan", "NULL", "#N/A", "-", "007", "1e5", "1,000", "+1", "-3.50", "0x1F"),
    *("2020-01-01", "2021-02-03T04:05:06", "12:30", "true", "False", "yes", "inf", " padded ", "'quoted'"),
    *('say "no"', "two\nlines", "ends\n", "tab\there", "a, b; c", "[1, 2]", '{"a": 1}', "é 😀 中文", "=1+1"),
]  # fmt: skip
ROWS = [{"instruction": text, "input": "", "output": text} for text in TEXTS]
NUMBERS = [{"instruction": "How many?", "input": "", "output": str(n)} for n in range(12)]
DATES = [{"instruction": "When?", "input": "", "output": f"2020-01-{n:02}"} for n in range(1, 12)]


def table(rows, separator=",", mark="", end="\n"):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=separator, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return (mark + file.getvalue()).encode()


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def saved(folder, rows):
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(folder))


FORMATS = {
    "train.csv": table,
    "data.csv": lambda rows: table(rows, mark="\ufeff", end="\r\n"),
    "train.tsv": lambda rows: table(rows, "\t"),
    "train.csv.gz": lambda rows: gzip.compress(table(rows)),
    "train.jsonl": json_lines,
    "train.ndjson": json_lines,
    "train.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "train.jsonl.bz2": lambda rows: bz2.compress(json_lines(rows)),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows").mkdir()
    return tmp_path / "rows"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(place, write(place / "rows.jsonl", ROWS))


@pytest.mark.parametrize("rows", [ROWS, NUMBERS, DATES], ids=["texts", "numbers", "dates"])
@pytest.mark.parametrize("form", [*FORMATS, "parquet", "saved"])
def test_a_folder_gives_the_texts_that_were_written(folder, form, rows):
    if form == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    elif form == "saved":
        saved(folder, rows)
    else:
        (folder / form).write_bytes(FORMATS[form](rows))
    found = list(sources.rows({"folder": str(folder), "split": "train"}))
    assert [(row.instruction, row.input, row.references) for row in found] == [
        (row["instruction"], "", (row["output"],)) for row in rows
    ]


def test_csv_of_the_hub_has_no_missing_values(folder):
    rows = [row for row in ROWS if row["output"] not in ("ends\n",)]
    (folder / "train.csv").write_bytes(table(rows))
    source = {"hub": str(folder), "config": None, "revision": None, "split": "train"}
    assert [row.references[0] for row in sources.rows(source)] == [row["output"] for row in rows]
    (folder / "train.csv").write_bytes(table(NUMBERS))
    with pytest.raises(InputError, match="'output' is a number; it has to be a text"):
        list(sources.rows(source))


def test_a_corpus_in_a_table_keeps_its_documents(folder):
    (folder / "train.csv").write_bytes(
        table([{"text": text, "id": "1"} for text in ("NA", "", "7")])
    )
    unused, empty = Unused(), []
    found = sources.texts({"folder": str(folder)}, lambda: empty.append(1), unused)
    assert list(found) == ["NA", "7"] and len(empty) == 1
    assert unused.keys == {"id": {"rows": 3, "row": 0, "example": "'1'"}}


# what is not read


CONTEXT = "name it beside the source: columns: {input: context}"
NAME = "name it beside the source: columns: {input: NAME}"


@pytest.mark.parametrize(
    ("records", "columns", "keys", "says"),
    [
        pytest.param(
            [{"instruction": "i", "context": f"c {n}", "response": "o", "category": "qa"} for n in range(3)],
            {"output": "response"},
            {"context": 3, "category": 3},
            ["3 of 3 rows have no input: if", CONTEXT, "'context' (3 rows, such as 'c 0')"],
            id="dolly with one of its columns",
        ),
        pytest.param(
            [{"instruction": "i", "Input": "x", "output": "o"}, {"instruction": "i", "output": "o"}],
            {},
            {"Input": 1},
            ["columns: {input: Input}", "'Input' (1 rows"],
            id="another case in one row",
        ),
        pytest.param(
            [{"instruction": "i", "input ": "x", "output": "o"}, {"instruction": "i", "input": "y", "output": "o"}],
            {},
            {"input ": 1},
            ["1 of 2 rows have no input", 'columns: {input: "input "}'],
            id="a space behind the key",
        ),
        pytest.param(
            [{"instruction": "i", "output": "o", "passage": "p", "meta": {"input": "x", "n": 3}}],
            {},
            {"passage": 1, "meta": 1},
            [NAME, "'meta' (1 rows, such as \"{'input': 'x', 'n': 3}\")"],
            id="nested",
        ),
        pytest.param(
            [{"instruction": "i", "input": "", "context": "c", "output": "o"}],
            {},
            {"context": 1},
            ["1 of 1 rows have no input", CONTEXT],
            id="empty beside the one that is meant",
        ),
        pytest.param(
            [{"instruction": "i", "input": "x", "output": "o", "history": ["q", "a"], "score": 0.5}],
            {},
            {"history": 1, "score": 1},
            ["keys that are not read: 'history' (1 rows, such as \"['q', 'a']\"), 'score' (1 rows, such as '0.5')"],
            id="with an input there is nothing to advise",
        ),
        pytest.param(
            [{"instruction": "i", "input": "x", "output": "o", "note": None, "tags": []}],
            {},
            {},
            [],
            id="keys that hold nothing",
        ),
    ],
)  # fmt: skip
def test_keys_that_are_not_read_are_counted_and_said(
    words, tmp_path, capsys, records, columns, keys, says
):
    source = {**write(tmp_path / "rows.jsonl", records), "columns": columns}
    _, manifest = run_prepare(tmp_path, words, "train", source)
    assert {key: found["rows"] for key, found in manifest["unused"]["keys"].items()} == keys
    said = capsys.readouterr().out
    assert all(part in said for part in says), said
    assert says or "not read" not in said
    assert ("name it beside" in said) == any("columns" in part for part in says)


def test_fields_that_hold_nothing_are_counted(words, tmp_path, capsys):
    records = [
        {"instruction": "i", "input": " \n", "output": "o"},
        {"instruction": " ", "input": "x", "output": ["", "o"]},
        {"instruction": "i", "input": None, "output": "o"},
        {"instruction": "i", "output": "o o o"},
    ]
    source = {**write(tmp_path / "rows.jsonl", records), "max_response_words": 2}
    _, manifest = run_prepare(tmp_path, words, "train", source)
    counts = manifest["counts"]
    assert (counts["rows"], counts["without_input"]) == (4, 2)
    assert {key: manifest["named"][key] for key in manifest["named"] if "blank" in key} == {
        "blank_input": [0],
        "blank_instruction": [1],
        "blank_references": [1],
    }
    said = capsys.readouterr().out
    for part in ("2 without input", "1 blank input", "1 blank instruction", "1 blank references"):
        assert part in said


def test_rows_outside_of_the_part_are_not_counted(tmp_path):
    records = [{"instruction": "i", "output": "o", f"k{n}": "v"} for n in range(4)]
    unused = Unused()
    list(sources.rows({**write(tmp_path / "r.jsonl", records), "rows": [1, 3]}, unused=unused))
    assert {key: found["row"] for key, found in unused.keys.items()} == {"k1": 1, "k2": 2}


def test_odd_and_endless_keys_leave_the_manifest_short_and_readable(words, tmp_path, capsys):
    records = [
        {"instruction": "i", "output": "o", f"id {n}": "v", "a\nb": "c\nd", "\ud83d": "\ud83d"}
        for n in range(300)
    ]
    _, manifest = run_prepare(tmp_path, words, "train", write(tmp_path / "rows.jsonl", records))
    keys = manifest["unused"]["keys"]
    assert len(keys) == 101 and keys["(further keys)"]["rows"] == 300 - 98
    assert keys["\\ud83d"]["rows"] == 300
    assert keys["a\nb"]["example"] == "'c d'"
    said = capsys.readouterr().out
    assert "'a b' (300 rows, such as 'c d')" in said and said.count("\n") == 3


def test_files_of_a_folder_that_no_split_reads_are_said(words, tmp_path, folder, capsys):
    (folder / "train.csv").write_bytes(table(NUMBERS))
    (folder / "test.csv").write_bytes(table(NUMBERS))
    for name in ("more.jsonl", "part2.parquet", "README.md", "LICENSE", ".hidden.csv"):
        (folder / name).write_text("not read")
    (folder / "texts").mkdir()
    (folder / "texts/a.txt").write_text("not read")
    unused = Unused()
    list(sources.rows({"folder": str(folder), "split": "test"}, unused=unused))
    assert unused.files == ["more.jsonl", "part2.parquet", "texts/a.txt"]
    # a corpus of text files: all else below the folder
    _, manifest = run_prepare(tmp_path, words, "corpus", {"text": str(folder)}, block_length=2)
    assert manifest["unused"]["files"] == ["more.jsonl", "part2.parquet", "test.csv", "train.csv"]
    assert "files of the folder that are not read: 'more.jsonl'" in capsys.readouterr().out


def test_many_keys_are_not_all_on_the_console_but_in_the_report(words, tmp_path, capsys):
    record = {"instruction": "i", "input": "x", "output": "o"} | {f"k<{n}>": "v" for n in range(20)}
    splits = {
        name: write(tmp_path / f"{name}.jsonl", [record]) for name in ("train", "dev", "test")
    }
    for split, source in splits.items():
        run_prepare(tmp_path, words, split, source)
    assert "'k<5>' (1 rows, such as 'v') and 14 more" in capsys.readouterr().out
    manifests = [tmp_path / "data" / split / "manifest.json" for split in splits]
    outputs = {"report": tmp_path / "report.json", "page": tmp_path / "report.html"}
    stage = Stage(
        spec={"splits": splits, "sets": ["test"]},
        code="-",
        inputs={"data": manifests},
        outputs=outputs,
    )
    summary.run(stage)
    assert len(read_json(outputs["report"])["splits"]["dev"]["unused"]["keys"]) == 20
    page = outputs["page"].read_text()
    assert (
        page.split('id="unused"')[1].split("</table>")[0].count('>1</td><td class="num">0</td>')
        == 60
    )
    assert "k&lt;19&gt;" in page and "k<" not in page


# what cannot be read without a loss is refused


PACKED = gzip.compress(table(ROWS), mtime=0)  # the same bytes in each process


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train.csv", b"instruction,output,output\ni,o,p\n", r"line 1: the column 'output' stands there twice"),
        ("train.csv", b"instruction,output\ni,o\ni,o,p\n", r"line 3: this row has 3 cells, but .* names 2 columns"),
        ("train.csv", b'instruction,output\ni,"o\nj,p\n', r"line 3: not valid CSV: unexpected end of data"),
        ("train.csv", b'instruction,output\ni,"o" p\n', r"line 2: not valid CSV"),
        ("train.csv", b"instruction,output\ni\n", r"line 2: no key 'output'; its keys are 'instruction'"),
        ("train.csv", "instruction,output\ni,é\n".encode("latin-1"), r"line 2: byte 3 is not UTF-8"),
        ("train.csv", b"instruction;output\ni;o\n", r"line 2: no key 'instruction'; its keys are 'instruction;output'"),
        ("train.csv.gz", PACKED[:60], r"train.csv.gz: .* has to be a whole compressed file"),
        ("train.csv.gz", PACKED[:40] + b"x" * 99, r"train.csv.gz: .* whole compressed file"),
        ("train.csv.xz", b"no xz", r"train.csv.xz: .* whole compressed file"),
        ("train.csv.bz2", b"no bz2", r"train.csv.bz2: Invalid data stream"),
        ("train.jsonl.gz", b"instruction", r"train.jsonl.gz: Not a gzipped file"),
        ("train.jsonl", b'{"instruction": "i", "output": "o", "output": "p"}\n', r"line 1: the key 'output' stands"),
        ("train.json", b'[{"instruction": "i", "output": "o"},\n', r"train.json: not valid JSON"),
        ("train.json", b'[{"instruction": "i", "output": "o"}, 7]', r"train.json, element 2: a number; every"),
        ("train.jsonl", b'{"instruction": "i", "output": ' + b"9" * 5000 + b"}\n", "line 1: not valid JSON: a number"),
    ],
)  # fmt: skip
def test_a_file_that_would_be_read_with_a_loss_is_refused(folder, name, content, says):
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as refused:
        list(sources.rows({"folder": str(folder)}))
    assert str(refused.value).startswith(str(folder)) and "\n" not in str(refused.value)


def test_archives_and_tables_in_the_wrong_place_are_refused(folder):
    with zipfile.ZipFile(folder / "train.csv.zip", "w") as archive:
        archive.writestr("a.csv", table(NUMBERS))
        archive.writestr("b.csv", table(NUMBERS))
    with pytest.raises(InputError, match=r"train\.csv\.zip: \.zip files are not read; unpack it"):
        list(sources.rows({"folder": str(folder)}))
    (folder / "rows.csv").write_bytes(table(NUMBERS))
    with pytest.raises(InputError, match="put a CSV file into a folder"):
        list(sources.rows({"json": str(folder / "rows.csv")}))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (pa.array([3, 4]), "a number"),
        (pa.array([True, False]), "true or false"),
        (pa.array([0, 1], pa.timestamp("s")), "a date or a time"),
        (pa.array([b"a", b"b"]), "bytes"),
        (pa.array([{"text": "a"}, {"text": "b"}]), "an object"),
        (pa.array([["a", None], ["b"]]), "null"),
        (pa.array([None, "b"]), "null"),
    ],
)
def test_what_a_parquet_file_holds_in_other_types_is_refused(folder, values, says):
    columns = {"instruction": pa.array(["i", "j"]), "output": values}
    parquet.write_table(pa.table(columns), folder / "train.parquet")
    with pytest.raises(InputError, match=rf"row 0: 'output' is {says}; it has to be a text"):
        list(sources.rows({"folder": str(folder)}))
