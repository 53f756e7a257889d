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
from itertools import zip_longest
from pathlib import Path
from typing import Any

from takd.data.arrow import dataset_of, row_features, save
from takd.models.causal_lm import tokenizer_of
from takd.models.flops import body_forward, decoding, spent
from takd.models.shapes import config_of
from takd.models.tokenizer_check import texts_of
from takd.runtime.errors import InputError
from takd.runtime.stage import PIECE, Stage


def run(stage: Stage) -> None:
    """Replace the references by the responses of all parts.

    Raises:
        InputError: the parts do not hold exactly one response to each prompt.
    """
    spec = stage.spec
    prompts, tokenizer = dataset_of(stage, "prompts"), tokenizer_of(stage)
    files = [path.parent / "answers.jsonl" for path in stage.many(PIECE)]
    # each part is in the order of the split
    responses = heapq.merge(*map(_lines, files), key=lambda response: response["row"])
    counts = {"rows": len(prompts), "cut_responses": 0}
    tokens = {"prompt": 0, "response": 0}
    lengths: list[tuple[int, int]] = []

    def rows() -> Iterator[dict[str, Any]]:
        for index, (row, response) in enumerate(zip_longest(prompts, responses)):
            if row is None or response is None or response["row"] != index:
                raise InputError(
                    f"{stage.outputs['dataset'].parent}: the parts do not hold one response to each of"
                    f" {len(prompts)} prompts (see row {min(index, len(prompts))}); remove this folder and start"
                    " snakemake again."
                )
            ids = response["tokens"]
            if response["finished"]:  # by any of the end tokens; labels have one
                ids = [*ids[:-1], tokenizer.eos_token_id]
            counts["cut_responses"] += not response["finished"]
            tokens["prompt"] += len(row["prompt_ids"])
            tokens["response"] += len(ids)
            lengths.append((len(row["prompt_ids"]), len(ids)))
            yield {**row, "response_ids": ids, "references": texts_of(tokenizer, [ids])}

    digest = save(rows(), row_features(), stage.temporary(stage.outputs["dataset"]))
    stage.commit(stage.outputs["dataset"])
    shape = config_of(stage.input("teacher").parent / "model")
    own = sum(body_forward(shape, p) + decoding(shape, p, r) for p, r in lengths)
    facts: dict[str, Any] = {"counts": counts, "tokens": tokens, "sha256": digest}
    facts |= spent(f"teachers/{spec['lineage']}/seed{spec['seed']}/generations", own, stage.inputs)
    stage.write_manifest(stage.outputs["manifest"], kind="generations", **facts)
    stage.say(
        f"{spec['lineage']} seed {spec['seed']} wrote {counts['rows']} responses of"
        f" {tokens['response'] / max(counts['rows'], 1):.0f} tokens on average,"
        f" {counts['cut_responses']} cut at {spec['decoding']['max_new_tokens']}"
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)
