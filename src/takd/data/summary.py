"""Stage: write the data report, with the contents of each split, dropped rows, and rows shared by splits.

Inputs: `data` (manifest of each split, in any order; its log lies beside it). Outputs: `report` (JSON), `page` (HTML).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from takd.data import sources
from takd.data.arrow import PreparedRows
from takd.data.page import render
from takd.data.tally import NAMED
from takd.runtime.errors import InputError
from takd.runtime.files import read_json, write_text
from takd.runtime.records import read_log
from takd.runtime.stage import Stage

Asked = tuple[int, tuple[str, ...]]  # number of a row, and its prompt
DROPPED = (
    *("dropped_prompt_too_long", "empty_output", "dropped_duplicates", "dropped_leaks"),
    "dropped_response_length",
)


def run(stage: Stage) -> None:
    """Write the data report.

    Raises InputError if a split of the settings has no manifest among the inputs.
    """
    spec = stage.spec
    manifests = {read_json(path)["split"]: path for path in stage.many("data")}
    missing = [split for split in spec["splits"] if split not in manifests]
    if missing:
        raise InputError(
            f"the data report needs the manifest of split '{missing[0]}' as input `data`."
        )
    sources_of = {
        split: _as_fetched(manifests[split], spec["splits"][split]) for split in spec["splits"]
    }
    splits = {split: _describe(manifests[split], source) for split, source in sources_of.items()}
    report: dict[str, Any] = {"splits": splits, "leaks": leaks(sources_of, spec["sets"])}
    write_text(stage.outputs["page"], render(report))
    stage.write_record(stage.outputs["report"], **report)
    stage.say(
        f"data report: {len(splits)} splits, "
        + (", ".join(_sentence(leak) for leak in report["leaks"] if leak["rows"]) or "no leaks")
    )


def leaks(splits: Mapping[str, Any], sets: list[str]) -> list[dict[str, Any]]:
    """Find rows of train and dev that also occur in a split that must be disjoint from them.

    Two rows are the same if instruction and input are equal, character by character; the answer may differ.
    Counted in the sources, before anything is dropped.

    Returns:
        For train and dev against each evaluation set, and train against dev: `split`, `other`, `rows` (number in
        `split`), `other_rows` (number of matching rows in `other`), `examples` (the first pairs of row numbers).
    """
    # each answer of a conversation is trained on, and the last one of the others is scored
    prompts = {
        split: [
            (number, turn.prompt)
            for number, row in enumerate(sources.rows(source))
            for turn in (row.turns() if split == "train" else [row])
        ]
        for split, source in splits.items()
        if split != "corpus"
    }
    pairs = [("train", "dev"), *((split, name) for name in sets for split in ("train", "dev"))]
    return [_leak(prompts, *pair) for pair in pairs if prompts.keys() >= set(pair)]


def _leak(prompts: dict[str, list[Asked]], split: str, other: str) -> dict[str, Any]:
    places: dict[tuple[str, ...], int] = {}
    for number, prompt in prompts[other]:
        places.setdefault(prompt, number)
    hits = [(number, places[p]) for number, p in prompts[split] if p in places]
    hit = {p for _, p in prompts[split]}
    return {
        "split": split,
        "other": other,
        "rows": len(hits),
        "other_rows": sum(prompt in hit for _, prompt in prompts[other]),
        "examples": [{"row": row, "other_row": place} for row, place in hits[:NAMED]],
    }


def _sentence(leak: dict[str, Any]) -> str:
    return f"{leak['other_rows']} rows of {leak['other']} stand in {leak['split']}"


def _as_fetched(manifest: Path, source: sources.Source) -> sources.Source:
    """Return a source with the commit at which the data stage read it."""
    log = manifest.with_name("metrics.jsonl")
    if "revision" not in source or not log.is_file():  # older results have none
        return source
    return {**source, "revision": read_log(log)[-1]["revision"]}


def _describe(manifest: Path, source: sources.Source) -> dict[str, Any]:
    found = read_json(manifest)
    kept = {key: found[key] for key in ("counts", "unused", "tokens", "sha256")}
    at = f", commit {source['revision']}" if source.get("revision") else ""
    described = {"source": sources.describe(source) + at, **kept}
    if found["split"] == "corpus":
        return {**described, "wanted": found["spec"]["blocks"]}
    folder = manifest.parent / "dataset"
    return {
        **described,
        "dropped": sum(found["counts"].get(name, 0) for name in DROPPED),
        "lengths": {n: _lengths(folder, f"{n}_ids") for n in ("prompt", "response")},
        "named": found["named"],
        **{key: found[key] for key in ("rouge_tokenizer", "scorable") if key in found},
    }


def _lengths(folder: Path, column: str) -> dict[str, float]:
    """Median, 95th percentile and maximum of the lengths of a column of lists."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(PreparedRows.of(folder).data.column(column))
    median, high = pc.quantile(lengths, q=[0.5, 0.95], interpolation="lower").to_pylist()
    return {"median": median, "p95": high, "max": pc.max(lengths).as_py()}
