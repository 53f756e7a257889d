"""Strict YAML reader: scalar types of YAML 1.2, no duplicate keys, and the line of each key.

PyYAML follows YAML 1.1, in which `5e-5` is a string and `no` is false, and keeps the last of two
equal keys.
"""

import math
import re
from collections.abc import Iterable
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


@dataclass
class YamlFile:
    """The content of a YAML file, with the line of each key and the faults that checks found."""

    name: str
    value: Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    count: int = 0
    faults: dict[Key, str] = field(default_factory=dict)
    written: dict[Key, Key] = field(default_factory=dict)
    """Where the file has what is below a key that the reader has made (`takd.experiment.sweeps`)."""

    def fault(self, key: Key, text: str, absent: str = "") -> bool:
        """Record a fault of a key, so that checks can continue; only the first of each key is kept.

        Args:
            key: the key that is wrong, or the one above the key that is missing.
            text: what is wrong and what would be right, without the key.
            absent: name of the key that is missing.

        Returns:
            False, so that a check can end with `return file.fault(...)`.
        """
        self.faults.setdefault((*key, absent), self.sentence(key, text))
        return False

    def sentence(self, key: Key, text: str) -> str:
        """Return `text` with file, line and key before it."""
        return f"{self.name}, line {self.line(key)}: {dotted(self.origin(key))} {text}"

    def origin(self, key: Key) -> Key:
        """Return the key as the file has it."""
        for length in range(len(key), 0, -1):
            if (found := self.written.get(key[:length])) is not None:
                return found + key[length:]
        return key

    def has(self, key: Key) -> bool:
        """Return whether the file has a key."""
        return self.origin(key) in self.lines

    def refuse(self) -> None:
        """Raise one InputError for all recorded faults, one per line."""
        if self.faults:
            raise together(self.faults.values())

    def line(self, key: Key) -> int:
        """Return the line of a key, from 1; for an absent key, that of the nearest key above it."""
        key = self.origin(key)
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)


def together(sentences: Iterable[str]) -> InputError:
    """Combine sentences into one error, without duplicates, up to a maximum number."""
    lines = list(dict.fromkeys(sentences))
    if len(lines) > LISTED:
        lines = [*lines[:LISTED], f"and {len(lines) - LISTED} more errors."]
    return InputError(*lines)


def dotted(key: Key) -> str:
    """Format a key as text, such as `chains[0].models[1]`."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            short = f"{part[:SHOWN]}…" if len(part) > SHOWN else part
            text += f".{short if short.isprintable() else repr(short)}"
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
        tabs = "\t" in "".join(text.splitlines()[line - 1 : line])
        advice = "; indent with blanks, not tabs" if tabs else ""
        raise InputError(f"{name}, line {line}: is not YAML: {error.problem}{advice}.") from None
    except yaml.reader.ReaderError as error:
        said = f"{name} has a character that YAML does not allow: {error.reason}."
        raise InputError(said) from None
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
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            line = event.start_mark.line + 1
            raise InputError(
                f"{name}, line {line}: has more than {DEPTH} lists or mappings in one another."
            )


def _value(node: yaml.Node, key: Key, file: YamlFile) -> Any:
    """Convert a node, and note the line of each key."""

    def error(text: str) -> InputError:
        return InputError(file.sentence(key, text))

    file.lines.setdefault(key, node.start_mark.line + 1)
    file.count += 1
    if file.count > VALUES:
        raise error(f"is where the file exceeds {VALUES:,} values; aliases repeat what they name.")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, key, file)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*key, index), file) for index, item in enumerate(node.value)]
    text = node.value
    match node.tag.removeprefix(TAG):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" if len(text) > DIGITS:
            raise error(f"is a number of {len(text)} digits, but must have at most {DIGITS}.")
        case "int":
            return int(text)
        case "float":
            number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            if not math.isfinite(number):
                raise error(f"is {text}, but must be a finite number.")
            return number
        case "str" | "merge":
            return text
    raise error(f"has the tag {node.tag}; only plain values are read.")


def _mapping(node: yaml.MappingNode, key: Key, file: YamlFile) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name, item in node.value:
        line = name.start_mark.line + 1
        if not isinstance(name, yaml.ScalarNode):
            text = f"has a key in line {line} that is not a text."
            raise InputError(file.sentence(key, text))
        if name.tag == TAG + "merge":
            parts = item.value if isinstance(item, yaml.SequenceNode) else [item]
            if not all(isinstance(part, yaml.MappingNode) for part in parts):
                text = f"has a << in line {line} that does not name a mapping."
                raise InputError(file.sentence(key, text))
            for part in parts:
                merged = {**_value(part, key, file), **merged}
            continue
        here = (*key, name.value)
        first = file.lines.get(here)
        file.lines[here] = line
        if name.value in own:
            text = f"stands twice, first in line {first}; keep one of the two."
            raise InputError(file.sentence(here, text))
        own[name.value] = _value(item, here, file)
    return {**merged, **own}
