"""Check of a stage's inputs against the digests in their records, before any input is used."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from takd.runtime.errors import InputError
from takd.runtime.records import (
    DATA_REPORT,
    RECORDS,
    DamagedError,
    Record,
    faults,
    parts,
    read_record,
    remade,
)

KINDS = {
    **dict.fromkeys(("model", "teacher", "direct", "first", "init", "reference"), "model"),
    **{"base": "base", "tokenizer": "tokenizer"},
}
RECORDED_IN = {
    **dict.fromkeys(("answers.jsonl", "generations.jsonl"), "scores.json"),
    "report.html": DATA_REPORT,
}
"""Inputs that are no records, and the record beside that has their digest."""


def verify(
    spec: dict[str, Any],
    inputs: Mapping[str, Sequence[Path]],
    threads: int = 1,
    named: Collection[str] = (),
) -> None:
    """Compare the input files of a stage with their records, and the records with its settings.

    Folders of many results are checked by the stage that searches them.

    Args:
        named: inputs of which only the record is read.
        threads: files that are read in parallel.

    Raises:
        InputError: a file or a record is damaged, missing or belongs to another result.
    """
    for name, paths in inputs.items():
        for path in paths:
            if path.name in RECORDS or path.name in RECORDED_IN:
                _verify(spec, name, path, threads, name in named)


def _verify(spec: dict[str, Any], name: str, path: Path, threads: int, named: bool) -> None:
    record_path = path if path.name in RECORDS else path.with_name(RECORDED_IN[path.name])
    try:
        record = read_record(record_path)
    except DamagedError as error:
        raise remade(str(error), record_path) from None
    check(record_path, record, expected(name, record, spec))
    if named:
        return
    if path != record_path:
        wanted = [path.name]
    elif record.get("kind") == "model":
        wanted = ["init" if name == "init" else "model"]
    else:
        wanted = parts(record)
    for fault in faults(record_path, record, wanted, threads):
        if " (a link to " in fault:
            raise InputError(f"{fault}; fetch or copy that file again.")
        raise remade(fault, record_path)


def check(path: Path, record: Record, wanted: Mapping[str, Any]) -> None:
    """Check that a record describes what is wanted, such as a lineage and a training seed.

    Raises:
        InputError: a value differs.
    """
    # most values are in the `spec` of the stage that wrote the record; the record's own keys, such
    # as `kind`, take precedence
    said = {**record.get("spec", {}), **record}
    if any(said.get(key) != value for key, value in wanted.items()):
        is_of, was_expected = (
            ", ".join(f"{key} {values.get(key)}" for key in wanted) for values in (said, wanted)
        )
        raise remade(f"{path}: is of {is_of}, expected {was_expected}", path)


def expected(name: str, record: Record, spec: dict[str, Any]) -> dict[str, Any]:
    """Return what the record of the input `name` must hold, according to the stage's settings."""
    kind: dict[str, Any] = {"kind": KINDS[name]} if name in KINDS else {}
    of_itself: dict[str, Any] = {key: spec[key] for key in ("lineage", "seed") if key in spec}
    role = name.removesuffix("_answers")
    if name == "tokenizer":
        return kind
    if name == "base":
        return {**kind, "model": spec["model"]}
    if name == "reference":
        return {**kind, **_node(spec["budget"]["chain"])}
    if name == "init":
        return {**kind, **_node(spec["init"])}
    if role in spec.get("teachers", {}):
        of_set = {"set": spec["set"]} if role != name else {}
        return {**kind, **_node(spec["teachers"][role]), **of_set}
    if name in ("answers", "generations"):
        return {**of_itself, "set": spec["set"]}
    # a teacher's generations may replace a split as training data
    responses = record.get("kind") == "generations"
    if name in ("train", "dev", "corpus", "prompts", "data"):
        if responses:
            return _node(spec["teacher"]) if "teacher" in spec else of_itself
        split = spec.get("set", spec.get("split")) if name == "data" else name
        split = "train" if name == "prompts" else split
        return {"kind": "data", **({"split": split} if split else {})}
    if name in ("teacher", "outputs", "corpus_outputs") and "teacher" in spec:
        return {**kind, **_node(spec["teacher"])}
    return {**kind, **of_itself}


def _node(pair: Sequence[Any]) -> dict[str, Any]:
    return {"lineage": pair[0], "seed": pair[1]}
