"""Parts of a source that are not read: keys of its records, and files of its folder."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

SHOWN = 40  # characters shown of an example
SAID = 6  # keys and files listed on the console
MOST = 100  # keys that are counted separately
FURTHER = "(further keys)"
LIKELY = ("context", "input", "inputs")  # common names of a row's input in other data sets


@dataclass
class Unused:
    """Keys that are not read, with the number of records in which they are not empty, and files that are not read."""

    # by key: `rows`, and of the first of them its number and what it holds, `row` and `example`
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def see(self, number: int, record: Mapping[str, Any], read: Collection[str]) -> None:
        """Count the keys of a record that are not among those read."""
        for key, value in record.items():
            # other types, such as arrays, may not support a test for emptiness
            empty = value is None or (isinstance(value, str | list | dict) and not value)
            if key in read or empty:
                continue
            name = _encodable(key)
            if name not in self.keys and len(self.keys) >= MOST:
                name = FURTHER
            if name not in self.keys:
                self.keys[name] = {"rows": 0, "row": number, "example": _short(value)}
            self.keys[name]["rows"] += 1

    def leave(self, file: str) -> None:
        """Note a file that is not read."""
        self.files.append(_encodable(file))

    def record(self) -> dict[str, Any]:
        """Entry for the manifest and the data report."""
        return {"keys": self.keys, "files": self.files}

    def sentences(self, rows: int, without_input: int) -> list[str]:
        """Warnings for the user, with a remedy where an unread key may hold the input.

        Args:
            rows: of the source.
            without_input: those of them that have none.
        """
        said = []
        if self.keys:
            found = [
                f"{_short(key)} ({of_key['rows']} rows, such as {of_key['example']})"
                for key, of_key in self.keys.items()
            ]
            said.append(f"keys that are not read: {_first(found)}")
            likely = next((key for key in self.keys if key.strip().lower() in LIKELY), None)
            if rows and without_input and (likely or without_input == rows):
                name = likely or "NAME"
                name = name if name.isidentifier() else json.dumps(name)
                said.append(
                    f"{without_input} of {rows} rows have no input: if one of these keys holds it, name it beside the"
                    f" source: columns: {{input: {name}}}"
                )
        if self.files:
            files = [_short(file) for file in self.files]
            said.append(f"files of the folder that are not read: {_first(files)}")
        return said


def _encodable(text: str) -> str:
    """Escape lone surrogates, so that a text can be written as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def _first(found: list[str]) -> str:
    more = f" and {len(found) - SAID} more" if len(found) > SAID else ""
    return ", ".join(found[:SAID]) + more
