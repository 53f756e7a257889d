"""Checks of `data`, `tokenizer` and the sources of evaluation sets."""

import json
import re
from typing import Any

from takd.experiment.schema import load_schema
from takd.experiment.yaml12 import Key, YamlFile
from takd.models.hub import COMMIT


def check_data(file: YamlFile, settings: dict[str, Any]) -> None:
    """Check the keys of `data`, the tokenizer and the sources against each other."""
    data, tokenizer = settings["data"], settings["tokenizer"]
    for name in ("train", "dev", "corpus"):
        source = file.value["data"].get(name)
        if source and _check_source(file, source, ("data", name)) and "answer" in source:
            text = "only goes with evaluation sets; remove it."
            file.fault(("data", name, "answer"), text)
    for name, source in file.value["evaluation"]["sets"].items():
        key: Key = ("evaluation", "sets", name)
        if _check_source(file, source, key) and "answer" in source:
            _check_pattern(file, source["answer"]["pattern"], (*key, "answer", "pattern"))
    own = "train" in tokenizer or "words" in tokenizer
    if own and "vocabulary" in tokenizer:
        text = "only goes with hub, folder and gguf; train and words have their own, remove it."
        file.fault(("tokenizer", "vocabulary"), text)
    if own and data["template"] == "chat":
        file.fault(
            ("data", "template"),
            "is chat, but a tokenizer that is made here has no chat template; write the template out, as"
            " with_input and without_input.",
        )
    for name in ("system", "template_variables"):
        if data[name] and data["template"] != "chat":
            text = "only goes with `template: chat`; set that, or remove the key."
            file.fault(("data", name), text)
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


def _check_pattern(file: YamlFile, pattern: str, key: Key) -> None:
    """Check the regular expression of a set's answers."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        file.fault(key, f"is no regular expression: {error}; correct it.")
        return
    if groups != 1:
        right = "it must have one, the answer; (?:…) groups without counting."
        file.fault(key, f"has {groups} groups, but {right}")


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
    pinned = "sha256" in source or "rows_sha256" in source
    if "hub" in source and not pinned and not COMMIT.fullmatch(source["revision"]):
        return file.fault(
            (*key, "revision"),
            f"is {source['revision']!r}, which may name another commit tomorrow; it must be a commit of 40 hexadecimal"
            " digits, or have beside it the digest of what is meant: sha256 (of a file) or rows_sha256.",
        )
    least, most = (source.get(f"{which}_response_words") for which in ("min", "max"))
    if least is not None and most is not None and most < least:
        text = f"is {most}, but must be at least min_response_words ({least})."
        return file.fault((*key, "max_response_words"), text)
    topics = source.get("demo", {}).get("topics", [])
    if len(topics) > 1 and (alone := {"sums", "letters"}.intersection(topics)):
        text = f"has {min(alone)} and others, but {min(alone)} stand alone; make a set of each."
        return file.fault((*key, "demo", "topics"), text)
    for name in ("rows", "columns"):
        if name in source and "demo" in source:
            return file.fault((*key, name), "does not go with demo; remove it.")
    columns = source.get("columns", {})
    if "output" in columns and columns["output"] is None and key != ("data", "train"):
        text = "is empty, but only rows of data.train may lack answers; name the column."
        return file.fault((*key, "columns", "output"), text)
    for name in ("instruction", "input", "output"):
        if "messages" in columns and name in columns:
            text = "does not go with messages, which hold it; remove one of the two."
            return file.fault((*key, "columns", name), text)
    start, stop = source.get("rows", (0, None))
    if start is None or (stop is not None and stop <= start):
        return file.fault(
            (*key, "rows"),
            f"is {json.dumps([start, stop])}, but must be the first row and a later one, which is the first that is"
            " left out, or null for all that there are.",
        )
    return True
