"""What the data stage counts: rows dropped or changed, rows that no measure can score, and data that is not read."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from takd.metrics import words

NAMED = 10  # rows of which the numbers are kept
SHOWN = 40  # characters shown of an example
SAID = 6  # keys and files listed on the console
MOST = 100  # keys that are counted separately
FURTHER = "(further keys)"
LIKELY = ("context", "input", "inputs")  # common names of a row's input in other data sets


class Counts:
    """Counts of rows by a reason, with the numbers of the first ones."""

    def __init__(self, *reasons: str) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(reasons, 0))
        self.named: dict[str, list[int]] = {}

    def count(self, reason: str, number: int) -> None:
        """Count a row, and keep its number if it is one of the first."""
        self.counts[reason] += 1
        numbers = self.named.setdefault(reason, [])
        if len(numbers) < NAMED:
            numbers.append(number)


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

        `without_input` of the source's `rows` have none.
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


class Tally(Counts):
    """Counts of dropped and changed rows by reason, and data that is not read."""

    def __init__(self) -> None:
        super().__init__(
            *("rows", "kept", "dropped_prompt_too_long", "empty_output", "duplicates"),
            *("dropped_duplicates", "dropped_leaks", "shortened_prompts", "cut_responses"),
            *("dropped_response_length", "without_input", "blank_input", "blank_instruction"),
            *("blank_references", "further_turns", "without_answer"),
        )
        self.unused = Unused()


class Scorable(Counts):
    """Counts of rows that ROUGE-L or exact match cannot score (docs/measures.md).

    Each reference is scored against itself before a model is trained. One that scores 0, or that no response can equal,
    does not distinguish models; if all are like that, selecting weights by ROUGE-L is random. A row counts if this
    holds for all its references, since the score is the best over them.
    """

    def __init__(self) -> None:
        without = (f"scores_0_with_{name}" for name in words.TOKENIZERS)
        super().__init__("unseen_by_standard", *without, "changed")
        self.rows = 0

    def see(self, number: int, references: Sequence[str], rewritten: Sequence[str]) -> None:
        """Add a row; `rewritten` are its references encoded and decoded, like a model's responses."""
        self.rows += 1
        if words.unseen(references):
            self.count("unseen_by_standard", number)
        for name in words.TOKENIZERS:
            if not any(words.has_token(text, name) for text in references):
                self.count(f"scores_0_with_{name}", number)
        if not any(a.strip() == b.strip() for a, b in zip(rewritten, references, strict=True)):
            self.count("changed", number)

    def choose(self, setting: str) -> str:
        """ROUGE-L tokenizer for the whole set: the setting, or for "auto" one chosen by the references."""
        if setting != words.AUTO:
            return setting
        return words.choose(self.counts["unseen_by_standard"], self.rows)

    def record(self) -> dict[str, Any]:
        """Entry for the manifest and the data report."""
        return {"rows": self.rows, "counts": dict(self.counts), "named": self.named}

    def sentences(self, tokenizer: str) -> list[str]:
        """Warnings for the user, with remedies, where ROUGE-L uses this tokenizer."""
        said = []
        if self.counts["unseen_by_standard"]:
            then = ", so that it tells little of them: set evaluation.rouge_tokenizer: unicode"
            if tokenizer == words.UNICODE:
                then = ": tokens are `unicode` for this set; its scores do not compare with standard ones"
            said.append(
                f"{self._some('unseen_by_standard')} are mostly of letters that the standard tokens of ROUGE-L (a to z,"
                f" 0 to 9) leave out{then}"
            )
        without = f"scores_0_with_{tokenizer}"
        if self.counts[without]:
            said.append(
                f"{self._some(without)} have no token, so that ROUGE-L is 0 even for the references themselves: write"
                " them in words, or go by exact match and loss"
            )
        if self.counts["changed"]:
            said.append(
                f"{self._some('changed')} are changed by the tokenizer, so that no answer matches them exactly: take a"
                " tokenizer that keeps text as it is, or go by ROUGE-L"
            )
        return said

    def _some(self, what: str) -> str:
        count, first = self.counts[what], ", ".join(map(str, self.named[what][:3]))
        rows = f"row{'s' if count > 1 else ''} {first}{' ...' if count > 3 else ''}"
        return f"the references of {count} of {self.rows} rows ({rows})"
