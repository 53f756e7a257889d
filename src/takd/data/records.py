"""Records of a source as stored: JSON lines, CSV, data sets of a folder or the Hub. Values that are text stay text."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from takd.data.folders import check_within, files_below
from takd.data.text_files import OPENERS, TABLES, Record, json_file, json_lines, table
from takd.runtime.errors import LOG_IN, InputError
from takd.runtime.files import AGAIN, check_unchanged, foreign

Source = Mapping[str, Any]

LINES = (".json", ".jsonl", ".ndjson")
DATA_FILES = (".parquet", ".arrow", *LINES, *TABLES, ".gz")
PARQUET = b"PAR1"  # at both ends of a parquet file
NO_DATA = ("readme", "license", "licence", "dataset_infos")  # names of files that accompany data


def records(
    source: Source, name: str, streaming: bool = False, unread: Callable[[str], None] | None = None
) -> Iterator[tuple[str, Record]]:
    """Yield each record of a source, except the demo's, with its location.

    Args:
        source: as for `takd.data.sources.rows`.
        name: of the source, for messages.
        streaming: keep no copy of a data set on disk.
        unread: called with each data file of a folder that belongs to no split.

    Raises:
        InputError: a record cannot be read; names file and line, or the number of the row.
    """
    if "json" in source:
        check_unchanged(source)
        yield from json_lines(Path(source["json"]))
        return
    if "url" in source or "file" in source:
        # imported here: the workflow imports this module at each start and downloads nothing
        from takd.data.downloads import fetch

        yield from json_lines(fetch(source))
        return
    found = _data_set(source, name, streaming, unread)
    if isinstance(found, list):
        for path, separator in found:
            yield from table(path, separator) if separator else json_file(path)
        return
    number = 0
    try:
        for record in found:
            yield f"{name}, row {number}", record
            number += 1
    except Exception as error:
        # errors of connections, decompressors and parsers have no common base class
        wanted = (
            "start again, to read all of it" if "hub" in source else "its files have to be whole"
        )
        raise InputError(
            f"{name}: breaks off after {number} rows ({_cause(error)}); {wanted}."
        ) from error


def others(place: Path, read: Iterable[Path]) -> list[str]:
    """List files below a folder that are not among those read, except descriptions of the data."""
    known = set(read)
    return [
        path.relative_to(place).as_posix()
        for path in files_below(place)
        if path not in known and not path.name.lower().startswith(NO_DATA)
    ]


def _data_set(
    source: Source, name: str, streaming: bool, unread: Callable[[str], None] | None
) -> Any:
    """A data set or a stream of it; for text files in a folder, the files with their separators (none for JSON)."""
    # importing datasets takes a second, which the demo does not need
    import datasets

    datasets.disable_progress_bars()
    split = source.get("split") or "train"
    try:
        if "hub" in source:
            return _from_hub(source, split, streaming)
        check_unchanged(source)
        folder = Path(source["folder"])
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; it has to hold data files.")
        check_within(folder)
        if not any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
            return _data_files(folder, split, streaming, unread)
        found = datasets.load_from_disk(str(folder))
        if isinstance(found, datasets.Dataset):
            return found
        return _split(found, split, folder)
    except InputError:
        raise
    except Exception as error:  # no common base class, as above
        what = f"cannot be loaded: {_cause(error)}; correct it, or start again"
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            what = f"cannot be loaded: {_cause(error)}; correct it, or {LOG_IN}"
        if "folder" in source:
            what = f"cannot be loaded: {_cause(error)}; its files have to be whole"
            what = _damaged_file(Path(source["folder"])) or what
        raise InputError(f"{name}: {what}.") from error


def _damaged_file(folder: Path) -> str:
    """Name the first file of a folder that does not match its ending, and the remedy; empty if there is none."""
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


def _from_hub(source: Source, split: str, streaming: bool) -> Any:
    from datasets import load_dataset

    where = (source["hub"], source.get("config"))
    pinned = {"split": split, "revision": source.get("revision"), "streaming": streaming}
    if streaming:
        return load_dataset(*where, **pinned)
    try:
        # without na_filter=False, `NA`, `None`, `null` and the like in CSV files would be missing
        return load_dataset(*where, **pinned, na_filter=False)
    except ValueError as error:  # not CSV: only the CSV loader has this option
        if "na_filter" not in str(error):
            raise
        return load_dataset(*where, **pinned)


def _data_files(
    folder: Path, split: str, streaming: bool, unread: Callable[[str], None] | None
) -> Any:
    from datasets import load_dataset, load_dataset_builder

    builder = load_dataset_builder(str(folder))
    files = builder.config.data_files or {}
    if unread:
        read = (Path(file) for of_split in files.values() for file in of_split)
        for each in others(folder.resolve(), read):
            unread(each)
    if builder.name == "text":
        # datasets would read each line as a document
        raise InputError(
            f"{folder}: holds plain text; a folder of .txt files is a corpus with the key text."
        )
    if builder.name not in ("csv", "json"):
        return load_dataset(str(folder), split=split, streaming=streaming)
    # datasets would infer types: `NA` would be missing, "007" the number 7, "2020-01-01" a date
    return [
        (_plain(Path(file)), builder.config.sep if builder.name == "csv" else None)
        for file in _split(files, split, folder)
    ]


def _plain(path: Path) -> Path:
    suffixes = [*path.suffixes[-2:], ""]
    if path.suffix in (*TABLES, *LINES) or (
        path.suffix in OPENERS and suffixes[0] in (*TABLES, *LINES)
    ):
        return path
    raise InputError(f"{path}: {path.suffix or 'this kind of'} files are not read; unpack it.")


def _split(found: Mapping[Any, Any], split: str, folder: Path) -> Any:
    if split not in found:
        there = ", ".join(sorted(map(str, found)))
        raise InputError(f"{folder}: no split '{split}'; it has {there}.")
    return found[split]


def _cause(error: BaseException) -> str:
    """First line of the original error behind an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"
