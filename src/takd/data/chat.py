"""The tokenizer's own chat template: what of a prompt and of an answer is the template's, and what the messages'.

An answer is learned after the prompt that a model gets when it answers: all messages before it and the start of an
answer (`add_generation_prompt`). Each answer of a conversation is therefore a row of its own, so that a template may
write earlier turns otherwise than the last one (Qwen3 leaves out their thoughts).
"""

import hashlib
import itertools
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from takd.data.row import ASSISTANT, SYSTEM, USER, Message

REMEDY = "write the template out, as with_input and without_input."
# test messages: a template that changes any of them is more than text around the message
WRITTEN = (
    *("Ab.", " \nAb.\n ", "a\n\n\nb  c", "{x} {{ y }} {% z %}", "<think>a</think>b"),
    *('it\'s "&" \\n <b>', "Zażółć 日本"),
)
ASKED = (USER, "Ab.")
ALTERED = "does not keep what a user writes"
_DATE = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")

Piece = tuple[str, bool]  # text, and whether it is the template's
Messages = Sequence[Message]


class ChatError(Exception):
    """A chat template cannot be used for some messages; the text says why, as an end of a sentence."""


def settled(
    source: str, system: str | None, variables: Mapping[str, Any], now: datetime, end: str | None
) -> str:
    """Write what an experiment says into a chat template, which then needs no further arguments.

    Args:
        source: Jinja source.
        system: message for conversations without a system message of their own.
        variables: values of the template's variables; arguments of `apply_chat_template` take precedence.
        now: the date that it gets where it asks for that of the day.
        end: the value of `eos_token` that it was written for, if the tokenizer has another one now.
    """
    source = _DATE.sub(lambda found: json.dumps(now.strftime(found[2]), ensure_ascii=False), source)
    said = ""
    if end is not None and "eos_token" in source:
        said += f"{{% set eos_token = {_constant(end)} %}}"
    for name, value in variables.items():
        said += (
            f"{{% if {name} is not defined %}}{{% set {name} = {_constant(value)} %}}{{% endif %}}"
        )
    if system is not None:
        message = f"{{'role': 'system', 'content': {_constant(system)}}}"
        said += f"{{% if messages[0]['role'] != 'system' %}}{{% set messages = [{message}] + messages %}}{{% endif %}}"
    # the line feed is taken off by Jinja's trim_blocks, and keeps what the source begins with
    return f"{said}\n{source}" if said else source


