"""The table as files: results.csv, differences.csv, scores.csv and scores.parquet, each a selection of it.

CSV is for spreadsheets: no text is read as a formula, and reading a file back gives the written values. A text that
begins with a character that spreadsheets take for a formula (=, +, -, @, their full-width forms, a tab or a carriage
return), or with an apostrophe, gets an apostrophe before it (OWASP, "CSV Injection"). To recover the text, remove one
apostrophe from its beginning. Numbers stay as they are, negative ones too.

scores.csv and scores.parquet have one line per number, one column per variable (Wickham, Tidy Data, 2014); means in
both, scores of single answers and sums over the tokens of a prompt's texts in Parquet alone (docs/report.md).
"""

import csv
import io
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from takd.analysis import table
from takd.analysis.comparisons import Pair
from takd.analysis.fairness import warning
from takd.analysis.measures import BY_NAME, TESTED, TRAININGS, measured
from takd.analysis.result_files import prompts_read, wall_minutes
from takd.analysis.results import Evaluation, JsonRow, Results
from takd.analysis.table import ANY, DIFFERENCE, EACH, SCORE, Line, Number
from takd.experiment.lineage import is_given

MARK = "'"
FORMULA = tuple("=+-@\t\r\n＝＋－＠" + MARK)
ABOUT = (
    *("experiment", "set", "lineage", "chain", "methods", "method", "model", "teacher"),
    *("parameters", "seed", "rouge_tokenizer"),
)
"""What a line of scores.csv says of its model and set; `teacher` is a lineage, `seed` that of the training, none
of a model as given, `rouge_tokenizer` says which tokens ROUGE-L has on the set."""
NUMBERED = ("statistic", "decoding_seed", "prompt", "measure", "value", "better")
COLUMNS = (*ABOUT, *NUMBERED)
UNCERTAINTY = (
    *("low", "high", "prompts_low", "prompts_high"),
    *("se_prompts", "se_training_seeds", "se_decoding_seeds"),
)
TESTS = (
    *("p", "p_raw", "prompts_p", "prompts_p_raw"),
    *("significant", "significant_these_checkpoints"),
)
HEADS = {"p": "p (Holm)"}
"""Columns of CSV files whose names are not those of the table."""


def to_csv(
    lines: Iterable[Mapping[str, Any]], names: Sequence[str] = (), digits: int | None = 4
) -> str:
    """Write a header and lines, whose keys are its names; None becomes an empty cell.

    Args:
        names: columns and their order; if not given, those of the first line.
        digits: decimals of a number, at most; None for all.
    """
    lines = list(lines)
    names = names or list(lines[0] if lines else [])
    texts = []
    for cells in [names, *([line.get(name) for name in names] for line in lines)]:
        file = io.StringIO()
        # with CRLF as line end, cells that contain either character are quoted; pandas has one line end for all
        csv.writer(file, lineterminator="\r\n").writerow(_cell(cell, digits) for cell in cells)
        texts.append(file.getvalue().removesuffix("\r\n") + "\n")
    return "".join(texts)


def _cell(value: Any, digits: int | None) -> Any:
    if isinstance(value, str):
        return f"{MARK}{value}" if value.startswith(FORMULA) else value
    if isinstance(value, float) and digits is not None and math.isfinite(value):
        # adding zero turns minus zero into zero
        return f"{round(value, digits) + 0.0:.{digits}f}".rstrip("0").rstrip(".")
    return value


def columns(key: str, found: Number | None) -> dict[str, float | None]:
    """Map a number, its 95 % confidence intervals and its standard errors to columns that start with `key`."""
    uncertainty = {f"{key}_{part}": found and getattr(found, part) for part in UNCERTAINTY}
    return {key: found and found.value, **uncertainty}


def tests(found: Number | None, key: str = "") -> dict[str, Any]:
    """Map a difference's test to columns whose names start with `key`."""
    return {f"{key}{HEADS.get(part, part)}": found and getattr(found, part) for part in TESTS}


def results_csv(results: Results) -> str:
    """Write one line per lineage and evaluation set, one column per variable."""
    return to_csv(
        _results_line(results, line, name)
        for line in table.lines(results)
        for name in results.spec["sets"]
    )


