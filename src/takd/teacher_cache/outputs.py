"""Stage: store a teacher's outputs for the tokens of a data set, once for all its students.

Inputs: `teacher`, `data`, `tokenizer` (manifests). Outputs: `outputs` (the format of
`takd.losses.teacher_logits.StoredOutputs`: response tokens row by row, in the order of the data set),
`metrics`, `manifest`.

Kind `hidden` stores the last hidden states, from which full distributions are one matrix product
away; kind `top_k` stores the log-probabilities of the likeliest tokens. The file is written in
portions, and a killed run resumes with the unfinished portion.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute
import torch
from torch import Tensor
from transformers import PreTrainedModel

from takd.data.arrow import PreparedRows, dataset_of
from takd.decoding import loading
from takd.losses.batch import Pair, by_length
from takd.losses.chunked import chunk_size
from takd.models.causal_lm import tokenizer_of
from takd.models.flops import body_forward, head, spent
from takd.models.logits import project
from takd.models.shapes import config_of
from takd.runtime.errors import InputError
from takd.runtime.sharding import JsonlStore, Shard, resumable
from takd.runtime.stage import Stage
from takd.teacher_cache.tensor_file import TensorFile

PORTION = 2**15  # tokens in memory at once, and the most that a killed run loses


def run(stage: Stage) -> None:
    """Write the file, or the rest of it, and move it into place.

    Raises:
        InputError: `top_k` is not less than the number of tokens.
        Interrupted: SIGTERM or time limit.
    """
    loading.configure_libraries(stage)
    spec = stage.spec
    dataset = dataset_of(stage, "data")
    title = f"{spec['lineage']} seed {spec['seed']} reads {spec['split']}"
    with resumable(stage, stage.outputs["manifest"]) as (folder, _, journal):
        tokens = _fill(stage, title, dataset, folder)
        os.replace(folder / "outputs.safetensors", stage.outputs["outputs"])
        read = sum(int(counts.sum()) for counts in _lengths(dataset).values())
        loading.close_log(stage, journal, len(dataset), read)
        place = (
            f"teachers/{spec['lineage']}/seed{spec['seed']}/outputs/{spec['split']}/{spec['kind']}"
        )
        stage.write_manifest(
            stage.outputs["manifest"],
            kind="teacher_outputs",
            rows=len(dataset),
            tokens=tokens,
            **spent(place, _flops(stage, dataset), stage.inputs),
        )
    size = stage.outputs["outputs"].stat().st_size
    stage.say(f"{title}: {tokens} tokens, {spec['kind']}, {size / 2**20:.0f} MB")


def _flops(stage: Stage, dataset: PreparedRows) -> float:
    """FLOPs of a pass over each row, and for `top_k` of the logits of its predicted tokens."""
    shape = config_of(stage.input("teacher").parent / "model")
    predicted = (
        offsets(dataset).diff().tolist() if stage.spec["kind"] == "top_k" else [0] * len(dataset)
    )
    lengths = sum(_lengths(dataset).values(), torch.zeros(1)).long().tolist()
    return sum(
        body_forward(shape, length) + head(shape, count)
        for length, count in zip(lengths, predicted, strict=True)
    )


def offsets(dataset: PreparedRows) -> Tensor:
    """Return the token at which each row begins, and the end, (rows + 1,).

    Rows have as many tokens as `losses.batch.RightPadded` predicts.
    """
    lengths = _lengths(dataset)
    if "input_ids" in lengths:
        counts = (lengths["input_ids"] - 1).clamp(min=0)  # the first token is not predicted
    else:
        unpredicted = (lengths["prompt_ids"] == 0).long()
        counts = (lengths["response_ids"] - unpredicted).clamp(min=0)
    return torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])


def _lengths(dataset: PreparedRows) -> dict[str, Tensor]:
    """Number of tokens in each row, (rows,), by column."""
    return {
        name: torch.tensor(pyarrow.compute.list_value_length(dataset.data.column(name)).to_pylist())
        for name in dataset.column_names
        if name.endswith("_ids")
    }


def likeliest(
    model: PreTrainedModel, hidden_nh: Tensor, vocabulary: int, count: int
) -> dict[str, Tensor]:
    """Compute the `count` likeliest next tokens and their log-probabilities, (n, count) each."""
    pieces = hidden_nh.split(chunk_size(vocabulary, hidden_nh.device))
    found = [project(model, piece, vocabulary).log_softmax(-1).topk(count) for piece in pieces]
    return {
        "tokens": torch.cat([top.indices for top in found]).int(),
        "log_probabilities": torch.cat([top.values for top in found]),
    }


def _fill(stage: Stage, title: str, dataset: PreparedRows, folder: Path) -> int:
    """Write the file `outputs.safetensors` into the folder; return its number of tokens."""
    spec, kind = stage.spec, stage.spec["kind"]
    longest = int(sum(_lengths(dataset).values(), torch.zeros(1)).max())
    of_model, tokenizer = stage.input("teacher").parent / "model", tokenizer_of(stage)
    model, vocabulary = loading.load(stage, of_model, tokenizer, spec["lineage"], reads=longest)
    if kind == "top_k" and spec["top_k"] >= vocabulary:
        raise InputError(
            f"teacher_cache.top_k is {spec['top_k']}, but the tokenizer has {vocabulary} entries in all;"
            " choose a smaller number, or teacher_outputs: hidden, which keeps whole distributions."
        )
    starts = offsets(dataset)
    total = int(starts[-1])
    width = model.get_output_embeddings().weight.shape[1]
    tensors: dict[str, Any] = {"offsets": (torch.int64, tuple(starts.shape))}
    if kind == "hidden":
        tensors["hidden"] = (model.dtype, (total, width))
    else:
        tensors["tokens"] = (torch.int32, (total, spec["top_k"]))
        tensors["log_probabilities"] = (torch.float32, (total, spec["top_k"]))
    file = TensorFile(folder / "outputs.safetensors", tensors)
    columns = set(tensors) - {"offsets"}
    store = JsonlStore(folder, "portions", Shard(), stage.say)
    done = _kept(file, columns, store, starts.tolist()) if file.begun() else 0
    if not done:
        file.begin()
    file.write(0, {"offsets": starts})
    with store.saving(stage, title, "rows", len(dataset), done) as save:
        for first, after in _portions(starts.tolist(), done):
            begin, end = int(starts[first]), int(starts[after])
            file.write(begin, _portion(stage, model, vocabulary, dataset, first, after))
            digest = file.digest(columns, begin, end)
            save({"first": first, "after": after, "digest": digest}, count=after - first)
    return total


def _kept(
    file: TensorFile, columns: Collection[str], store: JsonlStore, starts: Sequence[int]
) -> int:
    """Count the rows of earlier attempts whose outputs are undamaged, up to the first damage."""
    written = {record["first"]: record for record in store.read()}
    done = 0
    while (record := written.get(done)) is not None:
        after = record["after"]
        if file.digest(columns, starts[done], starts[after]) != record["digest"]:
            store.say(
                f"{file.path}: rows from {done} on are not what was written; they are read again"
            )
            break
        done = after
    return done


def _portions(starts: Sequence[int], done: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of the remaining rows, of about `PORTION` tokens each."""
    first = done
    for row in range(done, len(starts) - 1):
        if starts[row + 1] - starts[first] >= PORTION or row == len(starts) - 2:
            yield first, row + 1
            first = row + 1


