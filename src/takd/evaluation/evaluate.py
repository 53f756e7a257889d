"""Stage: let one model answer one evaluation set, with every decoding seed, and score the answers.

Inputs: `model`, `data`, `tokenizer` (manifests). Outputs: `generations` (one line a prompt, all its answers),
`scores`, `metrics`. Answers are written down as they come, and a killed run goes on from them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset, load_from_disk
from transformers import PreTrainedTokenizerBase

from takd import inference, models
from takd.evaluation.answers import Answers, answer, prompts_of
from takd.evaluation.measures import MEASURES
from takd.sampling import Decoding
from takd.stage import Stage, write_json, write_text
from takd.training.checkpoints import resumable
from takd.training.devices import device_name, own
from takd.training.progress import Journal


def run(stage: Stage) -> None:
    """Decode what is left, score, write."""
    inference.settle(stage.threads)
    with resumable(stage, stage.outputs["scores"]) as folder:
        _evaluate(stage, folder)


def _evaluate(stage: Stage, folder: Path) -> None:
    spec = stage.spec
    dataset = load_from_disk(str(stage.input("data").parent / "dataset"))
    tokenizer = models.load_tokenizer(stage.input("tokenizer").parent / "tokenizer")
    journal = Journal(folder / "metrics.jsonl", active=True)
    journal.restart()
    answers = answer(
        stage,
        f"{spec['lineage']} seed {spec['seed']} on {spec['set']}",
        stage.input("model").parent / "model",
        tokenizer,
        prompts_of(dataset, range(len(dataset)), spec["seeds"]),
        Decoding(**spec["decoding"]),
        folder / "answers.jsonl",
    )
    journal.tokens = sum(len(found["tokens"]) for found in answers.values())
    rows = list(_rows(dataset, tokenizer, answers, spec["seeds"]))
    lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    write_text(stage.outputs["generations"], lines)
    scores = _scores(rows, spec["seeds"])
    journal.write("end", len(answers), device=device_name(own()), processes=1)
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


def _rows(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, answers: Answers, seeds: Sequence[int]
) -> Any:
    """One record a prompt with its answers and their scores."""
    for index, row in enumerate(dataset):
        outputs = []
        for seed in seeds:
            found = answers[index, seed]
            text = str(tokenizer.decode(found["tokens"], skip_special_tokens=True))
            scores = {name: m(text, row["references"]) for name, m in MEASURES.items()}
            count, finished = len(found["tokens"]), found["finished"]
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
