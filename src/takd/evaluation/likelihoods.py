"""Stage: likelihoods of references and responses under a model, its teacher and its first teacher.

Inputs: `model`, `data`, `tokenizer` (manifests), and the model's `answers` from the evaluation
stage. For each of the settings' teachers, without duplicates, its manifest and its answers:
`direct`, `direct_answers`, `first`, `first_answers`. Outputs: `prompts` (one line per prompt, with
sums over the tokens of each text, from which all means and confidence intervals over prompts can be
computed), `likelihoods` (the means), `metrics`.

docs/measures.md defines the measures and their texts. Results are saved batch by batch, so a killed
run loses at most one batch.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk

from takd.data.tokenise import Encoder
from takd.decoding import loading
from takd.evaluation import log_likelihoods
from takd.evaluation.log_likelihoods import Record, Text
from takd.metrics import calibration, exposure_bias
from takd.models import causal_lm
from takd.models.precision import device_name
from takd.runtime.errors import InputError
from takd.runtime.metrics_log import Journal, Progress, timed
from takd.runtime.sharding import Share, Store, shared
from takd.runtime.stage import Interrupted, Stage, write_text

# "references", and for each teacher "<role>/references", "<role>/own" (responses of the model) and
# "<role>/teacher" (responses of the teacher)
Part = str
ROLES = ("direct", "first")
DRAWN = ("own", "teacher")
KINDS = ("references", *DRAWN)


def run(stage: Stage) -> None:
    """Compute what is missing, then the means, and write the outputs."""
    loading.configure_libraries(stage)
    with (
        shared(stage, stage.outputs["likelihoods"]) as (folder, share),
        timed(folder, active=share.first) as journal,
    ):
        _run(stage, folder, share, journal)


def _run(stage: Stage, folder: Path, share: Share, journal: Journal) -> None:
    spec = stage.spec
    dataset = load_from_disk(str(stage.input("data").parent / "dataset"))
    texts = _texts(stage, dataset)
    store = Store(folder, "texts", share, stage.say)
    _read(stage, texts, store, share)
    share.wait()
    if not share.first:
        return
    # read back from the store, so that all attempts give the same result; in the order of the data
    found: dict[tuple[Part, int, int], Record] = {}
    for record in store.read():
        found[record.pop("part"), record["row"], record["index"]] = record
    records = {part: [found[(part, *text.key)] for text in texts[part]] for part in texts}
    lines = _prompts(dataset, records, spec["teachers"])
    write_text(stage.outputs["prompts"], "".join(json.dumps(line) + "\n" for line in lines))
    journal.tokens = sum(record["tokens"] for part in records.values() for record in part)
    device = device_name()
    journal.close(len(found), device=device, processes=share.count, **stage.origin())
    write_text(stage.outputs["metrics"], journal.path.read_text(encoding="utf-8"))
    measured = summary(records, spec["teachers"])
    # written last: it marks the result as complete
    stage.write_record(
        stage.outputs["likelihoods"],
        **{key: spec[key] for key in ("lineage", "seed", "set", "teachers")},
        decoding_seeds=spec["seeds"],
        n=len(dataset),
        **measured,
    )
    stage.say(
        f"{_title(spec)}: loss {measured['references']['loss']:.4f}"
        + "".join(
            f", reverse KL to {spec['teachers'][role][0]} {measured[role]['own']['reverse_kl']:.4f}"
            for role in separate(spec["teachers"])
        )
    )


def _title(spec: dict[str, Any]) -> str:
    return f"{spec['lineage']} seed {spec['seed']} reads {spec['set']}"


def separate(teachers: dict[str, Any]) -> list[str]:
    """Return the roles with a model of their own: direct and first teacher may be the same."""
    return [
        role for role in ROLES if role in teachers and not (role == "first" and _same(teachers))
    ]


def _same(teachers: dict[str, Any]) -> bool:
    return teachers.get("direct") == teachers.get("first")


def _texts(stage: Stage, dataset: Dataset) -> dict[Part, list[Text]]:
    """Texts to read, by part, in the order of the data."""
    prompts = dataset["prompt_ids"]
    encoder, longest = Encoder.beside(stage.input("tokenizer")), stage.spec["max_length"]
    references = [
        Text(row, index, prompts[row], response[: longest - len(prompts[row])])
        for row, references in enumerate(dataset["references"])
        for index, response in enumerate(encoder.responses(references))
    ]
    texts = {"references": references}
    answered = _answers(stage, "answers", prompts)
    for role in separate(stage.spec["teachers"]):
        texts[f"{role}/references"] = references
        texts[f"{role}/own"] = answered
        texts[f"{role}/teacher"] = _answers(stage, f"{role}_answers", prompts)
    return texts


def _answers(stage: Stage, name: str, prompts: Sequence[Sequence[int]]) -> list[Text]:
    """Responses from the evaluation stage: one per row and decoding seed."""
    path = stage.input(name)
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    found = {(line["row"], line["seed"]): line["tokens"] for line in lines}
    wanted = [(row, seed) for row in range(len(prompts)) for seed in stage.spec["seeds"]]
    if sorted(found) != sorted(wanted):
        raise InputError(
            f"{path}: holds {len(found)} answers, which are not one for each of {len(prompts)} prompts and the"
            f" decoding seeds {stage.spec['seeds']}; run the evaluation again."
        )
    return [Text(row, seed, prompts[row], found[row, seed]) for row, seed in wanted]


def _read(stage: Stage, texts: dict[Part, list[Text]], store: Store, share: Share) -> None:
    """Process this process's batches that are not in the store yet."""
    spec = stage.spec
    done = {(record["part"], record["row"], record["index"]) for record in store.read()}
    # as in `answers`: no process may write before all have read
    share.wait()
    mine: dict[Part, list[list[Text]]] = {}
    for part, all_of_it in texts.items():
        # batches do not depend on earlier attempts, so rounding does not either
        ordered = sorted(all_of_it, key=lambda text: (len(text), text.key))
        size = stage.micro_batch
        batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        missing = [b for b in batches if any((part, *text.key) not in done for text in b)]
        mine[part] = list(share.of(missing))
    left = sum(len(batches) for batches in mine.values())
    progress = Progress(_title(spec), left, 0, active=share.first)
    tokenizer = causal_lm.load_tokenizer(stage.input("tokenizer").parent / "tokenizer")

    longest = max((len(text) for part in texts.values() for text in part), default=1)

    def load(name: str, lineage: str) -> tuple[Any, int]:
        folder = stage.input(name).parent / "model"
        return loading.load(stage, folder, tokenizer, lineage, reads=longest)

    def go(part: Part, read: Callable[[list[Text]], list[Record]]) -> None:
        nonlocal left
        for batch in mine[part]:
            store.add(*({"part": part, **record} for record in read(batch)))
            left -= 1
            progress.step(progress.total - left, {})
            if left and stage.should_stop():
                raise Interrupted(f"{_title(spec)}: {left} of {progress.total} batches are left.")

    if left:
        with store.appending():
            model, vocabulary = load("model", spec["lineage"])
            go(
                "references",
                functools.partial(log_likelihoods.likelihoods, model, vocabulary=vocabulary),
            )
            teacher: Any = None
            for role in separate(spec["teachers"]):
                parts = [f"{role}/{kind}" for kind in KINDS]
                if not any(mine[part] for part in parts):
                    continue
                teacher = None  # frees its memory before the next model is loaded
                teacher, its_own = load(role, spec["teachers"][role][0])
                shared = min(vocabulary, its_own)
                compare = functools.partial(
                    log_likelihoods.comparison, model, teacher, vocabulary=shared
                )
                for part in parts:
                    go(part, functools.partial(compare, steps=part.split("/")[1] in DRAWN))
                del compare
    progress.close()


