"""Write the tables of docs/experiment.md from the schema.

PYTHONPATH=src python docs/experiment_tables.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from takd.experiment.schema import TYPES, follow, load_schema

PAGE = Path(__file__).with_name("experiment.md")
MARK = "<!-- The rest is made from workflow/schemas/experiment.schema.yaml by docs/experiment_tables.py. -->\n"
SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
HEAD = ["key", "type", "default", "what", "trade-off"]


def page(text: str) -> str:
    """Return the page with everything below its mark regenerated."""
    return text[: text.index(MARK) + len(MARK)] + "\n" + tables()


def tables() -> str:
    """Return Markdown tables of all keys with type, default, meaning and trade-off."""
    schema = load_schema()
    top = schema["properties"]
    single = {key: part for key, part in top.items() if not list(below(part))}
    parts = {"Top level": {"properties": single, "required": schema["required"]}}
    parts |= {key: part for key, part in top.items() if key not in single}
    parts |= {key: part for key, part in schema["$defs"].items() if key != "methods"}
    sections = [_section(name, part) for name, part in parts.items()]
    return "\n".join([*sections, *_methods(schema["$defs"]["methods"]["properties"])])


def below(part: dict[str, Any], above: str = "") -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield each key below a part of the schema, its schema, and whether it is required.

    Keys that users name are written NAME. Parts that are included by reference are not expanded.
    """
    children = {above + key: value for key, value in part.get("properties", {}).items()}
    free = part.get("additionalProperties")
    if isinstance(free, dict):
        children[f"{above}NAME"] = free
    for key, child in children.items():
        yield key, child, key.removeprefix(above) in part.get("required", [])
        yield from below(child, f"{key}.")
        yield from below(child.get("items", {}), f"{key}[].")


def _section(name: str, part: dict[str, Any]) -> str:
    rows = [
        [f"`{key}`", _type(child), _default(child, required), *_words(child)]
        for key, child, required in below(part)
        if "$ref" in child or any(_words(child))
    ]
    return _titled(name, part, _table(HEAD, rows))


def _methods(methods: dict[str, Any]) -> Iterator[str]:
    keys = [{key: child for key, child, _ in below(part)} for part in methods.values()]
    shared = [key for key in keys[0] if all(key in own for own in keys)]
    rows = [
        [
            f"`{key}`",
            _type(keys[0][key]),
            _defaults({name: own[key] for name, own in zip(methods, keys, strict=True)}),
            *_words(keys[0][key]),
        ]
        for key in shared
    ]
    yield _titled("methods", {"description": "Keys that all methods have."}, _table(HEAD, rows))
    for name, part in methods.items():
        own = {key: value for key, value in part["properties"].items() if key not in shared}
        if own:
            yield _section(name, {**part, "properties": own})
        else:
            yield _titled(name, part, "It has no keys but those of all methods.\n")


def _titled(name: str, part: dict[str, Any], body: str) -> str:
    text = f"{part['description']}\n\n" if "description" in part else ""
    return f"### {name}\n\n{text}{body}"


def _words(part: dict[str, Any]) -> list[str]:
    part = follow(part)
    return [part.get("description", ""), part.get("x-trade-off", "")]


def _type(part: dict[str, Any]) -> str:
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return f"[{name}](#{name})"
    if "enum" in part:
        return ", ".join(f"`{'null' if value is None else value}`" for value in part["enum"])
    names = part["type"] if isinstance(part["type"], list) else [part["type"]]
    text = " or ".join(TYPES[name] for name in names)
    bounds = [f" {sign} {part[rule]}" for rule, sign in SIGNS.items() if rule in part]
    return text + "".join(bounds)


def _default(part: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    return f"`{json.dumps(part['default'])}`" if "default" in part else ""


def _defaults(parts: dict[str, dict[str, Any]]) -> str:
    """Default of the first method, and those of methods that differ from it."""
    first, *others = ((name, _default(part, False)) for name, part in parts.items())
    return ", ".join(
        [first[1], *(f"{name} {value}" for name, value in others if value != first[1])]
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
    )


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