def _constant(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class ChatTemplate:
    """A chat template with the special tokens that it refers to by name.

    Attributes:
        start: text of the template between the last message and the answer.
        lead, close, end: text that it puts between `start` and the answer, between the answer and the end token, and
            the end token; empty where the template has none.
    """

    def __init__(self, source: str, special: Mapping[str, str], tokens: Sequence[str]) -> None:
        """Find how the template writes an answer.

        Args:
            special: as `special_tokens_map` of a tokenizer.
            tokens: texts of the special tokens, one of which may end an answer.

        Raises:
            ChatError: the template cannot write a user message and an answer.
        """
        self.source, self._special = source, dict(special)
        ends = sorted((token for token in tokens if token.strip()), key=len, reverse=True)
        for text in WRITTEN:
            try:
                self.pieces([(USER, text)])
            except ChatError as error:
                raise ChatError(f"{error} ({text!r})") from error
        asked, said = (secrets.token_hex(16) for _ in range(2))  # occur in no template
        prompt = self.render([(USER, asked)])
        whole = self.render([(USER, asked), (ASSISTANT, said)], start=False)
        if whole.count(said) != 1:
            raise ChatError("drops or repeats an answer")
        if not whole.startswith(prompt):
            raise ChatError(
                "begins an answer otherwise than a prompt ends (`add_generation_prompt`)"
            )
        self.start = prompt.split(asked)[1]
        self.lead, tail = whole[len(prompt) :].split(said)
        found = re.search("|".join(map(re.escape, ends)) or "(?!)", tail)
        self.close, self.end = (tail[: found.start()], found[0]) if found else ("", "")
        self._tail, self._prompt = tail, self.render([ASKED])
        self._check_marks(asked, said, len(prompt), len(whole) - len(tail))

    @classmethod
    def described(cls, facts: Mapping[str, Any]) -> "ChatTemplate":
        """Read a template back from what `facts` returned."""
        return cls(facts["source"], facts["special"], [facts["end"]])

    def facts(self) -> dict[str, Any]:
        """Entry for the manifest of the tokenizer stage; `sha256` is that of the Jinja source."""
        digest = hashlib.sha256(self.source.encode()).hexdigest()
        return {"source": self.source, "special": self._special, "end": self.end, "sha256": digest}

    def _check_marks(self, asked: str, said: str, begin: int, end: int) -> None:
        """Compare what `{% generation %}` marks as an answer, if anything, with what is learned."""
        if not re.search(r"\{%-?\s*generation\b", self.source):
            return
        messages = [(USER, asked), (ASSISTANT, said)]
        (spans,) = self._rendered(messages, False, return_assistant_tokens_mask=True)[1]
        if not spans or spans[-1][0] > begin or spans[-1][1] < end:
            raise ChatError(
                "marks by {% generation %} another part than the answer that follows its prompt"
            )

    def _rendered(self, messages: Messages, start: bool, **more: Any) -> tuple[list[str], Any]:
        from transformers.utils.chat_template_utils import render_jinja_template

        conversation = [{"role": role, "content": text} for role, text in messages]
        options: dict[str, Any] = {**self._special, **more, "add_generation_prompt": start}
        try:
            found: Any = render_jinja_template([conversation], chat_template=self.source, **options)
            return found
        except Exception as error:  # a template may raise anything
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            roles = ", ".join(role for role, _ in messages)
            what = f"messages of {roles}" if messages[1:] else "one user message"
            raise ChatError(f"cannot be used for {what} ({reason})") from error

    def render(self, messages: Messages, start: bool = True) -> str:
        """Render messages, with the start of an answer."""
        return self._rendered(messages, start)[0][0]

    def pieces(self, messages: Messages, used: re.Pattern[str] | None = None) -> list[Piece]:
        """Divide a prompt into the template's text and that of the messages.

        Args:
            used: the tokens that the template's text may hold. A message that the template changes is taken for the
                template's text where it adds none of them; without `used`, none may be changed.

        Raises:
            ChatError: the template drops, repeats or changes a message.
        """
        names = [secrets.token_hex(16) for _ in messages]
        frame = self.render([(role, name) for (role, _), name in zip(messages, names, strict=True)])
        if any(frame.count(name) != 1 for name in names):
            what = "drops or repeats an earlier message" if messages[1:] else ALTERED
            raise ChatError(what)
        pieces = re.split(f"({'|'.join(names)})", frame)
        whole, roles = self.render(messages), list(dict.fromkeys(role for role, _ in messages))
        # a template writes the messages of a role as they are, or without blanks around them
        choices: list[Callable[[str], str]] = [str, str.strip]
        for ways in itertools.product(choices, repeat=len(roles)):
            way = dict(zip(roles, ways, strict=True))
            texts = {n: way[role](text) for n, (role, text) in zip(names, messages, strict=True)}
            found = [(texts.get(piece, piece), piece not in texts) for piece in pieces]
            if "".join(text for text, _ in found) == whole:
                return found
        if used is None or used.findall(frame) != used.findall(whole):
            raise ChatError(ALTERED)
        return [(whole, True)]

    def answer(self, text: str) -> tuple[str, str]:
        """Write an answer as the template does: the template's text before it, and its own, without the end token.

        Raises:
            ChatError: the template begins this answer otherwise than its prompt ends, or ends it otherwise.
        """
        whole = self.render([ASKED, (ASSISTANT, text)], start=False)
        rest = whole[len(self._prompt) :]
        if not whole.startswith(self._prompt) or not rest.endswith(self._tail):
            raise ChatError(f"begins or ends the answer {text[:60]!r} otherwise than others")
        for said in (text, text.strip()):
            if rest == self.lead + said + self._tail:
                return self.lead, said + self.close
        return "", rest.removesuffix(self._tail) + self.close  # thoughts that it writes anew


def of_tokenizer(
    tokenizer: Any, system: str | None = None, variables: Mapping[str, Any] | None = None
) -> ChatTemplate:
    """Settle the template of a tokenizer and make its end of an answer the tokenizer's end token.

    Raises:
        ChatError: the template changes messages, or does not read a variable or the system prompt.
    """
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default", "")
    for name in variables or {}:
        if not re.search(rf"\b{re.escape(name)}\b", source):
            raise ChatError(f"has no variable '{name}', which data.template_variables sets")
    special = {name: str(text) for name, text in tokenizer.special_tokens_map.items()}
    now, tokens = datetime.now(), [str(t) for t in tokenizer.all_special_tokens]
    tokens += [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    settings = system, variables or {}, now
    found = ChatTemplate(settled(source, *settings, None), special, tokens)
    if found.end not in ("", tokenizer.eos_token):
        before = tokenizer.eos_token
        tokenizer.eos_token = found.end
        special = {name: str(text) for name, text in tokenizer.special_tokens_map.items()}
        found = ChatTemplate(settled(source, *settings, before), special, tokens)
    if system is not None and system.strip() not in found.render([ASKED]):
        raise ChatError("does not write the system prompt of data.system")
    tokenizer.chat_template = found.source
    return found


def messages_of(instruction: str, context: str, history: Messages = ()) -> list[Message]:
    """Return the messages of a row; its input follows the instruction on the next line."""
    content = f"{instruction}\n{context}" if context else instruction
    return [*history, (USER, content)]


def transcript(history: Messages, instruction: str) -> str:
    """Write a conversation as plain text, for people and judges; the instruction alone without earlier messages."""
    if not history:
        return instruction
    names = {SYSTEM: "System", USER: "User", ASSISTANT: "Assistant"}
    said = messages_of(instruction, "", history)
    return "\n\n".join(f"{names[role]}: {text}" for role, text in said)


def as_json(history: Messages, instruction: str) -> str:
    """Write a conversation as `messages` in JSON; empty without earlier messages."""
    if not history:
        return ""
    said = messages_of(instruction, "", history)
    return _constant([{"role": role, "content": text} for role, text in said])
