"""Where rows come from: JSON lines, here or fetched, a folder or the hub through `datasets`, the demo's generator."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from takd.data import demo, filters
from takd.errors import InputError
from takd.provenance import file_digest
from takd.weight_files import AGAIN, foreign

DATA_FILES = (".parquet", ".arrow", ".json", ".jsonl", ".csv", ".gz")
PARQUET = b"PAR1"  # at both ends of a parquet file
Source = Mapping[str, Any]
T = TypeVar("T")


class Row(NamedTuple):
    """One instruction with its answers, as the source has it."""

    number: int
    """Position in the source, from 0; blank lines do not count."""
    instruction: str
    input: str
    """Empty where the row has none."""
    references: tuple[str, ...]
    """At least one; any may be empty."""

    @property
    def prompt(self) -> tuple[str, str]:
        """What makes two rows the same question: instruction and input, character by character."""
        return self.instruction, self.input


def rows(source: Source, dropped: Callable[[Row], None] | None = None) -> Iterator[Row]:
    """Read instruction rows in the order of the source.

    Args:
        source: `{"json": path}`, `{"url": address, "sha256"}`, `{"hub": name, "revision", "config", "split"}`,
            `{"hub": name, "revision", "file", "sha256"}`, `{"folder": path, "split"}` or
            `{"demo": {"part", "rows", "seed", "topics"}}`. `sha256` beside a local path is checked. `rows` is the first
            row and the one after the last; `columns` has other names of `instruction`, `input` and `output`.
            `min_response_words` and `max_response_words` leave rows out (`takd.data.filters`); `expect_rows` and
            `rows_sha256` say what is left.
        dropped: told of each row that is left out for the length of its answer.

    Raises:
        InputError: a file or split that is not there or changed, fewer rows than are asked for, other rows than are
            expected, or a row that is not one; names the line.
    """
    kept = filters.keep(source, _rows(source), dropped)
    return filters.expected(source, describe(source), kept)


def _rows(source: Source) -> Iterator[Row]:
    """All rows, of any length."""
    if "demo" in source:
        for number, (instruction, context, answer) in enumerate(demo.rows(**source["demo"])):
            yield Row(number, instruction, context, (answer,))
        return
    columns = source.get("columns", {})
    names = {name: columns.get(name, name) for name in ("instruction", "input", "output")}
    start, stop = source.get("rows", (0, None))
    number = -1
    for number, (where, record) in enumerate(islice(_records(source), stop)):
        if number < start:
            continue
        instruction = _text(where, names["instruction"], record)
        empty = record.get(names["input"]) is None
        # the usual column may be absent, one that is named may not
        if empty and (names["input"] in record or "input" not in columns):
            context = ""
        else:
            context = _text(where, names["input"], record)
        yield Row(number, instruction, context, _references(where, names["output"], record))
    wanted = (start + 1 if start else 0) if stop is None else stop
    if number + 1 < wanted:
        raise InputError(
            f"{describe(source)} has {number + 1} rows, fewer than `rows` asks for; correct its numbers."
        )


def texts(source: Source) -> Iterator[str]:
    """Read the documents of a plain-text corpus.

    Args:
        source: `{"text": path}`, a file or a folder of .txt files (a document is a paragraph: blank lines and
            the end of a file part them), or one of the sources of `rows` whose rows have the key `text`. Empty
            documents are left out. Nothing is read, or fetched from the hub, before it is asked for.

    Raises:
        InputError: as for `rows`, and for a stream that breaks off.
    """
    if "text" in source:
        check_unchanged(source)
        place = Path(source["text"])
        files = files_below(place, ".txt") if place.is_dir() else [place]
        if not files:
            raise InputError(f"{place}: no .txt files in this folder; it has to hold the corpus.")
        for file in files:
            yield from _paragraphs(file)
        return
    for where, record in _records(source, streaming=True):
        if text := _text(where, "text", record):
            yield text


def describe(source: Source) -> str:
    """A source in a few words, for messages and the data report."""
    if "demo" in source:
        wanted = source["demo"]
        lengths = filters.describe(source)
        return f"demo {wanted['part']} (seed {wanted.get('seed', 1)})" + (
            lengths and f", {lengths}"
        )
    parts = {key: source.get(key) for key in ("config", "split", "file")}
    if "rows" in source:
        start, stop = source["rows"]
        parts["rows"] = f"from {start}" if stop is None else f"{start} to {stop - 1}"
    names = "".join(f", {key} {value}" for key, value in parts.items() if value)
    if lengths := filters.describe(source):
        names += f", {lengths}"
    kind = next(kind for kind in ("json", "text", "url", "hub", "folder") if kind in source)
    return f"{'hub ' if kind == 'hub' else ''}{source[kind]}{names}"


def files_below(place: Path, ending: str = "") -> list[Path]:
    """A file itself, or all files below a folder with this ending but hidden ones, in order of their names."""
    if place.is_file():
        return [place]
    found = (path for path in place.rglob(f"*{ending}") if path.is_file())
    return sorted(
        p for p in found if not any(q.startswith(".") for q in p.relative_to(place).parts)
    )


def check_unchanged(source: Source) -> None:
    """Raise InputError if local files are not those that the workflow planned with.

    `sha256` holds the digest of the one file, or pairs of name and digest for a folder. What does not look like
    a digest (large files are planned by their size) is passed over.
    """
    place = Path(
        next(source[kind] for kind in ("json", "text", "folder", "gguf") if kind in source)
    )
    for entry in source.get("sha256", []):
        path, planned = (place, entry) if isinstance(entry, str) else (place / entry[0], entry[1])
        if not path.is_file():
            raise InputError(f"{path}: no such file, though the workflow was planned with it.")
        if len(planned) == 64 and file_digest(path) != planned:
            raise InputError(f"{path} changed after the workflow was planned; start it again.")


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut a stream into lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _records(source: Source, streaming: bool = False) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "json" in source:
        check_unchanged(source)
        yield from _json_records(Path(source["json"]))
        return
    if "url" in source or "file" in source:
        # the workflow imports this module at each start, and needs none of what reaches the net
        from takd.data.downloads import fetch

        yield from _json_records(fetch(source))
        return
    name = describe(source)
    found = iter(_data_set(source, streaming))
    for number in count():
        try:
            record = next(found)
        except StopIteration:
            return
        except Exception as error:
            # connections, decompressors and parsers: what they raise has no base of its own
            wanted = (
                "start again, to read all of it"
                if "hub" in source
                else "its files have to be whole"
            )
            raise InputError(
                f"{name}: breaks off after {number} rows ({_cause(error)}); {wanted}."
            ) from error
        yield f"{name}, row {number}", record


def _json_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            hint = (
                " (the file is one JSON array; write its elements one a line)"
                if number == 1 and line.lstrip().startswith("[")
                else ""
            )
            if number == 1 and (what_it_is := foreign(line.encode())):
                raise InputError(f"{path} {what_it_is}.") from None
            raise InputError(
                f"{where}: not valid JSON: {what}; every line has to be one JSON object{hint}."
            ) from None
        if not isinstance(record, dict):
            raise InputError(
                f"{where}: {_kind(record)}; every line has to be one JSON object such as"
                ' {"instruction": "...", "input": "...", "output": "..."}.'
            )
        yield where, record


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines without their ends, counted from 1. Only a line feed ends a line: U+2028 and its kin are text."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{path}, line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8."
                    ) from None
                yield number, text.removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; it has to be a readable file.") from None


def _paragraphs(path: Path) -> Iterator[str]:
    paragraph: list[str] = []
    for _, line in _lines(path):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def _data_set(source: Source, streaming: bool) -> Any:
    """Rows of the hub or a folder: a data set, or a stream of which no copy is made on disk."""
    # datasets takes a second to import, which the demo's sources can do without
    import datasets

    datasets.disable_progress_bars()
    split = source.get("split") or "train"
    try:
        if "hub" in source:
            return datasets.load_dataset(
                source["hub"],
                source.get("config"),
                split=split,
                revision=source.get("revision"),
                streaming=streaming,
            )
        check_unchanged(source)
        folder = Path(source["folder"])
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; it has to hold data files.")
        if not any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
            found = datasets.load_dataset(str(folder), split=split, streaming=streaming)
            if streaming and found.info.builder_name == "text":
                # datasets would make a document of each line
                raise InputError(
                    f"{folder}: holds plain text; a folder of .txt files is a corpus with the key text."
                )
            return found
        found = datasets.load_from_disk(str(folder))
        if isinstance(found, datasets.Dataset):
            return found
        if split not in found:
            raise InputError(f"{folder}: no split '{split}'; it has {', '.join(sorted(found))}.")
        return found[split]
    except InputError:
        raise
    except Exception as error:  # connections, decompressors and parsers, as above
        damaged = _damaged_file(Path(source["folder"])) if "folder" in source else ""
        wanted = (
            "its files have to be whole" if "folder" in source else "correct it, or start again"
        )
        what = damaged or f"cannot be loaded: {_cause(error)}; {wanted}"
        raise InputError(f"{describe(source)}: {what}.") from error


def _damaged_file(folder: Path) -> str:
    """The first file of a folder that is surely not what its name says, and the remedy; empty if there is none."""
    for path in (path for ending in DATA_FILES for path in files_below(folder, ending)):
        with open(path, "rb") as file:
            start = file.read(64)
            file.seek(max(path.stat().st_size - len(PARQUET), 0))
            end = file.read()
        what = foreign(start)
        if not what and path.suffix == ".parquet" and {start[:4], end} != {PARQUET}:
            what = f"is no parquet file, or has lost its end; {AGAIN}"
        if what:
            return f"its file {path} {what}"
    return ""


def _cause(error: BaseException) -> str:
    """The first line of what an error arose from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _text(where: str, key: str, record: Mapping[str, Any]) -> str:
    if key not in record:
        present = ", ".join(f"'{name}'" for name in record) or "none"
        raise InputError(f"{where}: no key '{key}'; its keys are {present}.")
    return _encodable(where, key, record[key], "has to be a text")


def _references(where: str, key: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    found = record.get(key)
    if key in record and isinstance(found, list) and found:
        wanted = "has to be a text or a list of texts"
        return tuple(_encodable(where, key, entry, wanted) for entry in found)
    if isinstance(found, str) or key not in record:
        return (_text(where, key, record),)
    raise InputError(
        f"{where}: '{key}' is {_kind(found)}; it has to be a text or a list of texts with at least one."
    )


def _encodable(where: str, key: str, value: Any, wanted: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: '{key}' is {_kind(value)}; it {wanted}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: '{key}' holds half of a surrogate pair at character {error.start + 1};"
            " it has to be valid Unicode."
        ) from None
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list) and not value:
        return "an empty list"
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "a number")
