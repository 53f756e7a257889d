"""Answers of a model to many prompts, written down as they come: a run that is killed goes on from them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from takd import inference
from takd.sampling import Decoding, Prompt, draw
from takd.stage import Interrupted, Stage
from takd.training.progress import Progress

# row of a data set, seed of the noise
Key = tuple[int, int]
# each with "tokens" and "finished"
Answers = dict[Key, dict[str, Any]]

# micro-batches between two writes: a row that is finished makes room for the next among them
DRAWN_TOGETHER = 4


def prompts_of(dataset: Dataset, rows: Iterable[int], seeds: Iterable[int]) -> dict[Key, Prompt]:
    """The prompts of some rows of a prepared data set, each with every seed."""
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
    store: Path,
) -> Answers:
    """Let a model answer prompts; those whose answer is in the store are not drawn again.

    Args:
        title: what the one who waits is told, such as the model and what it answers.
        model: folder of the model.
        store: file of answers, one a line.

    Raises:
        InputError: the model cannot be decoded by `takd.sampling`.
        Interrupted: asked to stop or out of time; what has been answered is in the store.
    """
    answers = _stored(store)
    left = [(key, prompt) for key, prompt in prompts.items() if key not in answers]
    if not left:
        return answers
    left.sort(key=lambda pair: len(pair[1].tokens))
    name = stage.spec["lineage"]
    loaded, vocabulary = inference.load(model, tokenizer, name)
    progress = Progress(title, len(prompts), len(answers), active=True)
    size = stage.micro_batch * DRAWN_TOGETHER
    with open(store, "a", encoding="utf-8") as file:
        for start in range(0, len(left), size):
            batch = left[start : start + size]
            drawn = draw(
                loaded,
                [prompt for _, prompt in batch],
                decoding,
                end_token=tokenizer.eos_token_id,
                vocabulary=vocabulary,
                micro_batch=stage.micro_batch,
            )
            for (key, _), response in zip(batch, drawn, strict=True):
                found = {"tokens": response.tokens.tolist(), "finished": response.finished}
                answers[key] = found
                row, seed = key
                file.write(json.dumps({"row": row, "seed": seed, **found}) + "\n")
            file.flush()
            progress.step(len(answers), {})
            if stage.should_stop() and len(answers) < len(prompts):
                raise Interrupted(f"{title}: {len(answers)} of {len(prompts)} answers are kept.")
    progress.close()
    return answers


def _stored(store: Path) -> Answers:
    """Answers of an attempt that was ended; its last line may be half written, and is cut off."""
    answers: Answers = {}
    if not store.exists():
        return answers
    whole = store.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    store.write_bytes(whole)
    for line in whole.decode("utf-8").splitlines():
        found = json.loads(line)
        answers[found.pop("row"), found.pop("seed")] = found
    return answers
