"""Stage: likelihoods of references and responses under a model, its teacher and its first teacher.

Inputs: `model`, `data`, `tokenizer` (manifests), and the model's `answers` from the evaluation
stage. For each of the settings' teachers, without duplicates, its manifest and its responses:
`direct`, `direct_answers`, `first`, `first_answers`. Outputs: `prompts` (one line per prompt, with
sums over the tokens of each text, from which all means and confidence intervals over prompts can be
computed), `likelihoods` (the means), `metrics`.

With the setting `exact`, divergences over whole responses are enumerated too (`takd.evaluation.exact`).
docs/measures.md defines the measures and their texts. Results are saved batch by batch, so a killed
run loses at most one batch.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from takd.data.arrow import PreparedRows, dataset_of
from takd.data.template import CHAT
from takd.data.tokenise import Encoder
from takd.decoding import loading
from takd.evaluation import exact, log_likelihoods
from takd.evaluation.log_likelihoods import Record, Text
from takd.metrics import calibration, exposure_bias
from takd.models.causal_lm import tokenizer_of
from takd.runtime.errors import InputError
from takd.runtime.files import read_json, write_lines
from takd.runtime.metrics_log import Journal
from takd.runtime.sharding import JsonlStore, Shard, resumable
from takd.runtime.stage import Stage

ROLES = ("direct", "first")
# Texts are read in parts: "references", and for each teacher "<role>/references", "<role>/own"
# (responses of the model) and "<role>/teacher" (responses of the teacher). "<role>/exact" and
# "truth/exact" have each prompt once, without a text
DRAWN = ("own", "teacher")
KINDS = ("references", *DRAWN)
EXACT = "exact"


def run(stage: Stage) -> None:
    """Compute what is missing, then the means, and write the outputs."""
    loading.configure_libraries(stage)
    with resumable(stage, stage.outputs["likelihoods"]) as (folder, shard, journal):
        _run(stage, folder, shard, journal)


def _run(stage: Stage, folder: Path, shard: Shard, journal: Journal) -> None:
    spec, teachers = stage.spec, stage.spec["teachers"]
    dataset = dataset_of(stage, "data")
    texts = _texts(stage, dataset)
    store = JsonlStore(folder, "texts", shard, stage.say)
    title = f"{spec['lineage']} seed {spec['seed']} reads {spec['set']}"
    _read(stage, title, texts, store, shard)
    shard.wait()
    if not shard.first:
        return
    # read back from the store, so that all attempts give the same result; in the order of the data
    found: dict[tuple[str, int, int], Record] = {}
    for record in store.read():
        found[record.pop("part"), record["row"], record["index"]] = record
    records = {part: [found[(part, *text.key)] for text in texts[part]] for part in texts}
    write_lines(stage.outputs["prompts"], _prompts(dataset, records, teachers))
    tokens = sum(record.get("tokens", 0) for part in records.values() for record in part)
    loading.close_log(stage, journal, len(found), tokens, shard.count)
    measured = summary(records, teachers)
    # written last: it marks the result as complete
    stage.write_record(
        stage.outputs["likelihoods"],
        **{key: spec[key] for key in ("lineage", "seed", "set", "teachers")},
        decoding_seeds=spec["seeds"],
        n=len(dataset),
        **measured,
    )
    stage.say(
        f"{title}: loss {measured['references']['loss']:.4f}"
        + "".join(
            f", reverse KL to {teachers[role][0]} {measured[role]['own']['reverse_kl']:.4f}"
            for role in separate(teachers)
        )
    )


def separate(teachers: dict[str, Any]) -> list[str]:
    """Return the roles with a model of their own: direct and first teacher may be the same."""
    same = teachers.get("direct") == teachers.get("first")
    return [role for role in ROLES if role in teachers and not (role == "first" and same)]


def _texts(stage: Stage, dataset: PreparedRows) -> dict[str, list[Text]]:
    """Texts to read, by part, in the order of the data."""
    prompts = dataset["prompt_ids"]
    tokenizer, longest = stage.input("tokenizer"), stage.spec["max_length"]
    # in a chat, an answer is written by the template
    encoder = Encoder.beside(tokenizer, CHAT if "template" in read_json(tokenizer) else None)
    references = [
        Text(row, index, prompts[row], response[: longest - len(prompts[row])])
        for row, references in enumerate(dataset["references"])
        for index, response in enumerate(encoder.responses(references))
    ]
    texts = {"references": references}
    own = _responses(stage, "answers", prompts)
    for role in separate(stage.spec["teachers"]):
        drawn = own, _responses(stage, f"{role}_answers", prompts)
        for kind, of_kind in zip(KINDS, (references, *drawn), strict=True):
            texts[f"{role}/{kind}"] = of_kind
    if EXACT in stage.spec:
        first = {tuple(prompt): row for row, prompt in reversed(list(enumerate(prompts)))}
        once = [Text(row, 0, prompts[row], ()) for row in sorted(first.values())]
        known = [exact.TRUTH] if "letters" in stage.spec[EXACT] else []
        for name in (*separate(stage.spec["teachers"]), *known):
            texts[f"{name}/{EXACT}"] = once
    return texts


def _responses(stage: Stage, name: str, prompts: Sequence[Sequence[int]]) -> list[Text]:
    """Responses from the evaluation stage: one per row and decoding seed."""
    path = stage.input(name)
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    found = {(line["row"], line["seed"]): line["tokens"] for line in lines}
    wanted = [(row, seed) for row in range(len(prompts)) for seed in stage.spec["seeds"]]
    if sorted(found) != sorted(wanted):
        raise InputError(
            f"{path}: holds {len(found)} responses, which are not one for each of {len(prompts)} prompts and the"
            f" decoding seeds {stage.spec['seeds']}; run the evaluation again."
        )
    return [Text(row, seed, prompts[row], found[row, seed]) for row, seed in wanted]


def _read(
    stage: Stage, title: str, texts: dict[str, list[Text]], store: JsonlStore, shard: Shard
) -> None:
    """Process this process's batches that are not in the store yet."""
    spec, size = stage.spec, stage.micro_batch
    done = {(record["part"], record["row"], record["index"]) for record in store.read()}
    # no process may write before all have read, as they would disagree about what is left
    shard.wait()
    mine: dict[str, list[list[Text]]] = {}
    for part, all_of_it in texts.items():
        # batches do not depend on earlier attempts, so rounding does not either
        ordered = sorted(all_of_it, key=lambda text: (len(text), text.key))
        batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        missing = [b for b in batches if any((part, *text.key) not in done for text in b)]
        mine[part] = list(shard.of(missing))
    left = sum(len(batches) for batches in mine.values())
    tokenizer = tokenizer_of(stage)
    longest = max((len(text) for part in texts.values() for text in part), default=1)

    def load(name: str, lineage: str, precision: str | None = None) -> tuple[Any, int]:
        folder = stage.input(name).parent / "model"
        return loading.load(stage, folder, tokenizer, lineage, reads=longest, precision=precision)

    def read_part(part: str, read: Callable[[list[Text]], list[Record]]) -> None:
        for batch in mine[part]:
            save(*({"part": part, **record} for record in read(batch)))

    if left:
        with store.saving(stage, title, "batches", left) as save:
            model, vocabulary = load("model", spec["lineage"])
            read = functools.partial(log_likelihoods.likelihoods, model, vocabulary=vocabulary)
            read_part("references", read)
            teacher: Any = None
            for role in separate(spec["teachers"]):
                parts = [f"{role}/{kind}" for kind in KINDS]
                if not any(mine[part] for part in parts):
                    continue
                teacher = None  # frees its memory before the next model is loaded
                teacher, its_own = load(role, spec["teachers"][role][0])
                common = min(vocabulary, its_own)
                compare = functools.partial(
                    log_likelihoods.comparison, model, teacher, vocabulary=common
                )
                for part in parts:
                    read_part(part, functools.partial(compare, steps=part.split("/")[1] in DRAWN))
                del compare
            parts = [part for part in mine if part.endswith(f"/{EXACT}") and mine[part]]
            del model, read  # frees their memory, as below
            for part, compared in exact.comparisons(stage.spec, tokenizer, load, parts):
                read_part(part, compared)


