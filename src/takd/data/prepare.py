"""Stage: tokenise one split into an Arrow data set on disk.

Inputs: `tokenizer` (manifest of the tokenizer stage). Outputs: `dataset` (folder for
`datasets.load_from_disk`), `manifest`; beside it a log, `metrics.jsonl`, with the commit of a source on
the Hub.
"""

import bisect
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from takd.data import downloads, letters, sources
from takd.data.arrow import BATCH, row_features, save
from takd.data.chat import REMEDY, ChatError, as_json, transcript
from takd.data.corpus import write_corpus
from takd.data.row import SYSTEM, Row, batches
from takd.data.tally import Scorable, Tally
from takd.data.tokenise import Encoder
from takd.metrics.answers import final_answer
from takd.runtime.errors import InputError
from takd.runtime.metrics_log import Journal
from takd.runtime.stage import Stage

TRAINED_ON = ("train", "dev")
SOURCES = ("source", "exclude")

Tokenised = tuple[Row, list[int], list[int]]


def run(stage: Stage) -> None:
    """Tokenise a split; `docs/data.md` describes which rows are kept.

    Raises:
        InputError: a source that cannot be read, an evaluation row without a reference, nothing left to keep.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(stage.threads))
    encoder = Encoder.beside(stage.input("tokenizer"), stage.spec.get("template"))
    for mark in encoder.unknown:
        stage.say(
            f"data {stage.spec['split']}: the template has {mark!r}, which looks like a special token; this tokenizer"
            " has none of that name and reads it as text."
        )
    write = write_corpus if stage.spec["split"] == "corpus" else _write_rows
    folder = stage.temporary(stage.outputs["dataset"])
    journal = Journal(stage.outputs["manifest"].with_name("metrics.jsonl"), active=True)
    try:
        source = downloads.pinned(stage.spec["source"])
        fields, said = write({**stage.spec, "source": source}, encoder, folder)
    except BaseException:
        # a partial corpus may be large, and cannot be resumed
        shutil.rmtree(folder, ignore_errors=True)
        raise
    stage.commit(stage.outputs["dataset"])
    split = stage.spec["split"]
    # not in the manifest: another commit with the same rows is no other data
    journal.restart()
    journal.close(0, **stage.origin(), revision=source.get("revision"))
    stage.write_manifest(
        stage.outputs["manifest"], known_by_content=SOURCES, kind="data", split=split, **fields
    )
    if source.get("revision") != (asked := stage.spec["source"].get("revision")):
        said.append(f"{asked} of {source['hub']} is commit {source['revision']}")
    for line in said:
        stage.say(f"data {split}: {line}")


def select(spec: dict[str, Any], tally: Tally) -> Iterator[Row]:
    """Yield the rows of a split that its settings keep, before their length is known.

    Blank references are removed, but for those that were drawn from a distribution. Leaks and duplicates are counted by
    `Row.prompt`; the first of equal rows is kept. The order is that of the source.
    """
    held_out = {row.prompt for other in spec.get("exclude", []) for row in sources.rows(other)}
    seen: set[tuple[str, ...]] = set()
    draws = letters.are_draws(spec["source"])

    def dropped(row: Row) -> None:
        _look(row, tally)
        tally.count("dropped_response_length", row.number)

    for row in _turns(spec, sources.rows(spec["source"], dropped, tally.unused), tally):
        _look(row, tally)
        repeated = row.prompt in seen
        seen.add(row.prompt)
        if repeated:
            tally.count("duplicates", row.number)
        if spec.get("drop_leaks") and row.prompt in held_out:
            tally.count("dropped_leaks", row.number)
            continue
        if repeated and spec.get("drop_duplicates"):
            tally.count("dropped_duplicates", row.number)
            continue
        references = tuple(text for text in row.references if text.strip() or draws)
        if references:
            _check_answer(spec, row._replace(references=references))
            yield row._replace(references=references)
        elif spec["split"] == "train" and not row.references:
            yield row
        elif spec["split"] in TRAINED_ON:
            tally.count("empty_output", row.number)
        else:
            raise InputError(
                f"{_place(spec, row)}: the output is empty; a row of an evaluation set needs at least one reference to"
                " be scored against."
            )


def _place(spec: dict[str, Any], row: Row) -> str:
    """Say where a row stands, for messages."""
    return f"{sources.describe(spec['source'])}, row {row.number} (counted from 0)"


def _check_answer(spec: dict[str, Any], row: Row) -> None:
    """Check that the pattern of a set finds an answer in each reference."""
    for text in row.references if "answer" in spec else ():
        if final_answer(text, spec["answer"]) is None:
            raise InputError(
                f"{_place(spec, row)}: `answer.pattern` of the set finds no answer in the reference {text[-60:]!r};"
                " correct the pattern."
            )


def _turns(spec: dict[str, Any], rows: Iterable[Row], tally: Tally) -> Iterator[Row]:
    """Yield a row for each answer of a conversation to train on; else only the last, after all that precedes it."""
    for row in rows:
        if spec["split"] != "train":
            yield row
            continue
        *earlier, last = row.turns()
        tally.counts["further_turns"] += len(earlier)
        yield from (*earlier, last)


def _look(row: Row, tally: Tally) -> None:
    """Count a row and its blank fields."""
    tally.counts["rows"] += 1
    if not row.input:
        tally.counts["without_input"] += 1  # common, so no rows are listed
    elif not row.input.strip():
        tally.count("blank_input", row.number)
    if not row.instruction.strip():
        tally.count("blank_instruction", row.number)
    blank = sum(not text.strip() for text in row.references)
    if 0 < blank < len(row.references):
        tally.count("blank_references", row.number)


def tokenise(
    spec: dict[str, Any], encoder: Encoder, rows: Iterable[Row], tally: Tally
) -> Iterator[Tokenised]:
    """Yield each kept row with the token ids of its prompt and of its first reference, none for a prompt alone.

    The response is truncated so that both fit into `max_length`. In splits for training, a row whose prompt exceeds
    `max_prompt_length` is dropped; in an evaluation set its prompt is shortened.
    """
    limit = spec["max_prompt_length"]
    # an evaluation set's likelihoods are those of all its references: one that cannot be read is told here
    read = 1 if spec["split"] in TRAINED_ON else None
    for batch in batches(rows, BATCH):
        prompts = encoder.prompts([_filled(spec, encoder, row) for row in batch])
        try:
            found = iter(encoder.responses([r for row in batch for r in row.references[:read]]))
        except ChatError as error:
            raise InputError(f"{sources.describe(spec['source'])}: {_told(error)}") from error
        for row, prompt in zip(batch, prompts, strict=True):
            response, *_ = [*islice(found, len(row.references[:read]))] or [[]]
            if len(prompt) > limit:
                if spec["split"] in TRAINED_ON:
                    tally.count("dropped_prompt_too_long", row.number)
                    continue
                tally.count("shortened_prompts", row.number)
                prompt = _shortened(spec, encoder, row)
            room = spec["max_length"] - len(prompt)
            if len(response) > room:
                tally.count("cut_responses", row.number)
            yield row, prompt, response[:room]


def _filled(spec: dict[str, Any], encoder: Encoder, row: Row) -> str:
    """Fill the template with a row."""
    if row.history and encoder.chat is None:
        raise InputError(
            f"{_place(spec, row)}: a system message or several turns need `data.template: chat`; of one question and"
            " one answer any template makes a prompt."
        )
    try:
        return encoder.fill(row.instruction, row.input, row.history)
    except ChatError as error:
        raise InputError(f"{_place(spec, row)}: {_told(error)}") from error


def _told(error: ChatError) -> str:
    return f"the tokenizer's chat template {error}; leave such rows out, or {REMEDY}"


def _shortened(spec: dict[str, Any], encoder: Encoder, row: Row) -> list[int]:
    """Shorten a prompt to the limit, so that the template stays whole.

    The oldest turns of a conversation go first, then the end of the longer field.
    """

    def encode(characters: int) -> list[int]:
        instruction, context = row.instruction, row.input
        if len(context) > len(instruction):
            # never empty: an empty input would select the other template
            context = context[: max(characters, 1)]
        else:
            instruction = instruction[:characters]
        filled = _filled(spec, encoder, row._replace(instruction=instruction, input=context))
        return encoder.prompts([filled])[0]

    limit = spec["max_prompt_length"]
    longest = max(len(row.instruction), len(row.input))
    system = int(bool(row.history) and row.history[0][0] == SYSTEM)
    while len(row.history) > system:
        row = row._replace(history=row.history[:system] + row.history[system + 2 :])
        if len(prompt := encode(longest)) <= limit:
            return prompt
    fitting = bisect.bisect_right(range(longest), limit, key=lambda count: len(encode(count)))
    # the number of tokens is not monotonic in characters: step back until the prompt fits
    for count in range(max(fitting - 1, 0), -1, -1):
        prompt = encode(count)
        if len(prompt) <= limit:
            return prompt
    raise InputError(
        f"{_place(spec, row)}: its prompt has more than data.max_prompt_length = {limit} tokens even without its longer"
        " field; set a greater limit."
    )


def _write_rows(
    spec: dict[str, Any], encoder: Encoder, folder: Path
) -> tuple[dict[str, Any], list[str]]:
    source = spec["source"]
    stratum = "rouge_tokenizer" in spec and (
        "demo" in source or "stratum" in source.get("columns", {})
    )
    scored = "rouge_tokenizer" in spec
    features = row_features(stratum, messages=scored and encoder.chat is not None)
    tally = Tally()
    scorable = Scorable()
    tokens = {"prompt": 0, "response": 0}

    def columns() -> Iterator[dict[str, Any]]:
        alone = []  # prompts without an answer, which stand last: those with one are the first rows
        for row, prompt, response in tokenise(spec, encoder, select(spec, tally), tally):
            tally.counts["kept"] += 1
            if scored:
                scorable.see(row.number, row.references, encoder.rewritten(row.references))
            tokens["prompt"] += len(prompt)
            tokens["response"] += len(response)
            values = {
                "id": row.id,
                "prompt_ids": prompt,
                "response_ids": response,
                "instruction": transcript(row.history, row.instruction),
                "input": row.input,
                "references": list(row.references),
                "stratum": row.stratum,
                "messages": as_json(row.history, row.instruction),
            }
            values = {name: values[name] for name in features}
            if row.references:
                yield values
            else:
                tally.count("without_answer", row.number)
                alone.append(values)
        yield from alone

    digest = save(columns(), features, folder)
    counts = dict(tally.counts)
    if not counts["kept"]:
        raise InputError(
            f"{sources.describe(spec['source'])}: none of {counts['rows']} rows is kept for '{spec['split']}'"
            f" ({counts['dropped_prompt_too_long']} prompts over data.max_prompt_length ="
            f" {spec['max_prompt_length']}, {counts['empty_output']} outputs empty,"
            f" {counts['dropped_response_length']} answers of other lengths)."
        )
    message = f"{counts['kept']} of {counts['rows']} rows"
    notable = {key: n for key, n in counts.items() if n and key not in ("rows", "kept")}
    message += "".join(f", {n} {key.replace('_', ' ')}" for key, n in notable.items())
    said = [message, *tally.unused.sentences(counts["rows"], counts["without_input"])]
    of_scores = {}
    if scored:
        tokenizer = scorable.choose(spec["rouge_tokenizer"])
        said += scorable.sentences(tokenizer)
        of_scores = {"rouge_tokenizer": tokenizer, "scorable": scorable.record()}
    found = {"counts": counts, "named": tally.named, "unused": tally.unused.record()}
    return {**found, **of_scores, "tokens": tokens, "sha256": digest}, said
