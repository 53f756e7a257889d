"""Prepared data sets: written as a stream, with a digest of their contents, and loaded by stages."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from takd.data.row import batches
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


def dataset_of(stage: Stage, name: str) -> Any:
    """Load the data set beside the manifest that a stage gets as its input `name`."""
    from datasets import load_from_disk

    return load_from_disk(str(stage.input(name).parent / "dataset"))


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
