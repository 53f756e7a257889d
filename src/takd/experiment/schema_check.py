"""Validation of an experiment file against the schema; errors become sentences with what would be right."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator, ValidationError, validators

from takd.experiment.schema import (
    KINDS,
    TYPES,
    all_keys,
    follow,
    load_schema,
    show,
    suggest,
    usual_names,
)
from takd.experiment.yaml12 import Key, YamlFile, together
from takd.runtime.errors import InputError

BOUNDS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "greater than",
    "exclusiveMaximum": "less than",
}


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """Check `pattern` as JSON Schema defines it: $ matches only at the very end.

    In Python, $ also matches before a final line break.
    """
    if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


_Validator = validators.extend(Draft202012Validator, {"pattern": _pattern})


def check(file: YamlFile, sweeps: Mapping[Key, Any] | None = None) -> None:
    """Validate a file against the schema.

    Args:
        file: the file, with one value in place of each sweep.
        sweeps: sweeps as they are written, by their keys.

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
    sweep = _Validator(load_schema()["$defs"]["sweep"])
    for key, written in (sweeps or {}).items():
        for error in sweep.iter_errors(written):
            found += [((*key, *inner), text) for inner, text in _explain(error)]
    found = [each for each in found if not any(each[0][:-1] == key for key in long)]
    # a model of a sweep has settings alone, and a name that no model of a file can have
    made = {key for key in file.written if key[0] == "models" and len(key) == 2}
    found = [each for each in found if each[0] not in made]
    if found:
        found.sort(key=lambda each: (file.line(each[0]), len(each[0])))
        raise together(file.sentence(key, text) for key, text in found)


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
        choices = ["null" if choice is None else choice for choice in error.validator_value]
        close = difflib.get_close_matches(str(value), choices, n=1)
        meant = f"; did you mean '{close[0]}'?" if close else "."
        return f"one of {', '.join(choices)}{meant}"
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
        if isinstance(value, dict) and list(value) == ["values"]:
            return f"{what}; values to try can stand only in place of a setting of a method, not within others."
        if isinstance(value, dict | list) and "training" in error.absolute_path:
            return f"{what}; several to try are written {{values: […]}}."
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