def _total(record: Record, name: str) -> float:
    value = record[name]
    return math.fsum(value) if isinstance(value, list) else value


def _prompts(
    dataset: PreparedRows, records: dict[str, list[Record]], teachers: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield each prompt's sums over the tokens of its texts, by reference or seed."""
    by_row: list[dict[str, list[Record]]] = [{} for _ in range(len(dataset))]
    for part, found in records.items():
        number = "reference" if part.endswith("references") else "seed"
        for record in found:
            sums = {
                name: round(_total(record, name), 6) if name != "bins" else value
                for name, value in record.items()
                if name not in ("row", "index")
            }
            by_row[record["row"]].setdefault(part, []).append({number: record["index"], **sums})
    for key, parts in zip(dataset["id"], by_row, strict=True):
        line: dict[str, Any] = {"id": key, "references": parts["references"]}
        for role in separate(teachers):
            line[role] = {kind: parts[f"{role}/{kind}"] for kind in KINDS}
        listed = {part.partition("/")[0]: parts[part] for part in parts if part.endswith(EXACT)}
        yield line | ({EXACT: listed} if listed else {})


def summary(records: dict[str, list[Record]], teachers: dict[str, Any]) -> dict[str, Any]:
    """Compute the means over all tokens of all texts, in nats per token, and over prompts in nats per response.

    "first" is included even if it is the direct teacher. docs/measures.md defines each measure.
    """
    read = records["references"]
    counts = sum((calibration.unpacked(r["bins"]) for r in read), np.zeros((3, calibration.BINS)))
    loss = _mean(read, "nll")
    found: dict[str, Any] = {
        "references": {
            "tokens": sum(record["tokens"] for record in read),
            "loss": loss,
            "perplexity": _perplexity(loss),
            "calibration_error": calibration.expected_calibration_error(counts),
            "bins": [
                {
                    "predictions": int(n),
                    "accuracy": correct / n if n else None,
                    "confidence": confidence / n if n else None,
                }
                for n, correct, confidence in counts.T.tolist()
            ],
        }
    }
    for role in separate(teachers):
        found[role] = _against(records, role)
    listed = {
        part.partition("/")[0]: {key: fmean(each[key] for each in of_part) for key in exact.KINDS}
        for part, of_part in records.items()
        if part.endswith(EXACT)
    }
    found |= {EXACT: listed} if listed else {}
    for each in (found, listed):
        if "first" in teachers and "direct" in each and "first" not in each:
            each["first"] = each["direct"]
    return found


def _against(records: dict[str, list[Record]], role: str) -> dict[str, Any]:
    """Measures against one teacher."""
    measures = {"forward_kl": "forward_kl", "reverse_kl": "reverse_kl"}
    measures |= {"teacher_loss": "teacher_nll", "loss": "nll"}
    found: dict[str, Any] = {
        kind: {name: _mean(records[f"{role}/{kind}"], key) for name, key in measures.items()}
        for kind in KINDS
    }
    found["own"]["teacher_perplexity"] = _perplexity(found["own"]["teacher_loss"])
    errors = [[record["forward_kl"] for record in records[f"{role}/{kind}"]] for kind in DRAWN]
    length = max(len(steps) for side in errors for steps in side)
    regret, oracle = (exposure_bias.accumulated(side, length) for side in errors)
    running = [exposure_bias.accumulated_while_running(side, length) for side in errors]
    excess = _listed(exposure_bias.excess_accumulated_error(regret, oracle))
    found["exposure_bias"] = {
        "excess_accumulated_error": excess[-1],
        "length": length,
        "regret": _listed(regret),
        "oracle_error": _listed(oracle),
        "by_length": excess,
        "by_length_while_running": _listed(exposure_bias.excess_accumulated_error(*running)),
    }
    return found


def _mean(read: Sequence[Record], name: str) -> float:
    tokens = sum(record["tokens"] for record in read)
    return math.fsum(_total(record, name) for record in read) / max(tokens, 1)


def _perplexity(loss: float) -> float | None:
    return math.exp(loss) if loss < 700 else None


def _listed(values: np.ndarray) -> list[float | None]:
    return [round(value, 6) if math.isfinite(value) else None for value in values.tolist()]