def _total(record: Record, name: str) -> float:
    value = record[name]
    return math.fsum(value) if isinstance(value, list) else value


def _prompts(
    dataset: Dataset, records: dict[Part, list[Record]], teachers: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield each prompt's sums over the tokens of its texts, by reference or seed."""
    by_row: list[dict[Part, list[Record]]] = [{} for _ in range(len(dataset))]
    for part, found in records.items():
        for record in found:
            sums = {
                name: round(_total(record, name), 6) if name != "bins" else value
                for name, value in record.items()
                if name not in ("row", "index")
            }
            number = "reference" if part.endswith("references") else "seed"
            by_row[record["row"]].setdefault(part, []).append({number: record["index"], **sums})
    for key, parts in zip(dataset["id"], by_row, strict=True):
        line: dict[str, Any] = {"id": key, "references": parts["references"]}
        for role in separate(teachers):
            line[role] = {kind: parts[f"{role}/{kind}"] for kind in KINDS}
        yield line


def summary(records: dict[Part, list[Record]], teachers: dict[str, Any]) -> dict[str, Any]:
    """Compute the means over all tokens of all texts, in nats per token.

    "first" is included even if it is the direct teacher. docs/measures.md defines each measure.
    """
    read = records["references"]
    counts = sum(
        (calibration.unpacked(record["bins"]) for record in read), np.zeros((3, calibration.BINS))
    )
    loss = _mean(read, "nll")
    total, correct, confidence = counts
    found: dict[str, Any] = {
        "references": {
            "tokens": sum(record["tokens"] for record in read),
            "loss": loss,
            "perplexity": _perplexity(loss),
            "calibration_error": calibration.expected_calibration_error(counts),
            "bins": [
                {"predictions": int(n), "accuracy": a / n if n else None, "confidence": c / n if n else None}
                for n, a, c in zip(total.tolist(), correct.tolist(), confidence.tolist(), strict=True)
            ],
        }
    }  # fmt: skip
    for role in separate(teachers):
        found[role] = _against(records, role)
    if "first" in teachers and "first" not in found:
        found["first"] = found["direct"]
    return found


def _against(records: dict[Part, list[Record]], role: str) -> dict[str, Any]:
    """Measures against one teacher."""
    own, oracle = records[f"{role}/own"], records[f"{role}/teacher"]
    found: dict[str, Any] = {}
    for kind in KINDS:
        read = records[f"{role}/{kind}"]
        found[kind] = {name: _mean(read, name) for name in ("forward_kl", "reverse_kl")}
        found[kind]["teacher_loss"] = _mean(read, "teacher_nll")
        found[kind]["loss"] = _mean(read, "nll")
    found["own"]["teacher_perplexity"] = _perplexity(found["own"]["teacher_loss"])
    errors = [[record["forward_kl"] for record in read] for read in (own, oracle)]
    length = max(len(steps) for side in errors for steps in side)
    regret, expected = (exposure_bias.accumulated(side, length) for side in errors)
    running = [exposure_bias.accumulated_while_running(side, length) for side in errors]
    excess = _listed(exposure_bias.excess_accumulated_error(regret, expected))
    found["exposure_bias"] = {
        "excess_accumulated_error": excess[-1],
        "length": length,
        "regret": _listed(regret),
        "oracle_error": _listed(expected),
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
