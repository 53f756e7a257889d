"""Stage: build a data set from a teacher's responses to the training prompts.

Inputs: `piece` (manifests of the parts), `prompts`, `tokenizer`, and the manifest of `teacher`.
Outputs: `dataset` (the columns of a prepared split, with the same prompts row by row), `manifest`.

A response that was cut at the maximum length stays without an end token, as truncated references
do, since it is only the beginning of what the teacher would have written. (The authors' code adds
an end token.)
"""

import heapq
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from takd.data.arrow import row_features, save
from takd.data.prepared import dataset_of
from takd.models import causal_lm
from takd.runtime.errors import InputError
from takd.runtime.stage import PIECE, Stage


def run(stage: Stage) -> None:
    """Replace the references by the responses of all parts.

    Raises:
        InputError: the parts do not hold exactly one response to each prompt.
    """
    spec = stage.spec
    prompts = dataset_of(stage, "prompts")
    tokenizer = causal_lm.tokenizer_of(stage)
    files = [path.parent / "answers.jsonl" for path in stage.many(PIECE)]
    # each part is in the order of the split
    answers = heapq.merge(*map(_lines, files), key=lambda answer: answer["row"])
    counts = {"rows": len(prompts), "cut_responses": 0}
    tokens = {"prompt": 0, "response": 0}

    def rows() -> Iterator[dict[str, Any]]:
        for row, answer in _pairs(prompts, answers, stage.outputs["dataset"].parent):
            counts["cut_responses"] += not answer["finished"]
            tokens["prompt"] += len(row["prompt_ids"])
            tokens["response"] += len(answer["tokens"])
            yield answered(row, answer["tokens"], tokenizer)

    digest = save(rows(), row_features(), stage.temporary(stage.outputs["dataset"]))
    stage.commit(stage.outputs["dataset"])
    stage.write_manifest(
        stage.outputs["manifest"], kind="generations", counts=counts, tokens=tokens, sha256=digest
    )
    stage.say(
        f"{spec['lineage']} seed {spec['seed']} wrote {counts['rows']} responses of"
        f" {tokens['response'] / max(counts['rows'], 1):.0f} tokens on average,"
        f" {counts['cut_responses']} cut at {spec['decoding']['max_new_tokens']}"
    )


def answered(
    row: dict[str, Any], tokens: list[int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Return a row with other tokens as its response, and their text as its only reference."""
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    return {**row, "response_ids": tokens, "references": [text]}


def _pairs(
    prompts: Dataset, answers: Iterator[dict[str, Any]], folder: Path
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield rows with their responses."""
    for index, row in enumerate(prompts):
        answer = next(answers, {"row": None})
        if answer["row"] != index:
            raise InputError(
                f"{folder}: row {index} of {len(prompts)} has no answer in the parts; remove this folder"
                " and start snakemake again."
            )
        yield row, answer
    if (more := next(answers, None)) is not None:
        raise InputError(
            f"{folder}: the parts hold an answer to row {more['row']}, but there are {len(prompts)}"
            " prompts; remove this folder and start snakemake again."
        )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
