"""Strict YAML reader: scalar types of YAML 1.2, no duplicate keys, and the line of each key.

PyYAML follows YAML 1.1, in which `5e-5` is a string and `no` is false, and keeps the last of two
equal keys.
"""

import contextlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from takd.runtime.errors import InputError

Key = tuple[str | int, ...]

PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
TAG = "tag:yaml.org,2002:"

# limits far above any experiment, but below what crashes the parser or exhausts the memory
BYTES = 1_000_000
DEPTH = 50
VALUES = 100_000
DIGITS = 18
SHOWN = 100  # characters of a key or a value that a message shows
LISTED = 20  # errors of a file that are shown at once


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML loader that resolves plain scalars by the core schema of YAML 1.2."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


for _name, (_pattern, _first) in PLAIN.items():
    _Loader.add_implicit_resolver(TAG + _name, re.compile(f"^({_pattern})$"), _first)


class KeyedError(InputError):
    """An error in a file, with the key that it concerns."""

    def __init__(self, key: Key, text: str) -> None:
        super().__init__(text)
        self.key = key


@dataclass
class YamlFile:
    """The content of a YAML file, with the line of each key."""

    name: str
    value: Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    count: int = 0
    wrong: list[KeyedError] = field(default_factory=list)
    faults: int = 0

    def error(self, key: Key, text: str, name: str = "") -> KeyedError:
        """Build an error that names file, line and key before `text`; `name` is a missing key."""
        where = f"{self.name}, line {self.line(key)}: {dotted(key)}"
        return KeyedError((*key, name), f"{where} {text}")

    @contextlib.contextmanager
    def each(self) -> Iterator[None]:
        """Collect errors for `refuse`, the first of each key, so that checks can continue."""
        try:
            yield
        except KeyedError as error:
            self.faults += 1
            if error.key not in (kept.key for kept in self.wrong):
                self.wrong.append(error)

    def refuse(self) -> None:
        """Raise one InputError for all errors that `each` collected, one per line."""
        if self.wrong:
            raise together(self.wrong)

    def line(self, key: Key) -> int:
        """Return the line of a key, from 1; for an absent key, that of the nearest key above it."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)


def together(errors: Iterable[InputError]) -> InputError:
    """Combine several errors into one, without duplicate lines, up to a maximum number."""
    lines = list(dict.fromkeys(map(str, errors)))
    if len(lines) > LISTED:
        lines = [*lines[:LISTED], f"and {len(lines) - LISTED} more errors."]
    return InputError(*lines)


def _short(part: str | int) -> str | int:
    return f"{part[:SHOWN]}…" if isinstance(part, str) and len(part) > SHOWN else part


def dotted(key: Key) -> str:
    """Format a key as text, such as `chains[0].models[1]`."""
    text = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part if part.isprintable() else repr(part)}"
        for part in map(_short, key)
    )
    return text.removeprefix(".") or "the file"


def read_yaml(path: Path, name: str) -> YamlFile:
    """Read a YAML file.

    Args:
        path: the file.
        name: its name in error messages.

    Raises:
        InputError: the file is not YAML, has a duplicate key or a value that JSON cannot represent,
            or is too large or too deeply nested for an experiment.
    """
    file = YamlFile(name)
    text = _text(path, name)
    try:
        _check_depth(text, name)
        node = yaml.compose(text, Loader=_Loader)
        file.value = None if node is None else _value(node, (), file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        tabs = (
            "; indent with blanks, not tabs"
            if "\t" in "".join(text.splitlines()[line - 1 : line])
            else ""
        )
        raise InputError(f"{name}, line {line}: is not YAML: {error.problem}{tabs}.") from None
    except yaml.reader.ReaderError as error:
        raise InputError(
            f"{name} has a character that YAML does not allow: {error.reason}."
        ) from None
    except RecursionError:
        raise InputError(f"{name} has an alias that contains itself.") from None
    return file


def _text(path: Path, name: str) -> str:
    content = path.read_bytes()
    if len(content) > BYTES:
        raise InputError(f"{name} has {len(content):,} bytes; an experiment has at most {BYTES:,}.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{name}, line {line}: is not a text in UTF-8 ({error.reason}); save the file in that encoding."
        ) from None


def _check_depth(text: str, name: str) -> None:
    """Refuse deep nesting, on which the parser, recursive C code, would crash."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
            event, yaml.CollectionEndEvent
        )
        if depth > DEPTH:
            line = event.start_mark.line + 1
            raise InputError(
                f"{name}, line {line}: has more than {DEPTH} lists or mappings in one another."
            )


def _value(node: yaml.Node, key: Key, file: YamlFile) -> Any:
    file.lines.setdefault(key, node.start_mark.line + 1)
    file.count += 1
    if file.count > VALUES:
        raise file.error(
            key, f"is where the file exceeds {VALUES:,} values; aliases repeat what they name."
        )
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, key, file)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*key, index), file) for index, item in enumerate(node.value)]
    match node.tag.removeprefix(TAG):
        case "null":
            return None
        case "bool":
            return node.value.lower() == "true"
        case "int":
            if len(node.value) > DIGITS:
                raise file.error(
                    key, f"is a number of {len(node.value)} digits, but must have at most {DIGITS}."
                )
            return int(node.value)
        case "float":
            number = float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))
            if not math.isfinite(number):
                raise file.error(key, f"is {node.value}, but must be a finite number.")
            return number
        case "str" | "merge":
            return node.value
    raise file.error(key, f"has the tag {node.tag}; only plain values are read.")


def _mapping(node: yaml.MappingNode, key: Key, file: YamlFile) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name, item in node.value:
        line = name.start_mark.line + 1
        if not isinstance(name, yaml.ScalarNode):
            raise file.error(key, f"has a key in line {line} that is not a text.")
        if name.tag == TAG + "merge":
            parts = item.value if isinstance(item, yaml.SequenceNode) else [item]
            for part in parts:
                if not isinstance(part, yaml.MappingNode):
                    raise file.error(key, f"has a << in line {line} that does not name a mapping.")
                merged = {**_value(part, key, file), **merged}
            continue
        if name.value in own:
            first = file.lines[(*key, name.value)]
            file.lines[(*key, name.value)] = line
            raise file.error(
                (*key, name.value), f"stands twice, first in line {first}; keep one of the two."
            )
        file.lines[(*key, name.value)] = line
        own[name.value] = _value(item, (*key, name.value), file)
    return {**merged, **own}