def _results_line(results: Results, line: Line, name: str) -> dict[str, Any]:
    here = table.select(table.of(results), set=name, lineage=line.lineage, seed=ANY)

    def first(**wanted: Any) -> Number | None:
        # a lineage has one counterpart of a question
        return next(iter(table.rows(here, **wanted)), None)

    def with_seeds(key: str, more: dict[str, Any] | None = None, **wanted: Any) -> dict[str, Any]:
        """Columns of a mean, and the values behind it, one per training seed of the experiment."""
        values = {number.seed: number.value for number in table.rows(here, seed=EACH, **wanted)}
        seeds = {f"{key}_seed_{seed}": values.get(seed) for seed in results.spec["seeds"]}
        return columns(key, first(**wanted)) | (more or {}) | seeds

    models = results.of(line.lineage)
    seeds = [] if is_given(line.lineage) else results.seeds(line.lineage)
    rouge = first(kind=SCORE, measure="rougeL")
    assert rouge
    cells: dict[str, Any] = {"set": name, "role": line.role, "label": line.label}
    cells |= {key: getattr(rouge, key) for key in ("lineage", "chain", "methods", "model")}
    cells |= {
        "parameters": rouge.parameters,
        "training_seeds": " ".join(map(str, seeds)),
        "n_training_seeds": len(seeds),
        "decoding_seeds": " ".join(map(str, results.spec["decoding_seeds"])),
        "prompts": rouge.n_prompts,
        "rouge_tokenizer": results.evaluations[results.nodes[0], name].rouge_tokenizer,
    }
    for measure in (m for m in TESTED if any(m in results.tested(n) for n in results.spec["sets"])):
        cells |= with_seeds(measure, kind=SCORE, measure=measure)
    for measure in ("response_tokens", "cut_off"):
        mean = first(kind=SCORE, measure=measure)
        cells[measure] = mean and mean.value
    for exact in (each.name for each in measured(results) if each.interval == TRAININGS):
        cells |= with_seeds(exact, kind=SCORE, measure=exact)
    for baseline, question in (("sft", ["sft", "control"]), ("direct", "direct")):
        key = f"gain_over_{baseline}"
        wanted = {"kind": DIFFERENCE, "measure": "rougeL", "question": question}
        gain = first(**wanted)
        more = {f"{key}_n": gain and gain.n_training_seeds} | tests(gain, f"{key}_")
        cells |= with_seeds(key, more, **wanted)
    theirs = published(results, rouge)
    for place, source in enumerate(cited(results), 1):
        # a published score has no uncertainty of its own: only our interval counts
        value, key = theirs.get(source), f"published_{place}"
        cells |= {key: value, f"{key}_difference": None if value is None else rouge.value - value}
        held = None if value is None or not rouge.interval else rouge.interval.holds(value)
        cells |= {f"{key}_in_interval": held, f"{key}_source": None if value is None else source}
    cells["steps"] = sum(model.manifest["steps"] for model in models) / len(models)
    return cells | {
        "training_minutes": sum(wall_minutes(model.end) for model in models) / len(models)
    }


def cited(results: Results) -> list[str]:
    """Sources of published scores, each once."""
    return list(dict.fromkeys(target["source"] for target in results.spec["targets"] or []))


def published(results: Results, ours: Number) -> dict[str, float]:
    """Published scores of a model on a set, by source."""
    return {
        target["source"]: float(value)
        for target in results.spec["targets"] or []
        if (value := target["scores"].get(ours.lineage, {}).get(ours.set)) is not None
    }


def differences_csv(results: Results) -> str:
    """Write one line per pair of models, evaluation set, measure and stratum.

    p values are corrected within the family: one question and measure on one set, over all prompts or over all strata.
    """
    found = table.of(results)
    by_seed = {
        (_place(number), number.seed): number.value
        for number in table.rows(found, kind=DIFFERENCE, stratum=ANY, seed=EACH)
    }
    lines: list[dict[str, Any]] = []
    for number in table.rows(found, kind=DIFFERENCE, stratum=ANY):
        names = ("set", "stratum", "measure", "question", "ours", "theirs")
        line: dict[str, Any] = dict(zip(names, place := _place(number), strict=True))
        line |= {"n_training_seeds": number.n_training_seeds, "family": number.family}
        line |= columns("difference", number) | tests(number)
        line |= {f"difference_seed_{s}": by_seed.get((place, s)) for s in results.spec["seeds"]}
        lines.append(line | {"arms": warning(results, Pair(*place[3:]))})
    return to_csv(lines) if lines else to_csv([], ("set", "question", "ours", "theirs"))


