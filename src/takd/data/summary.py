"""Stage: write the data report, with the contents of each split, dropped rows, and rows shared by splits.

Inputs: `data` (manifest of each split, in any order). Outputs: `report` (JSON), `page` (HTML).
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from takd.data import sources
from takd.data.arrow import PreparedRows
from takd.data.page import render
from takd.data.tally import NAMED
from takd.runtime.errors import InputError
from takd.runtime.files import read_json, write_text
from takd.runtime.stage import Stage

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
    splits = {split: _describe(manifests[split], spec["splits"][split]) for split in spec["splits"]}
    report: dict[str, Any] = {"splits": splits, "leaks": leaks(spec["splits"], spec["sets"])}
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
    prompts = {
        split: [row.prompt for row in sources.rows(source)]
        for split, source in splits.items()
        if split != "corpus"
    }
    pairs = [("train", "dev"), *((split, name) for name in sets for split in ("train", "dev"))]
    return [_leak(prompts, split, other) for split, other in pairs]


def _leak(prompts: dict[str, list[tuple[str, str]]], split: str, other: str) -> dict[str, Any]:
    places: dict[tuple[str, str], int] = {}
    for number, prompt in enumerate(prompts[other]):
        places.setdefault(prompt, number)
    hits = [(number, places[p]) for number, p in enumerate(prompts[split]) if p in places]
    hit = Counter(prompts[split])
    return {
        "split": split,
        "other": other,
        "rows": len(hits),
        "other_rows": sum(prompt in hit for prompt in prompts[other]),
        "examples": [{"row": row, "other_row": place} for row, place in hits[:NAMED]],
    }


def _sentence(leak: dict[str, Any]) -> str:
    return f"{leak['other_rows']} rows of {leak['other']} stand in {leak['split']}"


def _describe(manifest: Path, source: sources.Source) -> dict[str, Any]:
    found = read_json(manifest)
    kept = {key: found[key] for key in ("counts", "unused", "tokens", "sha256")}
    described = {"source": sources.describe(source), **kept}
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
