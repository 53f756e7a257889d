"""Stage: let one model answer one evaluation set, with every decoding seed, and score the answers.

Inputs: `model`, `data`, `tokenizer` (manifests). Outputs: `generations` (one line a prompt, all its answers),
`scores`, `metrics`. Answers are written down as they come; a killed run loses at most one batch.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars, load_from_disk
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from takd import models
from takd.evaluation.measures import MEASURES
from takd.sampling import Decoding, Prompt, draw
from takd.stage import Interrupted, Stage, write_json, write_text
from takd.training.checkpoints import Checkpoints, Lock, resume_key
from takd.training.devices import DTYPES, choose_precision
from takd.training.progress import Journal, Progress

# (row of the set, decoding seed) -> {"tokens", "finished"}
Answers = dict[tuple[int, int], dict[str, Any]]


def run(stage: Stage) -> None:
    """Decode what is left, score, write."""
    torch.set_num_threads(stage.threads)
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    root = stage.outputs["scores"].parent / "checkpoints"
    checkpoints = Checkpoints(root, resume_key(stage))
    with Lock(root / "lock", stage.say):
        checkpoints.open()
        _evaluate(stage, checkpoints.folder)
    checkpoints.close()


def _evaluate(stage: Stage, folder: Path) -> None:
    spec = stage.spec
    dataset = load_from_disk(str(stage.input("data").parent / "dataset"))
    tokenizer = models.load_tokenizer(stage.input("tokenizer").parent / "tokenizer")
    decoding = Decoding(**spec["decoding"])
    journal = Journal(folder / "metrics.jsonl", active=True)
    if journal.size() == 0:
        journal.restart()
    answers = _decode(stage, dataset, tokenizer, decoding, folder / "answers.jsonl", journal)
    rows = list(_rows(dataset, tokenizer, answers, spec["seeds"]))
    lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    write_text(stage.outputs["generations"], lines)
    scores = _scores(rows, spec["seeds"])
    journal.write("end", len(answers), device=_device().type, processes=1)
    write_text(stage.outputs["metrics"], journal.path.read_text(encoding="utf-8"))
    # last: what the report and its readers wait for
    write_json(
        stage.outputs["scores"],
        {
            **{key: spec[key] for key in ("lineage", "seed", "set", "decoding")},
            "decoding_seeds": spec["seeds"],
            "n": len(rows),
            **scores,
        },
    )
    rouge = scores["scores"]["rougeL"]["mean"]
    stage.say(
        f"{spec['lineage']} seed {spec['seed']} on {spec['set']}: ROUGE-L {rouge:.2f}"
        f" (n = {len(rows)} prompts x {len(spec['seeds'])} decoding seeds)"
    )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _decode(
    stage: Stage,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    decoding: Decoding,
    store: Path,
    journal: Journal,
) -> Answers:
    """All answers; those found in the store are not drawn again."""
    answers = _stored(store)
    prompts = [
        (row, Prompt(tokens, key, seed))
        for row, (key, tokens) in enumerate(zip(dataset["id"], dataset["prompt_ids"], strict=True))
        for seed in stage.spec["seeds"]
        if (row, seed) not in answers
    ]
    if not prompts:
        return answers
    prompts.sort(key=lambda pair: len(pair[1].tokens))
    model, vocabulary = _load(stage, tokenizer)
    title = f"{stage.spec['lineage']} seed {stage.spec['seed']} on {stage.spec['set']}"
    total = len(dataset) * len(stage.spec["seeds"])
    progress = Progress(title, total, len(answers), active=True)
    with open(store, "a", encoding="utf-8") as file:
        for start in range(0, len(prompts), stage.micro_batch):
            batch = prompts[start : start + stage.micro_batch]
            drawn = draw(
                model,
                [prompt for _, prompt in batch],
                decoding,
                end_token=tokenizer.eos_token_id,
                vocabulary=vocabulary,
                micro_batch=stage.micro_batch,
            )
            for (row, prompt), response in zip(batch, drawn, strict=True):
                answer = {"tokens": response.tokens.tolist(), "finished": response.finished}
                answers[row, prompt.seed] = answer
                journal.tokens += len(response.tokens)
                file.write(json.dumps({"row": row, "seed": prompt.seed, **answer}) + "\n")
            file.flush()
            progress.step(len(answers), {})
            if stage.should_stop():
                raise Interrupted(f"{title}: {len(answers)} of {total} answers are kept.")
    progress.close()
    return answers


def _load(stage: Stage, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, int]:
    dtype = DTYPES[choose_precision("auto")]
    model = models.load_model(stage.input("model").parent / "model", dtype=dtype)
    vocabulary = models.check_vocabulary(model, tokenizer, stage.spec["lineage"])
    nn.Module.to(model, _device())
    models.check_projection(model, stage.spec["lineage"])
    return model.eval(), vocabulary


def _stored(store: Path) -> Answers:
    """Answers of an attempt that was ended; its last line may be half written, and is cut off."""
    answers: Answers = {}
    if not store.exists():
        return answers
    whole = store.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    store.write_bytes(whole)
    for line in whole.decode("utf-8").splitlines():
        answer = json.loads(line)
        answers[answer.pop("row"), answer.pop("seed")] = answer
    return answers


def _rows(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, answers: Answers, seeds: Sequence[int]
) -> Any:
    """One record a prompt with its answers and their scores."""
    for index, row in enumerate(dataset):
        outputs = []
        for seed in seeds:
            answer = answers[index, seed]
            text = str(tokenizer.decode(answer["tokens"], skip_special_tokens=True))
            scores = {name: m(text, row["references"]) for name, m in MEASURES.items()}
            count, finished = len(answer["tokens"]), answer["finished"]
            outputs.append(
                {"seed": seed, "text": text, "tokens": count, "finished": finished, **scores}
            )
        kept = {key: row[key] for key in ("id", "instruction", "input", "references")}
        yield {**kept, "outputs": outputs}


def _scores(rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Means over prompts, by decoding seed and over all."""
    scores = {}
    for name in MEASURES:
        by_seed = {
            str(seed): fmean(row["outputs"][position][name] for row in rows)
            for position, seed in enumerate(seeds)
        }
        scores[name] = {"mean": fmean(by_seed.values()), "by_seed": by_seed}
    outputs = [output for row in rows for output in row["outputs"]]
    return {
        "scores": scores,
        "response_tokens": {"mean": fmean(output["tokens"] for output in outputs)},
        "cut_off": fmean(not output["finished"] for output in outputs),
    }