def _place(of: Number) -> tuple[str, ...]:
    return (of.set, of.stratum, of.measure, of.question, of.lineage, of.other)


def scores_csv(results: Results) -> str:
    """Write the means of all measures of each trained model in full precision; cells that do not apply are empty."""
    return to_csv(_means(results).to_dict("records"), COLUMNS, digits=None)


def _means(results: Results) -> pd.DataFrame:
    found = table.select(table.of(results), kind=SCORE, seed=EACH, decoding_seed=ANY).copy()
    of_sets = {name: results.evaluations[results.nodes[0], name] for name in results.spec["sets"]}
    found["rouge_tokenizer"] = [of_sets[name].rouge_tokenizer for name in found["set"]]
    found["better"] = [BY_NAME[name].better for name in found["measure"]]
    found["statistic"], found["prompt"] = "mean", None
    found = found[list(COLUMNS)].astype(object)
    found.loc[found["lineage"].map(is_given), "seed"] = None  # it was not trained
    return found.where(found.notna(), None)


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

    # texts are dictionary-encoded, since few values repeat often
    words = pa.dictionary(pa.int32(), pa.string())
    kinds = {"parameters": pa.int64(), "value": pa.float64()}
    kinds |= {name: pa.int64() for name in ("seed", "decoding_seed", "prompt")}
    schema = pa.schema([(name, kinds.get(name, words)) for name in COLUMNS])
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    means = _means(results)
    with parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
        for (node, name), evaluation in results.evaluations.items():
            part = means[(means["lineage"] == node.lineage) & (means["set"] == name)]
            if not is_given(node.lineage):
                part = part[part["seed"] == node.seed]
            about = part[list(ABOUT)].iloc[0].to_dict()
            sums = _sums(prompts_read(evaluations, node, name))
            for lines in (part, _answers(evaluation), *_batches(sums, 100_000)):
                lines = lines.assign(**about)
                arrays = [pa.array(lines[each.name], each.type) for each in schema]
                writer.write_table(pa.table(arrays, schema=schema))
    os.replace(partial, path)


def _answers(evaluation: Evaluation) -> pd.DataFrame:
    """Scores of every response, by measure, prompt and decoding seed."""
    seeds = evaluation.scores["decoding_seeds"]
    draws = pd.MultiIndex.from_product([evaluation.ids, seeds], names=["prompt", "decoding_seed"])
    scores = {name: values.ravel() for name, values in evaluation.by_draw.items()}
    found = pd.DataFrame(scores, index=draws).reset_index()
    found = found.melt(["prompt", "decoding_seed"], var_name="measure")
    better = [BY_NAME[name].better for name in found["measure"]]
    return found.assign(statistic="score", better=better)


def _sums(read: Iterator[JsonRow]) -> Iterator[dict[str, Any]]:
    """Yield the sums of each prompt over its texts of a kind; `line` holds texts by kind, or by teacher and kind."""
    for line in read:
        kinds = {name: found for name, found in line.items() if name == "references"}
        for role in [name for name in line if name not in ("id", "references")]:
            kinds |= {f"{role}/{kind}": texts for kind, texts in line[role].items()}
        for name, texts in kinds.items():
            for quantity in texts[0]:
                if quantity not in ("reference", "seed", "bins"):
                    value = math.fsum(text[quantity] for text in texts)
                    yield {"prompt": line["id"], "measure": f"{name}/{quantity}", "value": value}


def _batches(lines: Iterator[dict[str, Any]], size: int) -> Iterator[pd.DataFrame]:
    while part := list(itertools.islice(lines, size)):
        yield pd.DataFrame(part).assign(statistic="sum", decoding_seed=None, better="")
