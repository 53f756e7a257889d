"""Stage: sample a model's responses to an evaluation set, with each decoding seed, and score them.

Inputs: `model`, `data`, `tokenizer` (manifests). Outputs: `generations` (one line per prompt, with
all its responses), `answers` (the same as tokens, one line per response, for the likelihoods
stage), `scores`, `metrics`. Responses are saved as they are sampled, and a killed run resumes from
them.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset, load_from_disk
from transformers import PreTrainedTokenizerBase

from takd.decoding import loading
from takd.decoding.resumable import Answers, answer, prompts_of
from takd.decoding.sampling import Decoding
from takd.metrics import diversity, rouge
from takd.metrics.parallel import score
from takd.models import causal_lm
from takd.models.precision import device_name
from takd.runtime.metrics_log import Journal, timed
from takd.runtime.sharding import Share, shared
from takd.runtime.stage import Stage, read_json, write_text


def run(stage: Stage) -> None:
    """Sample the missing responses, score all, and write the outputs."""
    loading.configure_libraries(stage)
    with (
        shared(stage, stage.outputs["scores"]) as (folder, share),
        timed(folder, active=share.first) as journal,
    ):
        _evaluate(stage, folder, share, journal)


def _evaluate(stage: Stage, folder: Path, share: Share, journal: Journal) -> None:
    spec = stage.spec
    dataset = load_from_disk(str(stage.input("data").parent / "dataset"))
    rouge_tokenizer = read_json(stage.input("data"))["rouge_tokenizer"]
    tokenizer = causal_lm.load_tokenizer(stage.input("tokenizer").parent / "tokenizer")
    answers = answer(
        stage,
        f"{spec['lineage']} seed {spec['seed']} on {spec['set']}",
        stage.input("model").parent / "model",
        tokenizer,
        prompts_of(dataset, range(len(dataset)), spec["seeds"]),
        Decoding(**spec["decoding"]),
        folder,
        share,
    )
    if not share.first:
        return
    journal.tokens = sum(len(found["tokens"]) for found in answers.values())
    # the first process does the rest
    threads = stage.threads * share.count
    rows = list(_rows(dataset, tokenizer, answers, spec["seeds"], threads, rouge_tokenizer))
    lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    write_text(stage.outputs["generations"], lines)
    lines = "".join(
        json.dumps({"row": row, "seed": seed, **answers[row, seed]}) + "\n"
        for row in range(len(dataset))
        for seed in spec["seeds"]
    )
    write_text(stage.outputs["answers"], lines)
    scores = _scores(rows, spec["seeds"], rouge_tokenizer)
    device = device_name()
    journal.close(len(answers), device=device, processes=share.count, **stage.origin())
    write_text(stage.outputs["metrics"], journal.path.read_text(encoding="utf-8"))
    # written last: it marks the result as complete
    stage.write_record(
        stage.outputs["scores"],
        **{key: spec[key] for key in ("lineage", "seed", "set", "decoding")},
        decoding_seeds=spec["seeds"],
        rouge_tokenizer=rouge_tokenizer,
        n=len(rows),
        **scores,
    )
    rouge = scores["scores"]["rougeL"]["mean"]
    stage.say(
        f"{spec['lineage']} seed {spec['seed']} on {spec['set']}: ROUGE-L {rouge:.2f}"
        f" (n = {len(rows)} prompts x {len(spec['seeds'])} decoding seeds)"
    )


def _rows(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    answers: Answers,
    seeds: Sequence[int],
    threads: int,
    rouge_tokenizer: str,
) -> Iterator[dict[str, Any]]:
    """Yield one record per prompt, with its responses and their scores."""
    texts = [
        tokenizer.batch_decode(
            [answers[row, seed]["tokens"] for seed in seeds], skip_special_tokens=True
        )
        for row in range(len(dataset))
    ]
    scored = score(texts, dataset["references"], threads, rouge_tokenizer)
    for index, (row, scores) in enumerate(zip(dataset, scored, strict=True)):
        outputs = []
        for position, seed in enumerate(seeds):
            found = answers[index, seed]
            outputs.append(
                {
                    "seed": seed,
                    "text": texts[index][position],
                    "tokens": len(found["tokens"]),
                    "finished": found["finished"],
                    **{name: scores[name][position] for name in rouge.MEASURES},
                }
            )
        kept = {key: row[key] for key in ("id", "instruction", "input", "references")}
        yield {**kept, "self_bleu": scores["self_bleu"], "outputs": outputs}


def _scores(
    rows: Sequence[dict[str, Any]], seeds: Sequence[int], rouge_tokenizer: str
) -> dict[str, Any]:
    """Means over prompts, by decoding seed and overall."""
    scores = {}
    for name in rouge.MEASURES:
        by_seed = {
            str(seed): fmean(row["outputs"][position][name] for row in rows)
            for position, seed in enumerate(seeds)
        }
        scores[name] = {"mean": fmean(by_seed.values()), "by_seed": by_seed}
    outputs = [output for row in rows for output in row["outputs"]]
    return {
        "scores": scores,
        "diversity": _diversity(rows, seeds, rouge_tokenizer),
        "response_tokens": {"mean": fmean(output["tokens"] for output in outputs)},
        "cut_off": fmean(not output["finished"] for output in outputs),
    }


def _diversity(
    rows: Sequence[dict[str, Any]], seeds: Sequence[int], rouge_tokenizer: str
) -> dict[str, Any]:
    """Distinct-n over prompts by decoding seed, and self-BLEU over the seeds of each prompt."""
    found: dict[str, Any] = {}
    for n in diversity.DISTINCT:
        by_seed = {
            str(seed): diversity.distinct(
                (row["outputs"][position]["text"] for row in rows), n, rouge_tokenizer
            )
            for position, seed in enumerate(seeds)
        }
        values = [value for value in by_seed.values() if value is not None]
        found[f"distinct_{n}"] = {"mean": fmean(values) if values else None, "by_seed": by_seed}
    alike = [row["self_bleu"] for row in rows if row["self_bleu"] is not None]
    found["self_bleu"] = {"mean": fmean(alike) if alike else None}
    return found
