"""The schema of an experiment file: validation, and default values.

After a change, `PYTHONPATH=src python docs/experiment_tables.py` rewrites the tables of docs/experiment.md.
"""

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError, validators

from takd.experiment.yaml12 import SHOWN, Key, YamlFile, dotted, read_yaml, together
from takd.runtime.errors import InputError

HOME = Path(__file__).resolve().parents[3]
"""The workflow's own folder: its schema, and the experiments and configurations that come with it."""
SCHEMA = HOME / "workflow/schemas/experiment.schema.yaml"

RESERVED = ("experiment", "with", "seeds", "store")
"""Names of `--config` that mean something else than a variable of an experiment."""
ROW_FILTERS = ("min_response_words", "max_response_words", "expect_rows", "rows_sha256")
"""Keys of a source that select or check rows, with `rows` (see `takd.data.filters`)."""
LONGEST_NAME = 255  # bytes of a file name, on common file systems
MANY = 12  # most names that a message with a suggestion lists

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
BOUNDS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "greater than",
    "exclusiveMaximum": "less than",
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


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """Check `pattern` as JSON Schema defines it: $ matches only at the very end.

    In Python, $ also matches before a final line break.
    """
    if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


_Validator = validators.extend(Draft202012Validator, {"pattern": _pattern})


def check(file: YamlFile) -> None:
    """Validate a file against the schema.

    Raises:
        InputError: the file breaks the schema; one line per error, in the order of the file.
    """
    if not isinstance(file.value, dict):
        what = (
            "is empty" if file.value is None else f"holds {KINDS.get(type(file.value), 'a number')}"
        )
        required = ", ".join(load_schema()["required"])
        raise InputError(
            f"{file.name} {what}; an experiment is a mapping with the keys {required}."
        )
    errors = list(_Validator(load_schema()).iter_errors(file.value))
    # where a list is too long, errors of its items are not reported yet
    long = [tuple(error.absolute_path) for error in errors if error.validator == "maxItems"]
    found = [each for error in errors for each in _explain(error)]
    found = [each for each in found if not any(each[0][:-1] == key for key in long)]
    if found:
        found.sort(key=lambda each: (file.line(each[0]), len(each[0])))
        raise together(file.sentence(key, text) for key, text in found)


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


def _meant(name: str, known: Iterable[str]) -> str:
    """Suggest what an unknown key may mean, by its name in other tools, its place, its letters."""
    if name in (instead := load_schema()["x-instead"]):
        return instead[name]
    own = usual_names().get(name.lower(), name)
    if own in known:
        return f"did you mean '{own}'?"
    places = [place for place in all_keys() if place.rpartition(".")[2] == own]
    if not places:
        return suggest(name, known)
    nearest = min(places, key=lambda place: place.count("."))
    if own != name:
        return f"did you mean {nearest}?"
    above = nearest.rpartition(".")[0]
    return f"it stands {f'under {above}' if above else 'at the top'}; here {suggest('', known)}"


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


def _explain(error: ValidationError) -> Iterator[tuple[Key, str]]:
    """Yield the keys that an error concerns, each with a sentence without the key."""
    key, value, schema = tuple(error.absolute_path), error.instance, error.schema
    bound = error.validator_value
    if "propertyNames" in error.absolute_schema_path:
        yield (*key, value), f"is no valid name; a name is made of {schema['x-expected']}."
        return
    match error.validator:
        case "additionalProperties":
            known = schema.get("properties", {})
            for name in value:
                if name not in known:
                    yield (*key, name), f"is not a known key; {_meant(name, known)}"
        case "required":
            for name in bound:
                if name not in value:
                    yield key, f"lacks the key {name}{_meaning(schema, name)}."
        case "dependentRequired":
            pairs = ((here, name) for here, needed in bound.items() for name in needed)
            here, name = next(pair for pair in pairs if pair[0] in value and pair[1] not in value)
            meaning = _meaning(schema, name)
            yield key, f"has {here} but lacks {name}, which goes with it{meaning}."
        case "oneOf" if isinstance(value, dict):
            names = _choices(bound)
            found = " and ".join(name for name in names if name in value) or "none of them"
            yield key, f"must have exactly one of {', '.join(names)}, but has {found}."
        case "oneOf":
            return  # another error reports its type
        case "uniqueItems":
            twice = next(item for at, item in enumerate(value) if item in value[:at])
            text = ", ".join(map(str, twice)) if isinstance(twice, list) else show(twice)
            yield key, f"holds {text} twice; each may stand there once."
        case "minItems" | "minProperties" | "maxItems":
            exact = schema.get("minItems") == schema.get("maxItems")
            size = str(bound) if exact else f"{bound} or more"
            if error.validator == "maxItems" and not exact:
                size = f"at most {bound}"
            what = schema.get("x-expected") or f"{_types(schema)[0]} of {size}"
            count = f"{len(value)} {'entry' if len(value) == 1 else 'entries'}"
            yield key, f"has {count}, but must be {what}."
        case _:
            yield key, f"is {show(value)}, but must be {_right(error)}"


def _right(error: ValidationError) -> str:
    """Describe what would be valid in place of a single value."""
    value, schema = error.instance, error.schema
    if error.validator == "enum":
        close = difflib.get_close_matches(str(value), error.validator_value, n=1)
        meant = f"; did you mean '{close[0]}'?" if close else "."
        return f"one of {', '.join(error.validator_value)}{meant}"
    if "x-expected" in schema:
        what = schema["x-expected"]
    elif error.validator in BOUNDS:
        what = f"{BOUNDS[error.validator]} {error.validator_value}"
    elif error.validator == "minLength":
        what = "a text that is not empty"
    elif error.validator == "pattern":
        what = f"a text that matches {error.validator_value}"
    else:
        what = " or ".join(_types(schema))
    if error.validator == "type":
        if isinstance(value, int | float) and "string" in schema["type"]:
            return f"{what}; put it in quotes."
        if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", value):
            return f"{what}; write it without quotes."
    return f"{what}."


def _types(schema: dict[str, Any]) -> list[str]:
    names = schema["type"]
    return [TYPES[name] for name in ([names] if isinstance(names, str) else names)]


def _meaning(schema: dict[str, Any], name: str) -> str:
    part = follow(schema.get("properties", {}).get(name, {}))
    if "oneOf" in part:
        return f", which has one of {', '.join(_choices(part['oneOf']))}"
    text = part.get("x-expected") or part.get("description", "").split(". ")[0].rstrip(".")
    return f": {text[0].lower()}{text[1:]}" if text else ""


def _choices(options: list[dict[str, Any]]) -> list[str]:
    """Keys of a `oneOf`, of which exactly one must be given."""
    return [name for option in options for name in option.get("required", [])]
