"""Text to token ids, with the tokenizer that the tokenizer stage wrote.

Uses `tokenizers` alone: importing transformers, as chat templates need it, would take longer than tokenising the
demo's data.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from takd.data import template as templates
from takd.data.chat import ASKED, ChatTemplate, messages_of
from takd.data.row import Message
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
        self._prompts = self._answers = self._tokenizer
        self._marks, self._nonce = dict[int, int](), secrets.token_hex(16)
        self._pattern, self._marked = re.compile("(?!)"), Template()
        self.unknown: list[str] = []
        self.chat: ChatTemplate | None = None
        if isinstance(template, dict):
            self._mark(file, "\n".join(template.values()))
            names = [token.content for token in self._added.values()]
            own = described.get("chat_marks", [])
            self.unknown = templates.unknown_marks(template, names, own)
            self._marked = {key: self._with_marks(text) for key, text in template.items()}
        elif template == CHAT:
            self._begin = []  # the tokenizer's own template contains it
            self.chat = ChatTemplate.described(described["template"])
            self._mark(file, self.chat.source + self.chat.render([ASKED]) + self.chat.end)
            self._anchor = self._with_marks(self.chat.start)
            self._anchor_ids = self._encode(self._answers, [self._anchor])[0]

    @classmethod
    def beside(cls, manifest: Path, template: Template | str | None = None) -> "Encoder":
        """Load the tokenizer beside a manifest of the tokenizer stage."""
        return cls(manifest.parent / "tokenizer/tokenizer.json", read_json(manifest), template)

    def _mark(self, file: Path, text: str) -> None:
        """Make marks, which no data can contain, for the special tokens in a template's text.

        A mark is an added token with the properties of the one it stands for, but not a special one: the tokenizer
        finds it even when it reads special tokens as text. So the handling of blanks around added tokens is unchanged.
        """
        self._added = self._tokenizer.get_added_tokens_decoder()
        # blanks stay text in a template even if they are added tokens
        ids = {t.content: n for n, t in self._added.items() if not t.content.isspace()}
        longest_first = sorted(ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        used = {ids[name]: self._added[ids[name]] for name in self._pattern.findall(text)}
        if self.chat is not None:  # its text may build the name of a token from parts
            used |= {n: self._added[n] for n in ids.values() if self._added[n].special}
        # one for the start of a text: normalised together with preceding text, a mark might not be found
        self._names: dict[tuple[str, bool], str] = {}
        new: list[AddedToken] = []
        for token in used.values():
            for first in (False, True):
                name = f"{self._nonce}{len(new):04d}"
                self._names[token.content, first] = name
                how = {"lstrip": token.lstrip, "rstrip": token.rstrip, "special": False}
                new.append(AddedToken(name, normalized=token.normalized and first, **how))
        if not new:
            return
        self._prompts, self._answers = _plain(file), _plain(file)
        # in a prompt, every added token that the template uses counts as a special one
        self._prompts.add_special_tokens(list(used.values()))
        for tokenizer in (self._prompts, self._answers):
            tokenizer.add_tokens(new)
        for number, token in used.items():
            for first in (False, True):
                mark = self._prompts.token_to_id(self._names[token.content, first])
                assert mark is not None
                assert mark == self._answers.token_to_id(self._names[token.content, first])
                self._marks[mark] = number

    def _with_marks(self, text: str, start: int = 0) -> str:
        """Put marks in place of special tokens into a template's text, which begins at `start` of a prompt."""

        def mark(found: re.Match[str]) -> str:
            return self._names.get((found[0], start + found.start() == 0), found[0])

        return self._pattern.sub(mark, text)

    def fill(self, instruction: str, context: str, history: Sequence[Message] = ()) -> str:
        """Fill the template with a row, giving a prompt for `prompts`.

        Raises:
            ChatError: the chat template does not keep what the messages say.
        """
        if self.chat is None:
            return templates.fill(self._marked, instruction, context)
        text = ""
        for piece, own in self.chat.pieces(
            messages_of(instruction, context, history), self._pattern
        ):
            text += self._with_marks(piece, len(text)) if own else piece
        return text

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt."""
        found = []
        for text, ids in zip(texts, self._encode(self._prompts, texts), strict=True):
            ids = self._meant(text, ids)
            begun = ids[: len(self._begin)] == self._begin
            found.append(ids if begun else [*self._begin, *ids])
        return found

    def _meant(self, text: str, ids: list[int]) -> list[int]:
        """Replace the marks among the ids of a text by the special tokens that they stand for."""
        if not self._marks:
            return ids
        if sum(number in self._marks for number in ids) != text.count(self._nonce):
            raise InputError(
                f"this tokenizer reads a special token of the template as text in {text[-60:]!r}; put a"
                " blank around it."
            )
        return [self._marks.get(number, number) for number in ids]

    def responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each response or document, with the end token.

        Raises:
            ChatError: the chat template writes a response otherwise than after its prompt.
        """
        if self.chat is not None:
            return [[*self._answer(text), self.end] for text in texts]
        return [[*ids, self.end] for ids in self._encode(self._tokenizer, texts)]

    def _answer(self, text: str) -> list[int]:
        """Token ids of a response in a chat, as they follow the end of its prompt."""
        assert self.chat is not None
        lead, said = self.chat.answer(text)
        # behind other text, as some tokenizers put a blank before a text
        for before, known in ((self._anchor, self._anchor_ids), ("", [])):
            whole = before + self._with_marks(lead, 1) + said
            ids = self._encode(self._answers, [whole])[0]
            if ids[: len(known)] == known:
                break
        return self._meant(whole, ids)[len(known) :]

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
                    " remove what spells it from the data, or, if it is a tokenizer of `words`, words that it lacks."
                )
        return found


def _plain(file: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