@torch.no_grad()
def _portion(
    stage: Stage,
    model: PreTrainedModel,
    vocabulary: int,
    dataset: PreparedRows,
    first: int,
    after: int,
) -> dict[str, Tensor]:
    """Compute the outputs of a range of rows, concatenated, (tokens, ...) each."""
    found: dict[int, dict[str, Tensor]] = {}
    texts = _texts(dataset, first, after)
    sizes = stage.micro_batch, model.device, stage.max_tokens
    for chosen, batch in by_length(texts, *sizes):
        hidden_nh = batch.hidden(model).to(model.dtype)
        values = {"hidden": hidden_nh}
        if stage.spec["kind"] == "top_k":
            values = likeliest(model, hidden_nh, vocabulary, stage.spec["top_k"])
        pieces = {name: batch.split(value.cpu()) for name, value in values.items()}
        for place, index in enumerate(chosen):
            found[index] = {name: split[place] for name, split in pieces.items()}
    return {name: torch.cat([found[i][name] for i in range(len(texts))]) for name in found[0]}


def _texts(dataset: PreparedRows, first: int, after: int) -> list[Pair]:
    rows = dataset[first:after]
    if "input_ids" in rows:
        return [([], block) for block in rows["input_ids"]]
    return list(zip(rows["prompt_ids"], rows["response_ids"], strict=True))
