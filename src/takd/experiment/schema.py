"""The schema of an experiment file: its keys, and default values.

After a change, `PYTHONPATH=src python docs/experiment_tables.py` rewrites the tables of docs/experiment.md.
"""

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from takd.experiment.yaml12 import SHOWN, Key, YamlFile, dotted, read_yaml

HOME = Path(__file__).resolve().parents[3]
"""The workflow's own folder: its schema, and the experiments and configurations that come with it."""
SCHEMA = HOME / "workflow/schemas/experiment.schema.yaml"

RESERVED = ("experiment", "with", "seeds", "store")
"""Names of `--config` that mean something else than a variable of an experiment."""
ROW_FILTERS = ("min_response_words", "max_response_words", "expect_rows", "rows_sha256")
"""Keys of a source that select or check rows, with `rows` (see `takd.data.filters`)."""
LONGEST_NAME = 255  # bytes of a file name, on common file systems
MANY = 20  # most names that a message with a suggestion lists

KINDS = {
    dict: "a mapping",
    list: "a list",
    type(None): "empty",
    str: "a text",
    bool: "true or false",
}
TYPES = {
    "object": "a mapping",
    "array": "a list",
    "string": "a text",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "null": "null",
}


@functools.cache
def load_schema() -> dict[str, Any]:
    """Return the schema, a JSON schema of draft 2020-12."""
    return read_yaml(SCHEMA, SCHEMA.name).value


def follow(schema: Any) -> dict[str, Any]:
    """Return a part of the schema with its reference resolved; its own keys take precedence."""
    reference = schema.get("$ref")
    return (
        {**load_schema()["$defs"][reference.rpartition("/")[2]], **schema} if reference else schema
    )


def own_or_shipped(root: Path, path: str) -> Path:
    """Return a file below the user's folder, or the workflow's own where the user has none."""
    own, shipped = root / path, HOME / path
    return shipped if shipped.is_file() and not own.is_file() else own


def resolve(file: YamlFile, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of a checked file, with defaults and with variables in paths replaced.

    Args:
        file: the checked file.
        variables: values for `{name}` in paths, which take precedence over the file's own.

    Raises:
        InputError: a variable has no value or is not used, or a path is not valid.
    """
    own = file.value.get("variables", {})
    given = {**own, **variables}
    used: set[str] = set()

    def filled(path: str, key: Key) -> str:
        """Replace the variables of one path."""
        names = re.findall(r"\{(\w+)\}", path)
        used.update(names)
        for name in names:
            if name in RESERVED:
                text = f"no variable can be called {name}: --config {name}=… means something else."
            elif name not in given:
                text = (
                    f"nothing says what {{{name}}} is: run with --config {name}=VALUE"
                    f" or set variables.{name} in the file."
                )
            else:
                continue
            file.fault(key, f"is {path!r}, but {text}")
            return path
        found = re.sub(r"\{(\w+)\}", lambda match: str(given[match[1]]), path)
        longest = max(len(part.encode()) for part in found.split("/"))
        if not found.strip() or longest > LONGEST_NAME or "\0" in found:
            shown = repr(found if len(found) < 40 else f"{found[:40]}…")
            right = f"a path of names of 1 to {LONGEST_NAME} bytes each."
            file.fault(key, f"is {shown}, but must be {right}")
        return found

    settings = _fill(load_schema(), file.value, filled, (), False)
    for name in given:
        if name not in used:
            text = f"is in no path of the file; {suggest(name, sorted(used))}"
            if name in own:
                file.fault(("variables", name), text)
            else:
                said = f"{file.name}: the variable {name}, given by --config, {text}"
                file.faults["--config", name] = said
    file.refuse()
    return settings


def _fill(
    schema: Any, value: Any, place: Callable[[str, Key], str], key: Key, partial: bool
) -> Any:
    schema = follow(schema)
    if isinstance(value, dict):
        partial = schema.get("x-partial", partial)
        known = schema.get("properties", {})
        value = {**_preset(schema, value), **value}
        other = schema.get("additionalProperties")
        filled = {
            name: _fill(known.get(name, other), item, place, (*key, name), partial)
            for name, item in value.items()
        }
        for name, part in known.items() if not partial else ():
            if name not in filled and "default" in follow(part):
                filled[name] = _fill(part, follow(part)["default"], place, (*key, name), partial)
        return filled
    if isinstance(value, list):
        items = schema.get("items", {})
        return [_fill(items, item, place, (*key, at), partial) for at, item in enumerate(value)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        # 1 and 1.0 are equal settings, and must serialise to equal text
        return float(value) if "number" in schema.get("type", ()) else int(value)
    return place(value, key) if schema.get("x-path") and value is not None else value


def _preset(schema: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """Defaults that the values of some keys give to other keys (`x-presets`)."""
    given: dict[str, Any] = {}
    for name, choices in schema.get("x-presets", {}).items():
        if name in value:
            others = {key for choice in choices.values() for key in choice}
            given |= {key: schema["properties"][key]["default"] for key in others}
            given |= choices[value[name]]
    return given


def show(value: Any) -> str:
    """Format a value for an error message."""
    if isinstance(value, dict | list | type(None)):
        return KINDS[type(value)]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= SHOWN else f"'{value[:SHOWN]}…'"
    return f"{value}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a suggestion for a misspelt name, with all known names unless there are many."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    there = f"there are: {', '.join(known) or 'none'}"
    if not close:
        return f"{there}."
    return f"did you mean '{close[0]}'?" + (f" ({there})" if len(known) <= MANY else "")


@functools.cache
def usual_names() -> dict[str, str]:
    """Return the keys by the names that they have in other tools."""
    names = load_schema()["x-other-names"]
    return {other: name for name, others in names.items() for other in others.split()}


@functools.cache
def all_keys() -> list[str]:
    """Return all keys with fixed names, from the top; NAME stands for names that users choose."""

    def walk(part: Any, above: Key) -> Iterator[str]:
        part = follow(part)
        for name, below in part.get("properties", {}).items():
            yield dotted((*above, name))
            yield from walk(below, (*above, name))
        if isinstance(free := part.get("additionalProperties"), dict):
            yield from walk(free, (*above, "NAME"))

    return list(walk(load_schema(), ()))
