"""All numbers of an experiment in long form: one line per number, one column per variable (Wickham, Tidy Data, 2014).

`scores.csv` has the means, `scores.parquet` also the values behind them. The column `statistic` is one of:

- `mean`: a measure of one model on one set, over all prompts; over all decoding seeds where `decoding_seed` is empty;
- `score`: one answer, x 100 (`takd.analysis.results.MEASURES`): a prompt and a decoding seed;
- `sum`: a sum over the tokens of one prompt's texts, of all references or of all decoding seeds
  (`likelihoods/prompts.jsonl`). Names are `references/<quantity>` and `<role>/<texts>/<quantity>`, as in that file; the
  mean over any choice of prompts is the sum of the quantity over that of `tokens`. Where the first teacher is the
  direct one, only `direct` is present.
"""

import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from takd.analysis import csv_files
from takd.analysis.measures import MEASURES
from takd.analysis.results import MEASURES as OF_ANSWERS
from takd.analysis.results import Evaluation, Results, Row, prompts_read
from takd.experiment.labels import chain_text, methods_text
from takd.experiment.lineage import split, teacher_of

Line = dict[str, Any]
ABOUT = (
    *("experiment", "set", "lineage", "chain", "methods", "method", "model", "teacher"),
    *("parameters", "seed", "rouge_tokenizer"),
)
"""What a line says of its model and set; `teacher` is a lineage, `seed` that of the training, `rouge_tokenizer` says
which tokens ROUGE-L has on the set."""
NUMBERED = ("statistic", "decoding_seed", "prompt", "measure", "value", "better")
COLUMNS = (*ABOUT, *NUMBERED)
BETTER = {measure.name: measure.better for measure in MEASURES}


def to_csv(results: Results) -> str:
    """Write the means of all measures in full precision; cells that do not apply are empty."""
    return csv_files.to_csv(
        COLUMNS,
        (
            _about(results, evaluation) | line
            for evaluation in results.evaluations.values()
            for line in _means(evaluation)
        ),
    )


def _about(results: Results, evaluation: Evaluation) -> Line:
    node, hop = evaluation.node, split(evaluation.node.lineage)[-1]
    found = (
        *(results.spec["experiment"], evaluation.set, node.lineage, chain_text(node.lineage)),
        *(methods_text(node.lineage), hop.method, hop.model, teacher_of(node.lineage)),
        *(results.models[node].parameters, node.seed, evaluation.rouge_tokenizer),
    )
    return dict(zip(ABOUT, found, strict=True))


def _means(evaluation: Evaluation) -> Iterator[Line]:
    """Yield every measure of a model on a set, over all decoding seeds and for each."""
    for measure in MEASURES:
        whole = measure.of(evaluation)
        values = {None: whole} | dict(sorted(measure.by_seed(evaluation).items()))
        for seed, value in values.items():
            if value is not None and math.isfinite(value):
                yield _number("mean", seed, None, measure.name, value)


def _number(statistic: str, seed: int | None, prompt: int | None, name: str, value: float) -> Line:
    better = "" if statistic == "sum" else BETTER[name]
    return dict(zip(NUMBERED, (statistic, seed, prompt, name, value, better), strict=True))


def write_parquet(results: Results, evaluations: Path, path: Path) -> None:
    """Write all numbers as Parquet, one row group per model, set and kind, so that memory use stays low.

    The bytes depend on the results and on the version of pyarrow, which the file names as its writer.

    Args:
        evaluations: folder above the lineages, where the sums are.
        path: the file to write; it is replaced atomically.
    """
    # imported here: reading a report should not need pyarrow
    import pyarrow as pa
    from pyarrow import parquet

    words = pa.dictionary(pa.int32(), pa.string())
    kinds = {"parameters": pa.int64(), "value": pa.float64()}
    kinds |= {name: pa.int64() for name in ("seed", "decoding_seed", "prompt")}
    schema = pa.schema([(name, kinds.get(name, words)) for name in COLUMNS])
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
        for (node, name), evaluation in results.evaluations.items():
            about = _about(results, evaluation)
            read = prompts_read(evaluations, node, name)
            for rows in (_means(evaluation), _scores(evaluation), _sums(read)):
                for part in _batches(rows, 100_000):
                    columns: Line = {key: [value] * len(part) for key, value in about.items()}
                    columns |= {key: [line[key] for line in part] for key in NUMBERED}
                    arrays = [_column(pa, columns[field.name], field.type) for field in schema]
                    writer.write_table(pa.table(arrays, schema=schema))
    os.replace(partial, path)


def _column(pa: Any, values: list[Any], kind: Any) -> Any:
    """Build a column; texts are dictionary-encoded, since few values repeat often."""
    if not pa.types.is_dictionary(kind):
        return pa.array(values, kind)
    return pa.array(values, kind.value_type).dictionary_encode().cast(kind)


def _scores(evaluation: Evaluation) -> Iterator[Line]:
    """Yield the scores of every answer, by measure, prompt and decoding seed."""
    seeds = evaluation.scores["decoding_seeds"]
    for measure in OF_ANSWERS:
        scores_pd: np.ndarray = evaluation.by_draw[measure]
        for prompt, of_prompt in zip(evaluation.ids, scores_pd.tolist(), strict=True):
            for seed, value in zip(seeds, of_prompt, strict=True):
                yield _number("score", seed, prompt, measure, value)


def _sums(read: Iterator[Row]) -> Iterator[Line]:
    """Yield the sums of each prompt over its texts of a kind."""
    for line in read:
        for name, texts in _kinds(line):
            quantities = (key for key in texts[0] if key not in ("reference", "seed", "bins"))
            for quantity in quantities:
                value = math.fsum(text[quantity] for text in texts)
                yield _number("sum", None, line["id"], f"{name}/{quantity}", value)


def _kinds(line: Row) -> Iterator[tuple[str, list[Row]]]:
    """Group the texts of a prompt by kind and by teacher."""
    for name, found in line.items():
        if name == "references":
            yield name, found
        elif name != "id":
            yield from ((f"{name}/{kind}", texts) for kind, texts in found.items())


def _batches(rows: Iterator[Line], size: int) -> Iterator[list[Line]]:
    while part := list(itertools.islice(rows, size)):
        yield part
