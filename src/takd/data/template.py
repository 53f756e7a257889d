"""Templates that turn a row into a prompt.

A template is two texts, `with_input` and `without_input`, or the tokenizer's own chat template for one user message:
`chat`, a text with `{content}`, and `strip`, whether it strips blanks around the message.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterable
from typing import Any

from takd.runtime.errors import InputError

Template = dict[str, Any]

CHAT = "chat"  # the value of `data.template` that stands for the tokenizer's own
REMEDY = "write the template out, as with_input and without_input."
_FIELD = re.compile(r"\{(instruction|input|content)\}")
# forms of special tokens in known chat formats: <|im_end|>, <end_of_turn>, </s>, [/INST]
_MARK = re.compile(
    r"<[|｜][^<>\n]{1,40}[|｜]>|</?[A-Za-z_][\w▁ -]{0,38}>|<<?/?SYS>>?|\[/?[A-Z][A-Z_ ]{2,38}\]"
)
_KNOWN = re.compile(
    r"<[|｜].*[|｜]>|</?(s|bos|eos|pad|unk|(start|end)_of_\w+)>|<</?SYS>>|\[/?[A-Z_]+\]"
)
# test messages: a template that changes any of them is more than text around the message
_WRITTEN = (
    *("Ab.", "a\n\n\nb  c", "{x} {{ y }} {% z %}", "<think>a</think>b"),
    *('it\'s "&" \\n <b>', "Zażółć 日本"),
)


def texts(template: Template) -> list[str]:
    """List the texts of a template."""
    return [text for text in template.values() if isinstance(text, str)]


def with_texts(template: Template, change: Callable[[str], str]) -> Template:
    """Apply a function to the texts of a template."""
    return {key: change(v) if isinstance(v, str) else v for key, v in template.items()}


def fill(template: Template, instruction: str, context: str) -> str:
    """Fill a template with a row: `with_input` if the row has an input, else `without_input`.

    Only `{instruction}` and `{input}` of the template are replaced: braces in the row, and all other braces of
    the template, stay as they are. In a chat template, the message is the instruction, with the input on the next line.
    """
    if CHAT in template:
        content = f"{instruction}\n{context}" if context else instruction
        fields = {"content": content.strip() if template["strip"] else content}
        text = template[CHAT]
    else:
        fields = {"instruction": instruction, "input": context}
        text = template["with_input" if context else "without_input"]
    return _FIELD.sub(lambda match: fields.get(match[1], match[0]), text)


def chat_of(tokenizer: Any, name: str) -> Template:
    """Extract the tokenizer's own template for one user message and the start of the answer.

    Raises:
        InputError: there is none, or it changes the message.
    """

    def render(content: str) -> str:
        message = {"role": "user", "content": content}
        try:
            return tokenizer.apply_chat_template(
                [message], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template may raise anything
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"tokenizer {name}: its chat template cannot be used for one user message ({reason}); {REMEDY}"
            ) from error

    if not tokenizer.chat_template:
        raise InputError(
            f"tokenizer {name} has no chat template, for which data.template asks; {REMEDY}"
        )
    content = secrets.token_hex(16)  # occurs in no template
    text = render(content)
    blank = f" \n{content}\n "
    template = {CHAT: text.replace(content, "{content}"), "strip": render(blank) == text}
    for written in (content, blank, *_WRITTEN):
        if text.count(content) != 1 or render(written) != fill(template, written, ""):
            raise InputError(
                f"tokenizer {name}: its chat template does not keep what a user writes ({written!r}); {REMEDY}"
            )
    return template


def as_chat_template(template: Template, begin: str) -> str:
    """Convert the template of an experiment to a Jinja chat template for a tokenizer.

    It takes one user message, whose key `input` holds the row's input. `begin` is the text of the tokens that the
    tokenizer puts before every text.
    """

    names = {"{instruction}": "message['content']", "{input}": "message['input']"}

    def written(text: str) -> str:
        text = text if text.startswith(begin) else begin + text
        parts = filter(None, re.split(r"(\{instruction\}|\{input\})", text))
        values = (names.get(part) or json.dumps(part, ensure_ascii=False) for part in parts)
        return "".join(f"{{{{ {value} }}}}" for value in values)

    return (
        "{% if messages | length != 1 or messages[0]['role'] != 'user' %}"
        "{{ raise_exception('This model was trained on single user messages.') }}{% endif %}"
        "{% set message = messages[0] %}"
        f"{{% if message['input'] %}}{written(template['with_input'])}"
        f"{{% else %}}{written(template['without_input'])}{{% endif %}}"
    )


def marks(text: str) -> list[str]:
    """List what looks like a special token in a text."""
    return list(dict.fromkeys(match[0] for match in _MARK.finditer(text)))


def unknown_marks(template: Template, known: Iterable[str], own: Iterable[str]) -> list[str]:
    """List what looks like a special token in a template but is read as text.

    Args:
        known: special and other added tokens of the tokenizer.
        own: `marks` of the tokenizer's own chat template, which it reads as text, too.
    """
    known, own = set(known), set(own)
    alike = {_letters(token) for token in known}
    return [
        mark
        for mark in marks("\n".join(texts(template)))
        if mark not in known | own and (_KNOWN.fullmatch(mark) or _letters(mark) in alike)
    ]


def _letters(token: str) -> str:
    return re.sub(r"[\W_]", "", token).lower()
