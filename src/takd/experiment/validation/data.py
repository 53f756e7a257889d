"""Checks of `data`, `tokenizer` and the sources of evaluation sets."""

import json
from typing import Any

from takd.experiment.yaml12 import Key, YamlFile


def check_data(file: YamlFile, settings: dict[str, Any]) -> None:
    """Check the keys of `data`, the tokenizer and the sources against each other."""
    data, sets = file.value["data"], file.value["evaluation"]["sets"]
    sources: dict[Key, Any] = {
        ("data", name): data.get(name) for name in ("train", "dev", "corpus")
    }
    sources |= {("evaluation", "sets", name): source for name, source in sets.items()}
    for key, source in sources.items():
        if source:
            with file.each():
                _check_source(file, source, key)
    with file.each():
        if "train" in settings["tokenizer"] and "vocabulary" in settings["tokenizer"]:
            raise file.error(
                ("tokenizer", "vocabulary"),
                "only goes with hub, folder and gguf; train has its own, remove it.",
            )
    with file.each():
        if "train" in settings["tokenizer"] and settings["data"]["template"] == "chat":
            raise file.error(
                ("data", "template"),
                "is chat, but a tokenizer that is trained here has no chat template; write the template out, as"
                " with_input and without_input.",
            )
    with file.each():
        _check_lengths(file, settings)


def _check_lengths(file: YamlFile, settings: dict[str, Any]) -> None:
    longest, prompt = settings["data"]["max_length"], settings["data"]["max_prompt_length"]
    if prompt >= longest:
        raise file.error(
            ("data", "max_prompt_length"),
            f"is {prompt}, but must be less than data.max_length ({longest}), which leaves room for"
            " a response.",
        )
    corpus = settings["data"]["corpus"]
    if corpus and (corpus["block_length"] or 0) > longest:
        raise file.error(
            ("data", "corpus", "block_length"),
            f"is {corpus['block_length']}, but must be at most data.max_length ({longest}), the"
            " longest text that the models read.",
        )


def _check_source(file: YamlFile, source: dict[str, Any], key: Key) -> None:
    if "split" in source and not ("hub" in source or "folder" in source):
        raise file.error((*key, "split"), "only goes with hub and folder; remove it.")
    for name in ("split", "config"):
        if "file" in source and name in source:
            raise file.error(
                (*key, name), "does not go with file, which is read whole; remove it (see rows)."
            )
    if "sha256" in source and not any(kind in source for kind in ("json", "url", "file")):
        raise file.error(
            (*key, "sha256"),
            "only goes with json, url and file of a hub data set; remove it (see rows_sha256).",
        )
    least, most = (source.get(f"{which}_response_words") for which in ("min", "max"))
    if least is not None and most is not None and most < least:
        raise file.error(
            (*key, "max_response_words"),
            f"is {most}, but must be at least min_response_words ({least}).",
        )
    for name in ("rows", "columns"):
        if name in source and "demo" in source:
            raise file.error((*key, name), "does not go with demo; remove it.")
    start, stop = source.get("rows", (0, None))
    if start is None or (stop is not None and stop <= start):
        raise file.error(
            (*key, "rows"),
            f"is {json.dumps([start, stop])}, but must be the first row and a later one, which is"
            " the first that is left out, or null for all that there are.",
        )
