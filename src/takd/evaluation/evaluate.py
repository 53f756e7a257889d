"""Stage: sample a model's responses to an evaluation set, with each decoding seed, and score them.

Inputs: `model`, `data`, `tokenizer` (manifests). Outputs: `generations` (one line per prompt, with
all its responses), `answers` (the responses as tokens, one per line, for the likelihoods stage),
`scores`, `metrics`. Responses are saved as they are sampled, and a killed run resumes from them.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from takd.data.arrow import PreparedRows, dataset_of
from takd.decoding.loading import close_log, configure_libraries
from takd.decoding.prompts import Decoding
from takd.decoding.resumable import Responses, prompts_of, respond
from takd.metrics import diversity, rouge
from takd.metrics.parallel import score
from takd.models.causal_lm import tokenizer_of
from takd.models.tokenizer_check import texts_of
from takd.runtime.files import read_json, write_lines
from takd.runtime.metrics_log import Journal
from takd.runtime.sharding import Shard, resumable
from takd.runtime.stage import Stage

Record = dict[str, Any]
# of a prepared row; a set may have no strata and no conversations
KEPT = ("id", "instruction", "input", "references", "stratum", "messages")


def run(stage: Stage) -> None:
    """Sample the missing responses, score all, and write the outputs."""
    configure_libraries(stage)
    with resumable(stage, stage.outputs["scores"]) as (folder, shard, journal):
        _evaluate(stage, folder, shard, journal)


def _evaluate(stage: Stage, folder: Path, shard: Shard, journal: Journal) -> None:
    spec, seeds = stage.spec, stage.spec["seeds"]
    title = f"{spec['lineage']} seed {spec['seed']} on {spec['set']}"
    dataset, tokenizer = dataset_of(stage, "data"), tokenizer_of(stage)
    rouge_tokenizer, pattern = read_json(stage.input("data"))["rouge_tokenizer"], spec.get("answer")
    responses = respond(
        stage,
        title,
        stage.input("model").parent / "model",
        tokenizer,
        prompts_of(dataset, range(len(dataset)), seeds),
        Decoding(**spec["decoding"]),
        folder,
        shard,
    )
    if not shard.first:
        return
    # the first process does the rest
    threads = stage.threads * shard.count
    measured = (rouge_tokenizer, pattern)
    rows = list(_rows(dataset, tokenizer, responses, seeds, threads, *measured))
    write_lines(stage.outputs["generations"], rows, ensure_ascii=False, sort_keys=True)
    keys = [(row, seed) for row in range(len(dataset)) for seed in seeds]
    answers = ({"row": row, "seed": seed, **responses[row, seed]} for row, seed in keys)
    write_lines(stage.outputs["answers"], answers)
    tokens = sum(len(found["tokens"]) for found in responses.values())
    close_log(stage, journal, len(responses), tokens, shard.count)
    found = summary(rows, seeds, *measured)
    # written last: it marks the result as complete
    stage.write_record(
        stage.outputs["scores"],
        **{key: spec[key] for key in ("lineage", "seed", "set", "decoding")},
        decoding_seeds=seeds,
        rouge_tokenizer=rouge_tokenizer,
        n=len(rows),
        **found,
    )
    stage.say(
        f"{title}: ROUGE-L {found['scores']['rougeL']['mean']:.2f}"
        f" (n = {len(rows)} prompts x {len(seeds)} decoding seeds)"
    )


def _rows(
    dataset: PreparedRows,
    tokenizer: PreTrainedTokenizerBase,
    responses: Responses,
    seeds: Sequence[int],
    threads: int,
    rouge_tokenizer: str,
    pattern: str | None,
) -> Iterator[Record]:
    """Yield one record per prompt, with its responses and their scores."""
    found = [[responses[row, seed] for seed in seeds] for row in range(len(dataset))]
    texts = [texts_of(tokenizer, (each["tokens"] for each in of_row)) for of_row in found]
    scored = score(texts, dataset["references"], threads, rouge_tokenizer, pattern)
    for row, of_row, said, scores in zip(dataset, found, texts, scored, strict=True):
        outputs = [
            {
                "seed": seed,
                "text": said[at],
                "tokens": len(of_row[at]["tokens"]),
                "finished": of_row[at]["finished"],
                **{name: scores[name][at] for name in rouge.names(pattern)},
            }
            for at, seed in enumerate(seeds)
        ]
        kept = {key: row[key] for key in KEPT if key in row}
        if not kept.get("messages", True):
            del kept["messages"]  # of one message, which is the instruction
        yield {**kept, "self_bleu": scores["self_bleu"], "outputs": outputs}


def summary(
    rows: Sequence[Record], seeds: Sequence[int], rouge_tokenizer: str, pattern: str | None = None
) -> Record:
    """Compute means over prompts of scores and diversity, by decoding seed and over the seeds.

    Distinct-n is over all prompts of a seed, self-BLEU over the seeds of each prompt.
    """
    by_seed = {str(seed): [row["outputs"][at] for row in rows] for at, seed in enumerate(seeds)}

    def with_mean(measure: Callable[[list[Record]], float | None]) -> Record:
        found = {seed: measure(outputs) for seed, outputs in by_seed.items()}
        values = [value for value in found.values() if value is not None]
        return {"mean": fmean(values) if values else None, "by_seed": found}

    def score_of(name: str) -> Record:
        return with_mean(lambda outputs: fmean(output[name] for output in outputs))

    def distinct(n: int) -> Record:
        return with_mean(
            lambda outputs: diversity.distinct((o["text"] for o in outputs), n, rouge_tokenizer)
        )

    outputs = [output for of_seed in by_seed.values() for output in of_seed]
    alike = [row["self_bleu"] for row in rows if row["self_bleu"] is not None]
    return {
        "scores": {name: score_of(name) for name in rouge.names(pattern)},
        "diversity": {
            **{f"distinct_{n}": distinct(n) for n in diversity.DISTINCT},
            "self_bleu": {"mean": fmean(alike) if alike else None},
        },
        "response_tokens": {"mean": fmean(output["tokens"] for output in outputs)},
        "cut_off": fmean(not output["finished"] for output in outputs),
    }
