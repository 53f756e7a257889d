"""How a row becomes a prompt."""

import re

_FIELD = re.compile(r"\{(instruction|input)\}")


def fill(template: dict[str, str], instruction: str, context: str) -> str:
    """The prompt of a row: `with_input` where it has an input, else `without_input`.

    Only `{instruction}` and `{input}` of the template are replaced: braces in the row, and all other braces of
    the template, stay as they are.
    """
    text = template["with_input" if context else "without_input"]
    fields = {"instruction": instruction, "input": context}
    return _FIELD.sub(lambda match: fields[match[1]], text)
