"""Text to token ids, with the tokenizer that the tokenizer stage wrote.

Uses `tokenizers` alone: importing transformers would take longer than tokenising the demo's data.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from takd.data import template as templates
from takd.data.template import CHAT, Template
from takd.runtime.errors import InputError
from takd.runtime.files import read_json


class Encoder:
    """A tokenizer that reads special tokens as plain text in data, and as special tokens in a template.

    Data may contain "<|endoftext|>" and the like. Special tokens come only from the template, from the begin token that
    some tokenizers put before every text (here before prompts), and from the end token after responses.
    """

    def __init__(
        self, file: Path, described: Mapping[str, Any], template: Template | str | None = None
    ) -> None:
        """Load `tokenizer.json`.

        Args:
            described: `begin`, `end` and, where the template is "chat", `template`, as in the manifest of the tokenizer
                stage.
        """
        self.end: int = described["end"]
        self._begin: list[int] = described["begin"]
        self._tokenizer = _plain(file)
        self._prompts, self._marks = self._tokenizer, dict[int, int]()
        self._marked: Template = {}
        self.unknown: list[str] = []
        if template is not None:
            template = described["template"] if template == CHAT else template
            assert isinstance(template, dict)
            if CHAT in template:
                self._begin = []  # the tokenizer's own template contains it
            self._mark(file, template, described.get("chat_marks", []))

    @classmethod
    def beside(cls, manifest: Path, template: Template | str | None = None) -> "Encoder":
        """Load the tokenizer beside a manifest of the tokenizer stage."""
        return cls(manifest.parent / "tokenizer/tokenizer.json", read_json(manifest), template)

    def _mark(self, file: Path, template: Template, own: Sequence[str]) -> None:
        """Replace a template's special tokens by marks that no data can contain.

        A mark is an added token with the properties of the one it replaces, but not a special one: the tokenizer finds
        it even when it reads special tokens as text. So the handling of blanks around added tokens is unchanged.
        """
        added = self._tokenizer.get_added_tokens_decoder()
        ids = {token.content: number for number, token in added.items()}
        self.unknown = templates.unknown_marks(template, ids, own)
        longest_first = sorted(ids, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        nonce = secrets.token_hex(16)
        new: list[AddedToken] = []
        meant: list[str] = []

        def mark(match: re.Match[str]) -> str:
            token = added[ids[match[0]]]
            # blanks stay text in a template even if they are added tokens
            if match[0].isspace():
                return match[0]
            text = f"{nonce}{len(new):04d}"
            # normalised together with preceding text, a mark might not be found; the first one has none
            sides = {"lstrip": token.lstrip, "rstrip": token.rstrip}
            normalized = token.normalized and match.start() == 0
            new.append(AddedToken(text, **sides, normalized=normalized, special=False))
            meant.append(match[0])
            return text

        self._marked = templates.with_texts(template, lambda text: pattern.sub(mark, text))
        if new:
            self._prompts = _plain(file)
            # in a template, every added token counts as a special one
            self._prompts.add_special_tokens([added[ids[token]] for token in set(meant)])
            self._prompts.add_tokens(new)
            for token, text in zip(new, meant, strict=True):
                number = self._prompts.token_to_id(token.content)
                assert number is not None
                self._marks[number] = ids[text]
        self._nonce = nonce

    def fill(self, instruction: str, context: str) -> str:
        """Fill the template with a row, giving a prompt for `prompts`."""
        return templates.fill(self._marked, instruction, context)

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt."""
        found = []
        for text, ids in zip(texts, self._encode(self._prompts, texts), strict=True):
            if self._marks:
                count = sum(number in self._marks for number in ids)
                if count != text.count(self._nonce):
                    raise InputError(
                        f"this tokenizer reads a special token of the template as text in {text[-60:]!r}; put a"
                        " blank around it."
                    )
                ids = [self._marks.get(number, number) for number in ids]
            begun = ids[: len(self._begin)] == self._begin
            found.append(ids if begun else [*self._begin, *ids])
        return found

    def responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each response or document, with the end token."""
        return [[*ids, self.end] for ids in self._encode(self._tokenizer, texts)]

    def rewritten(self, texts: Sequence[str]) -> list[str]:
        """Encode and decode each text, which normalises references like a model's answers."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return self._tokenizer.decode_batch([encoding.ids for encoding in encodings])

    def _encode(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        found = [encoding.ids for encoding in encodings]
        for text, ids in zip(texts, found, strict=True):
            if self.end in ids:
                raise InputError(
                    f"this tokenizer reads its end token out of the text {text[:60]!r}...;"
                    " remove what spells it from the data."
                )
        return found


def _plain(file: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
