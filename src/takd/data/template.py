"""Templates that turn a row into a prompt.

A template is two texts, `with_input` and `without_input`, or the tokenizer's own chat template (`takd.data.chat`), as
the manifest of the tokenizer stage has it.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

Template = dict[str, Any]

CHAT = "chat"  # the value of `data.template` that stands for the tokenizer's own
_FIELD = re.compile(r"\{(instruction|input)\}")
# forms of special tokens in known chat formats: <|im_end|>, <end_of_turn>, </s>, [/INST]
_MARK = re.compile(
    r"<[|｜][^<>\n]{1,40}[|｜]>|</?[A-Za-z_][\w▁ -]{0,38}>|<<?/?SYS>>?|\[/?[A-Z][A-Z_ ]{2,38}\]"
)
_KNOWN = re.compile(
    r"<[|｜].*[|｜]>|</?(s|bos|eos|pad|unk|(start|end)_of_\w+)>|<</?SYS>>|\[/?[A-Z_]+\]"
)


def fill(template: Template, instruction: str, context: str) -> str:
    """Fill a template with a row: `with_input` if the row has an input, else `without_input`.

    Only `{instruction}` and `{input}` of the template are replaced: braces in the row, and all other braces of
    the template, stay as they are.
    """
    fields = {"instruction": instruction, "input": context}
    text = template["with_input" if context else "without_input"]
    return _FIELD.sub(lambda match: fields.get(match[1], match[0]), text)


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
        for mark in marks("\n".join(template.values()))
        if mark not in known | own and (_KNOWN.fullmatch(mark) or _letters(mark) in alike)
    ]


def _letters(token: str) -> str:
    return re.sub(r"[\W_]", "", token).lower()
