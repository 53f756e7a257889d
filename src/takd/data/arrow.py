"""Prepared data sets: written as a stream, with a digest of their contents, and read by stages."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from takd.data.row import batches
from takd.runtime.files import read_json
from takd.runtime.stage import Stage

BATCH = 1024


def row_features(stratum: bool = False, messages: bool = False) -> Any:
    """Columns of a prepared split; `stratum` and `messages` for a scored split whose rows have them."""
    # importing datasets takes a second, which the demo's sources do not need
    from datasets import Features, List, Value

    ids = List(Value("int32"))
    return Features(
        {
            "id": Value("int64"),
            "prompt_ids": ids,
            "response_ids": ids,
            "instruction": Value("string"),
            "input": Value("string"),
            "references": List(Value("string")),
        }
        | {name: Value("string") for name in ["stratum"] * stratum + ["messages"] * messages}
    )


class PreparedRows:
    """Rows of a prepared data set, in Arrow files that are mapped into memory.

    A part of the interface of `datasets.Dataset`, whose import takes as long as that of torch.

    Attributes:
        data: the rows as a `pyarrow.Table`.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    @classmethod
    def of(cls, folder: Path) -> "PreparedRows":
        """Open a folder that `datasets.Dataset.save_to_disk` wrote."""
        import pyarrow as pa

        files = read_json(folder / "state.json")["_data_files"]
        maps = [pa.memory_map(str(folder / file["filename"])) for file in files]
        return cls(pa.concat_tables([pa.ipc.open_stream(each).read_all() for each in maps]))

    def __len__(self) -> int:
        return int(self.data.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.data.to_batches(BATCH):
            yield from batch.to_pylist()

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, key: str) -> list[Any]: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int]) -> dict[str, list[Any]]: ...
    def __getitem__(self, key: Any) -> Any:
        """Return one row, one column, or some rows column by column."""
        if isinstance(key, int):
            return {name: column[key].as_py() for name, column in self._columns()}
        if isinstance(key, str):
            return self.data.column(key).to_pylist()
        if isinstance(key, slice):
            return {name: column[key].to_pylist() for name, column in self._columns()}
        return {name: [column[row].as_py() for row in key] for name, column in self._columns()}

    def _columns(self) -> Iterator[tuple[str, Any]]:
        return zip(self.column_names, self.data.itercolumns(), strict=True)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self.data.column_names)

    def select_columns(self, names: list[str]) -> "PreparedRows":
        """Return all rows with some columns only."""
        return PreparedRows(self.data.select(names))

    def first(self, count: int) -> "PreparedRows":
        """Return the first rows; all, where there are fewer."""
        return PreparedRows(self.data.slice(0, count))


def dataset_of(stage: Stage, name: str) -> PreparedRows:
    """Open the data set beside the manifest that a stage gets as its input `name`."""
    return PreparedRows.of(stage.input(name).parent / "dataset")


def save(examples: Iterable[dict[str, Any]], features: Any, folder: Path) -> str:
    """Write examples, whose keys are in the order of the features, as a data set; returns their sha256."""
    from datasets import Dataset, disable_progress_bars
    from datasets.arrow_writer import ArrowWriter

    disable_progress_bars()
    digest = hashlib.sha256()
    # a data set cannot be saved into the folder that it is read from
    stream = folder / "stream/rows.arrow"
    stream.parent.mkdir()
    with ArrowWriter(features=features, path=str(stream)) as writer:
        for batch in batches(examples, BATCH):
            for example in batch:
                line = json.dumps(list(example.values()), ensure_ascii=False)
                digest.update(line.encode() + b"\n")
            writer.write_batch({name: [example[name] for example in batch] for name in features})
        writer.finalize()
    saved = Dataset.from_file(str(stream))
    # the default fingerprint, which is saved too, would differ each time
    Dataset(saved.data, saved.info, fingerprint=digest.hexdigest()[:16]).save_to_disk(str(folder))
    shutil.rmtree(stream.parent)
    return digest.hexdigest()
