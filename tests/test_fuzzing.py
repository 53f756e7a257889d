"""Inputs that nobody thought of: whatever a file holds, it is read, or refused in sentences that say where and what.

The same inputs each time (`derandomize`), some thousand in all. Experiment files, JSON lines, records of results,
options of stages, cards of data folders, headers of weights.
"""

import argparse
import contextlib
import io
import json
import re
import string
import tempfile
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from takd.data.folders import check_within
from takd.data.sources import rows, texts
from takd.experiment import experiment, specs
from takd.experiment.schema import all_keys
from takd.experiment.yaml12 import read_yaml
from takd.models.weight_files import positions, safetensors_parameters
from takd.preflight import amounts
from takd.runtime import command_line
from takd.runtime.digests import readable_json
from takd.runtime.errors import InputError
from takd.runtime.input_check import verify
from takd.runtime.records import DamagedError, read_log, read_record, sealed

DEMO = (ROOT / "config/experiments/demo.yaml").read_text()
SECONDS = 30  # that no single input may take


def examples(count: int) -> Any:
    """The same `count` inputs each time, none of which may hang."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=1000 * SECONDS,
        suppress_health_check=slow,
    )


def in_sentences(error: InputError, *places: str) -> None:
    """An error is a sentence a line, each with a place and no traceback."""
    for line in str(error).splitlines() or [""]:
        assert any(place in line for place in places), line
        assert re.search(r"[.!?)…]$", line), line
        assert len(line) < 2000 and "Traceback" not in line and " object at 0x" not in line


# values as JSON and YAML have them, odd ones among them
WORDS = st.text(
    st.characters(exclude_categories=())
    | st.sampled_from(string.ascii_letters + "{}[]:,#&*!|>'\"%@`\n\t\0"),
    max_size=12,
)
NUMBERS = (
    st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.sampled_from([0, 1, -1, 2**31, 2**32, 2**63, 0.5, 1e308, 10**17])
)
PLAIN = st.none() | st.booleans() | NUMBERS | WORDS
VALUES = st.recursive(
    PLAIN,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(WORDS, below, max_size=3),
    max_leaves=6,
)


# experiment files


def _paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested values."""
    found = [above] if above else []
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return found + [path for key, below in items for path in _paths(below, (*above, key))]


LOADED = read_yaml(ROOT / "config/experiments/demo.yaml", "demo").value
PLACES = _paths(LOADED)
KEYS = sorted({place.rpartition(".")[2] for place in all_keys()})


