"""Checks of `data`, `tokenizer` and the sources of evaluation sets."""

import json
from typing import Any

from takd.experiment.schema import load_schema
from takd.experiment.yaml12 import Key, YamlFile


def check_data(file: YamlFile, settings: dict[str, Any]) -> None:
    """Check the keys of `data`, the tokenizer and the sources against each other."""
    data, tokenizer = settings["data"], settings["tokenizer"]
    for name in ("train", "dev", "corpus"):
        if source := file.value["data"].get(name):
            _check_source(file, source, ("data", name))
    for name, source in file.value["evaluation"]["sets"].items():
        _check_source(file, source, ("evaluation", "sets", name))
    if "train" in tokenizer and "vocabulary" in tokenizer:
        text = "only goes with hub, folder and gguf; train has its own, remove it."
        file.fault(("tokenizer", "vocabulary"), text)
    if "train" in tokenizer and data["template"] == "chat":
        file.fault(
            ("data", "template"),
            "is chat, but a tokenizer that is trained here has no chat template; write the template out, as"
            " with_input and without_input.",
        )
    longest, prompt, corpus = data["max_length"], data["max_prompt_length"], data["corpus"]
    if prompt >= longest:
        file.fault(
            ("data", "max_prompt_length"),
            f"is {prompt}, but must be less than data.max_length ({longest}), which leaves room for a response.",
        )
    elif corpus and (corpus["block_length"] or 0) > longest:
        file.fault(
            ("data", "corpus", "block_length"),
            f"is {corpus['block_length']}, but must be at most data.max_length ({longest}), the longest text that the"
            " models read.",
        )


def check_splits(file: YamlFile, settings: dict[str, Any], trains: bool) -> None:
    """Check that there is data to train on, if a model or the tokenizer is trained."""
    tokenizer = "train" in settings["tokenizer"]
    for name, needed in (("train", trains or tokenizer), ("dev", trains)):
        if needed and not settings["data"].get(name):
            said = load_schema()["properties"]["data"]["properties"][name]["description"]
            text = f"lacks the key {name}: {said[0].lower()}{said[1:].partition('.')[0]}."
            file.fault(("data",), text, name)


def _check_source(file: YamlFile, source: dict[str, Any], key: Key) -> bool:
    """Check the keys of a source up to the first error; return whether there is none."""
    if "split" in source and not ("hub" in source or "folder" in source):
        return file.fault((*key, "split"), "only goes with hub and folder; remove it.")
    for name in ("split", "config"):
        if "file" in source and name in source:
            text = "does not go with file, which is read whole; remove it (see rows)."
            return file.fault((*key, name), text)
    if "sha256" in source and not any(kind in source for kind in ("json", "url", "file")):
        text = "only goes with json, url and file of a hub data set; remove it (see rows_sha256)."
        return file.fault((*key, "sha256"), text)
    least, most = (source.get(f"{which}_response_words") for which in ("min", "max"))
    if least is not None and most is not None and most < least:
        text = f"is {most}, but must be at least min_response_words ({least})."
        return file.fault((*key, "max_response_words"), text)
    for name in ("rows", "columns"):
        if name in source and "demo" in source:
            return file.fault((*key, name), "does not go with demo; remove it.")
    start, stop = source.get("rows", (0, None))
    if start is None or (stop is not None and stop <= start):
        return file.fault(
            (*key, "rows"),
            f"is {json.dumps([start, stop])}, but must be the first row and a later one, which is the first that is"
            " left out, or null for all that there are.",
        )
    return True
