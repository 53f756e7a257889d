"""Lengths of texts that are not tokenised yet, from the bytes of those rows of a source that are here."""

import contextlib
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from takd.data import sources
from takd.data.row import Row
from takd.data.template import CHAT, fill
from takd.experiment import specs
from takd.experiment.experiment import Experiment
from takd.experiment.schema import ROW_FILTERS
from takd.preflight.flops import Lengths, Rows
from takd.runtime.errors import InputError

DOWNLOADS = Path("resources/downloads")
SAMPLE = 500  # rows
BYTES_A_TOKEN = 4.0
"""Of the demo's prompts 3.9 with its own tokenizer, of Dolly's 4.3 with SmolLM2's; rarer scripts have fewer."""
MESSAGE_TOKENS = 5.0
"""Role and marks that a chat template puts around a message."""


def here(experiment: Experiment, split: str) -> dict[str, Any] | None:
    """Return the source of a split without what its stage checks; None if it is not on this machine."""
    spec = specs.data(experiment, split)["source"]
    source = {key: value for key, value in spec.items() if key not in (*ROW_FILTERS, "sha256")}
    if "demo" in source:
        return source
    if "url" in source:
        source["json"] = DOWNLOADS / spec["sha256"]
    kind = next((kind for kind in ("json", "text", "folder") if kind in source), None)
    if kind is None or not (place := experiment.root / source[kind]).exists():
        return None
    return {**source, kind: str(place)}


def estimated(experiment: Experiment, split: str, count: int | None) -> Rows | None:
    """Estimate the rows of a split for training or evaluation that are kept, and their mean lengths.

    Args:
        count: rows of the source.

    Returns:
        None if the source is not here, or cannot be read.
    """
    source = here(experiment, split)
    if source is None:
        return None
    with contextlib.suppress(InputError, OSError):
        read = list(islice(sources.rows(source), SAMPLE))
        spec, system = specs.data(experiment, split), experiment.settings["data"]["system"]
        turns = [t for row in read for t in (row.turns() if split == "train" else [row])]
        words = "words" in experiment.settings["tokenizer"]
        kept = [pair for row in turns if (pair := _lengths(row, spec, system, words))]
        if kept:
            prompt, response = (sum(lengths) / len(kept) for lengths in zip(*kept, strict=True))
            kept_count = None if count is None else round(count * len(kept) / len(read))
            return Rows(kept_count, prompt, response, Lengths.ESTIMATED)
    return None


def _lengths(
    row: Row, spec: Mapping[str, Any], system: str | None, words: bool
) -> tuple[float, float] | None:
    """Tokens of prompt and response as the stage cuts them; None for a row that it drops."""

    def tokens(text: str) -> float:
        return float(len(text.split())) if words else len(text.encode()) / BYTES_A_TOKEN

    if spec["template"] == CHAT:
        messages = [system or "", *(text for _, text in row.history), row.instruction + row.input]
        prompt = MESSAGE_TOKENS + sum(tokens(text) + MESSAGE_TOKENS for text in messages if text)
    else:
        prompt = tokens(fill(spec["template"], row.instruction, row.input))
    if prompt > (limit := spec["max_prompt_length"]):
        if spec["split"] in ("train", "dev"):
            return None
        prompt = limit
    response = tokens(row.references[0]) + 1 if row.references else 0.0  # and the end token
    return prompt, min(response, spec["max_length"] - prompt)
