"""Responses of a model to many prompts, saved as they are sampled, so that runs can resume."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from takd.decoding import loading
from takd.decoding.sampling import Decoding, Prompt, Response, draw
from takd.runtime.metrics_log import Progress
from takd.runtime.sharding import JsonlStore, Shard
from takd.runtime.stage import Interrupted, Stage

# row of a data set, seed of the noise
Key = tuple[int, int]
# each with "tokens" and "finished"
Answers = dict[Key, dict[str, Any]]


def prompts_of(dataset: Dataset, rows: Iterable[int], seeds: Iterable[int]) -> dict[Key, Prompt]:
    """Return the prompts of some rows of a prepared data set, each with every seed."""
    chosen, seeds = list(rows), list(seeds)
    found = dataset.select_columns(["id", "prompt_ids"])[chosen]
    columns = zip(chosen, found["id"], found["prompt_ids"], strict=True)
    return {(row, seed): Prompt(ids, key, seed) for row, key, ids in columns for seed in seeds}


def answer(
    stage: Stage,
    title: str,
    model: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[Key, Prompt],
    decoding: Decoding,
    folder: Path,
    shard: Shard | None = None,
) -> Answers:
    """Sample the responses to prompts; those that the folder already holds are not sampled again.

    Each response is saved when it ends, so a killed run loses at most one micro-batch per process.

    Args:
        stage: resources of the stage.
        title: text for progress messages, such as the model and the data.
        model: folder of the model.
        tokenizer: the tokenizer.
        prompts: prompts by row and seed.
        decoding: decoding settings.
        folder: folder in which responses are saved.
        shard: this process's shard of the prompts; all processes return all responses.

    Raises:
        InputError: `takd.decoding.sampling` does not support the model.
        Interrupted: SIGTERM or time limit; finished responses are in the folder.
    """
    shard = shard or Shard()
    store = JsonlStore(folder, "answers", shard, stage.say)
    answers = stored(store)
    left = [(key, prompt) for key, prompt in prompts.items() if key not in answers]
    # no process may write before all have read, as they would disagree about what is left
    shard.wait()
    if not left:
        return answers
    # sorted by length; every process gets some of each length
    left.sort(key=lambda pair: len(pair[1].tokens))
    mine = shard.of(left)
    if mine:
        longest = max(len(prompt.tokens) for _, prompt in mine) + decoding.max_new_tokens
        loaded, vocabulary = loading.load(stage, model, tokenizer, stage.spec["lineage"], longest)
        before = len(prompts) - len(left)
        progress = Progress(title, before + len(mine), before, active=shard.first)
        done = 0
        with store.appending():

            def keep(index: int, response: Response) -> None:
                nonlocal done
                row, seed = mine[index][0]
                found = {"tokens": response.tokens.tolist(), "finished": response.finished}
                answers[row, seed] = found
                store.add({"row": row, "seed": seed, **found})
                done += 1
                progress.step(before + done, {})
                if done < len(mine) and stage.should_stop():
                    raise Interrupted(
                        f"{title}: {before + done} of {before + len(mine)} answers are kept."
                    )

            draw(
                loaded,
                [prompt for _, prompt in mine],
                decoding,
                end_token=tokenizer.eos_token_id,
                vocabulary=vocabulary,
                micro_batch=stage.micro_batch,
                finished=keep,
            )
        progress.close()
    shard.wait()
    return answers if shard.count == 1 else stored(store)


def stored(store: JsonlStore) -> Answers:
    """Return the saved responses."""
    return {(found.pop("row"), found.pop("seed")): found for found in store.read()}
