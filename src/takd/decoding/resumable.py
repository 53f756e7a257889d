"""Responses of a model to many prompts, saved as they are sampled, so that runs can resume."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from takd.data.arrow import PreparedRows
from takd.decoding import loading
from takd.decoding.prompts import Decoding, Prompt, Response
from takd.decoding.sampling import draw
from takd.models.tokenizer_check import end_tokens
from takd.runtime.sharding import JsonlStore, Shard
from takd.runtime.stage import Stage

RowSeed = tuple[int, int]  # row of a data set, seed of the noise
Responses = dict[RowSeed, dict[str, Any]]  # each with "tokens" and "finished"


def prompts_of(
    dataset: PreparedRows, rows: Iterable[int], seeds: Iterable[int]
) -> dict[RowSeed, Prompt]:
    """Return the prompts of some rows of a prepared data set, each with every seed."""
    chosen, seeds = list(rows), list(seeds)
    found = dataset.select_columns(["id", "prompt_ids"])[chosen]
    columns = zip(chosen, found["id"], found["prompt_ids"], strict=True)
    return {(row, seed): Prompt(ids, key, seed) for row, key, ids in columns for seed in seeds}


def respond(
    stage: Stage,
    title: str,
    model: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[RowSeed, Prompt],
    decoding: Decoding,
    folder: Path,
    shard: Shard | None = None,
) -> Responses:
    """Sample responses to prompts; those that the folder already holds are not sampled again.

    Each response is saved when it ends, so a killed run loses at most the rows that are decoded together.

    Args:
        title: text for progress messages, such as the model and the data.
        model: folder of the model.
        folder: folder in which responses are saved.
        shard: this process's share of the prompts; all processes return all responses.

    Raises:
        InputError: `takd.decoding.sampling` does not support the model.
        Interrupted: SIGTERM or time limit; finished responses are in the folder.
    """
    shard = shard or Shard()
    store = JsonlStore(folder, "answers", shard, stage.say)
    responses = _stored(store)
    left = [(key, prompt) for key, prompt in prompts.items() if key not in responses]
    # no process may write before all have read, as they would disagree about what is left
    shard.wait()
    if not left:
        return responses
    # sorted by length; every process gets a share of each length
    left.sort(key=lambda pair: len(pair[1].tokens))
    mine = shard.of(left)
    if mine:
        longest = max(len(prompt.tokens) for _, prompt in mine) + decoding.max_new_tokens
        loaded, vocabulary = loading.load(stage, model, tokenizer, stage.spec["lineage"], longest)
        done = len(prompts) - len(left)
        total = done + len(mine)
        with store.saving(stage, title, "responses", total, done) as save:

            def finished(index: int, response: Response) -> None:
                row, seed = mine[index][0]
                found = {"tokens": response.tokens.tolist(), "finished": response.finished}
                responses[row, seed] = found
                save({"row": row, "seed": seed, **found})

            draw(
                loaded,
                [prompt for _, prompt in mine],
                decoding,
                end_token=end_tokens(tokenizer),
                vocabulary=vocabulary,
                finished=finished,
            )
    shard.wait()
    return responses if shard.count == 1 else _stored(store)


def _stored(store: JsonlStore) -> Responses:
    """Return the saved responses."""
    return {(found.pop("row"), found.pop("seed")): found for found in store.read()}