@st.composite
def edited(draw: st.DrawFn) -> Any:
    """The demo's settings with some values replaced, keys renamed, added or left out."""
    value = json.loads(json.dumps(LOADED))
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(PLACES))
        part: Any = value
        try:
            for key in path[:-1]:
                part = part[key]
            part[path[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # an edit before took it away
        if not isinstance(part, dict | list):
            continue
        what = draw(st.sampled_from(["value", "other", "remove", "rename", "add"]))
        if what == "value":
            part[path[-1]] = draw(VALUES)
        elif what == "other":  # a value that is right elsewhere
            other: Any = LOADED
            for key in draw(st.sampled_from(PLACES)):
                other = other[key]
            part[path[-1]] = json.loads(json.dumps(other))
        elif what == "remove":
            del part[path[-1]]
        elif isinstance(part, dict):
            name = draw(st.sampled_from(KEYS) | WORDS)
            part[name] = part.pop(path[-1]) if what == "rename" else draw(VALUES)
    return value


def read(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config/experiments/odd.yaml"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        try:
            found = experiment.load(path, Path(folder))
            found.require_files()
        except InputError as error:
            in_sentences(error, "config/experiments/odd.yaml", "Experiment 'odd'", "more errors")
            return
        # what is read can be planned
        for node in found.nodes:
            specs.train(found, node.lineage, node.seed)
        assert specs.report(found) and specs.tokenizer(found)
        for split in found.splits:
            specs.data(found, split)


@given(edited())
@examples(250)
def test_edited_experiments(value: Any) -> None:
    read(
        yaml.safe_dump(value, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
    )


@st.composite
def cut(draw: st.DrawFn) -> bytes:
    """The demo's file with pieces cut out, doubled, or put in."""
    text = DEMO.encode()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        stop = draw(st.integers(start, min(len(text), start + 40)))
        put = draw(st.binary(max_size=6) | st.just(text[start:stop] * 2) | st.sampled_from(TOKENS))
        text = text[:start] + put + text[stop:]
    return text


TOKENS = [
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!python/object:os.system ",
    b"? ",
    b"|\n",
    b"- ",
    b"\t",
    b": ",
    b"{",
    b"]",
    b"---\n",
    b"\xff",
]


@given(cut() | st.binary(max_size=60))
@examples(200)
def test_cut_experiments(content: bytes) -> None:
    read(content)


# JSON lines


NAMES = st.sampled_from(["instruction", "input", "output", "text", "Output", ""])
RECORD = st.dictionaries(NAMES, VALUES | st.lists(WORDS, max_size=3) | WORDS, max_size=4)
LINE = (
    st.builds(lambda record: json.dumps(record).encode(), RECORD)
    | st.builds(lambda text: json.dumps({"instruction": text, "output": text}).encode(), WORDS)
    | st.builds(lambda value: json.dumps(value).encode(), VALUES)
    | st.binary(max_size=30)
    | st.sampled_from([b"", b"   ", b"[" * 5000, b'{"a":' * 5000, b"\xef\xbb\xbf{}", b"NaN"])
    | st.just(b'{"output": ' + b"9" * 5000 + b"}")
)  # fmt: skip
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "rows": st.sampled_from([[0, 1], [1, None], [0, 100], [5, 9]]),
        "columns": st.dictionaries(
            st.sampled_from(["instruction", "input", "output"]), NAMES.filter(bool), max_size=3
        ),
        "min_response_words": st.integers(1, 3),
        "expect_rows": st.integers(1, 3),
        "rows_sha256": st.just("0" * 64),
    },
)


@given(st.lists(LINE, max_size=5), st.sampled_from([b"\n", b"\r\n", b"\n\n"]), SETTINGS)
@examples(400)
def test_json_lines(lines: list[bytes], end: bytes, more: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(end.join(lines))
        for function, source in ((rows, {"json": str(path), **more}), (texts, {"json": str(path)})):
            try:
                for each in function(source):
                    json.dumps(each).encode()
            except InputError as error:
                in_sentences(error, "rows.jsonl")


# records of results


GOOD = sealed(
    {
        "kind": "model",
        "lineage": "a-sft",
        "seed": 1,
        "spec": {"model": "a"},
        "files": {"x": "0" * 64},
    }
)


@st.composite
def record(draw: st.DrawFn) -> bytes:
    """A manifest with parts replaced, sealed or not, or something else."""
    found = dict(GOOD)
    for _ in range(draw(st.integers(0, 2))):
        found[draw(st.sampled_from([*GOOD, "name"]))] = draw(VALUES)
    with contextlib.suppress(ValueError):
        if draw(st.booleans()):
            found = sealed(found)
    text = json.dumps(found, indent=1, sort_keys=True).encode()
    with contextlib.suppress(ValueError):
        text = readable_json(found).encode("utf-8", "surrogatepass")
    at = draw(st.integers(0, len(text)))
    cut = draw(
        st.sampled_from([text, text, text[:at], text[:at] + b"\xff" + text[at:], text + b"\n{}"])
    )
    return draw(st.just(cut) | st.binary(max_size=20) | st.just(b"[" * 100_000))


@given(record(), st.sampled_from(["model", "data", "tokenizer", "teacher", "base", "piece"]))
@examples(300)
def test_manifests(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.json"
        path.write_bytes(content)
        for question in (
            lambda: read_record(path),
            lambda: read_log(path),
            lambda: verify({"model": "a", "lineage": "a-sft", "seed": 1}, {name: [path]}),
        ):
            try:
                question()
            except DamagedError as error:
                assert "manifest.json: " in str(error) and "\n" not in str(error)
            except InputError as error:
                in_sentences(error, "manifest.json")


# options of stages


OPTION = st.sampled_from(
    ["--spec", "--input", "--output", "--threads", "--processes", "--nodes", "--micro-batch", "--runtime",
     "--compile", "--deterministic", "--gradient-checkpointing", "--checkpoint-seconds", "--code", "--other", "-x", ""]
)  # fmt: skip
WORD = (
    WORDS.map(lambda text: text.replace("\0", ""))
    | NUMBERS.map(str)
    | st.sampled_from(["a=b", "{}", "[]", "1", "0"])
)


@given(st.lists(st.tuples(OPTION, WORD), max_size=4))
@examples(300)
def test_options_of_stages(pairs: list[tuple[str, str]]) -> None:
    said = io.StringIO()
    words = [f"{option}={value}" if option else value for option, value in pairs]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        try:
            found = command_line._parser("takd.evaluation.evaluate").parse_args(
                ["--spec={}", *words]
            )
        except SystemExit as end:
            text = said.getvalue()
            if end.code:
                assert text.startswith("Error: ") and text.count("\n") == 1, text
            return
    assert isinstance(found, argparse.Namespace) and isinstance(found.spec, dict)
    counts = (found.threads, found.processes, found.nodes, found.micro_batch)
    assert all(1 <= count < 10**9 for count in counts)
    assert found.runtime is None or 0 < found.runtime < float("inf")
    assert command_line._by_name(found.input) is not None


@given(st.sampled_from([*amounts.LEAST, *amounts.SWITCHES, *amounts.AMOUNTS, "gres"]), VALUES)
@examples(150)
def test_numbers_of_profiles(name: str, value: Any) -> None:
    right = amounts.wrong(name, value)
    if right is None and name in amounts.LEAST:
        assert float(value) >= amounts.LEAST[name] and float(value) == int(float(value))


# folders


@given(
    VALUES | st.just(None),
    st.sampled_from(["data_files", "data_dir", "configs"]),
    st.binary(max_size=30),
)
@examples(150)
def test_cards_of_data_folders(value: Any, key: str, end: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        front = yaml.safe_dump({"configs": [{key: value}]}).encode("utf-8", "surrogatepass")
        (Path(folder) / "README.md").write_bytes(b"---\n" + front + end + b"\n---\n")
        try:
            check_within(Path(folder))
        except InputError as error:
            in_sentences(error, "README.md")


@given(st.binary(max_size=40), st.binary(max_size=40), VALUES)
@examples(150)
def test_headers_of_weights(head: bytes, tail: bytes, value: Any) -> None:
    text = json.dumps(
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": value}
    ).encode()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_bytes(head or json.dumps(value).encode())
        (folder / "model.safetensors").write_bytes(
            len(text).to_bytes(8, "little") + text + tail if tail else head
        )
        for found in (safetensors_parameters(folder), positions(folder)):
            assert found is None or isinstance(found, int)
