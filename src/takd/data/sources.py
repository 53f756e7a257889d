"""Sources of rows: JSON lines, local or downloaded, a folder or the Hub through `datasets`, the demo's generator."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from takd.data import conversations, demo, filters
from takd.data.folders import files_below
from takd.data.records import others, records
from takd.data.row import ASSISTANT, Row
from takd.data.tally import Unused
from takd.data.text_files import Record, encodable, kind, lines
from takd.runtime.errors import InputError
from takd.runtime.files import check_unchanged

Source = Mapping[str, Any]


def rows(
    source: Source, dropped: Callable[[Row], None] | None = None, unused: Unused | None = None
) -> Iterator[Row]:
    """Read instruction rows in the order of the source.

    Args:
        source: `{"json": path}`, `{"url": address, "sha256"}`, `{"hub": name, "revision", "config", "split"}`,
            `{"hub": name, "revision", "file", "sha256"}`, `{"folder": path, "split"}` or
            `{"demo": {"part", "rows", "seed", "topics"}}`. `sha256` beside a local path is checked. `rows` is the first
            row and the one after the last; `columns` maps `instruction`, `input`, `output` (None: rows are prompts
            alone) and `messages` to other names, and `stratum` to the key that scores are broken down by.
            `min_response_words` and `max_response_words` filter rows (`takd.data.filters`); `expect_rows` and
            `rows_sha256` describe the rows that remain.
        dropped: called with each row that is dropped for the length of its answer.
        unused: collects the keys and files that are not read.

    Raises:
        InputError: a file or split is missing or changed, there are fewer rows than requested or other rows than
            expected, or a row is invalid; names the line.
    """
    kept = filters.keep(source, _rows(source, unused or Unused()), dropped)
    return filters.expected(source, describe(source), kept)


def _rows(source: Source, unused: Unused) -> Iterator[Row]:
    """All rows, of any length."""
    if "demo" in source:
        for number, (instruction, context, answer) in enumerate(demo.rows(**source["demo"])):
            yield Row(number, instruction, context, (answer,), demo.task(instruction))
        return
    columns = source.get("columns", {})
    start, stop = source.get("rows", (0, None))
    number = -1
    found = records(source, describe(source), unread=unused.leave)
    for number, (where, record) in enumerate(islice(found, stop)):
        if number < start:
            continue
        read = _conversation if conversations.column(record, columns) else _instruction
        row, keys, others = read(where, record, columns, number)
        if "stratum" in columns:
            row = row._replace(stratum=_text(where, columns["stratum"], record))
            keys.append(columns["stratum"])
        unused.see(number, {**record, **others}, keys)
        yield row
    wanted = (start + 1 if start else 0) if stop is None else stop
    if number + 1 < wanted:
        raise InputError(
            f"{describe(source)} has {number + 1} rows, fewer than `rows` asks for; correct its numbers."
        )


def _instruction(
    where: str, record: Record, columns: Mapping[str, Any], number: int
) -> tuple[Row, list[str], dict[str, Any]]:
    """A row of instruction, input and output; the keys read for it, and what of it is not read."""
    asked, given, said = (columns.get(name, name) for name in ("instruction", "input", "output"))
    instruction = _text(where, asked, record)
    empty = record.get(given) is None
    # the default column may be absent, but a named one must exist
    context = "" if empty and (given in record or "input" not in columns) else None
    if context is None:
        context = _text(where, given, record)
    references = () if said is None else _references(where, said, record)
    keys = [asked, given, *([said] if said else [])]
    return Row(number, instruction, context, references), keys, {}


def _conversation(
    where: str, record: Record, columns: Mapping[str, Any], number: int
) -> tuple[Row, list[str], dict[str, Any]]:
    """The same of a conversation."""
    key = conversations.column(record, columns)
    assert key is not None
    messages = conversations.messages(where, key, record)
    role, text = messages[-1]
    references = (text,) if role == ASSISTANT else ()
    *history, (_, instruction) = messages[:-1] if references else messages
    row = Row(number, instruction, "", references, history=tuple(history))
    return row, [key], dict(conversations.unread(key, record))


def texts(
    source: Source, empty: Callable[[], None] | None = None, unused: Unused | None = None
) -> Iterator[str]:
    """Read the documents of a plain-text corpus.

    Args:
        source: `{"text": path}`, a file or a folder of .txt files (a document is a paragraph, ended by blank lines or
            the end of the file), or one of the sources of `rows` whose rows have the key `text`. Empty documents are
            left out. Reading is lazy: nothing is read or downloaded before it is needed.
        empty: called for each document that is left out.
        unused: collects the keys and files that are not read.

    Raises:
        InputError: as for `rows`, and for an interrupted stream.
    """
    unused = unused or Unused()
    if "text" in source:
        check_unchanged(source)
        place = Path(source["text"])
        files = files_below(place, ".txt") if place.is_dir() else [place]
        if not files:
            raise InputError(f"{place}: no .txt files in this folder; it has to hold the corpus.")
        for other in others(place, files) if place.is_dir() else []:
            unused.leave(other)
        for file in files:
            yield from _paragraphs(file)
        return
    found = records(source, describe(source), streaming=True, unread=unused.leave)
    for number, (where, record) in enumerate(found):
        unused.see(number, record, ("text",))
        if text := _text(where, "text", record):
            yield text
        elif empty:
            empty()


def describe(source: Source) -> str:
    """Describe a source in a few words, for messages and the data report."""
    if wanted := source.get("demo"):
        parts = [f"demo {wanted['part']} (seed {wanted.get('seed', 1)})"]
    else:
        kind = next(kind for kind in ("json", "text", "url", "hub", "folder") if kind in source)
        parts = [f"{'hub ' if kind == 'hub' else ''}{source[kind]}"]
        parts += [f"{key} {source[key]}" for key in ("config", "split", "file") if source.get(key)]
        if "rows" in source:
            start, stop = source["rows"]
            parts.append(f"rows from {start}" if stop is None else f"rows {start} to {stop - 1}")
    return ", ".join(filter(None, [*parts, filters.describe(source)]))


def _paragraphs(path: Path) -> Iterator[str]:
    paragraph: list[str] = []
    for _, line in lines(path):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def _text(where: str, key: str, record: Mapping[str, Any]) -> str:
    if key not in record:
        present = ", ".join(f"'{name}'" for name in record) or "none"
        hint = "" if key == "text" else "; name the one that is meant in `columns`"
        raise InputError(f"{where}: no key '{key}'; its keys are {present}{hint}.")
    return encodable(where, key, record[key], "has to be a text")


def _references(where: str, key: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    found = record.get(key)
    if key in record and isinstance(found, list) and found:
        wanted = "has to be a text or a list of texts"
        return tuple(encodable(where, key, entry, wanted) for entry in found)
    if isinstance(found, str) or key not in record:
        return (_text(where, key, record),)
    raise InputError(
        f"{where}: '{key}' is {kind(found)}; it has to be a text or a list of texts with at least one."
    )
