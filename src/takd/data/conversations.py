"""Conversations of a source: `messages` as OpenAI writes them, `conversations` as ShareGPT does."""

from collections.abc import Iterator, Mapping
from typing import Any

from takd.data.row import ASSISTANT, SYSTEM, USER, Message
from takd.data.text_files import encodable, kind
from takd.runtime.errors import InputError

COLUMNS = ("messages", "conversations")  # names by which conversations are recognised
ROLES = {
    **{role: role for role in (SYSTEM, USER, ASSISTANT)},
    **{"human": USER, "gpt": ASSISTANT},
}
TOOLS = ("tool", "function", "function_call", "observation", "ipython")
CALLS = ("tool_calls", "function_call", "tool_call_id")
READ = ("role", "content", "from", "value")


def column(record: Mapping[str, Any], columns: Mapping[str, Any]) -> str | None:
    """Name the key of a record that holds a conversation; None for a row with instruction and output."""
    if "messages" in columns:
        return str(columns["messages"])
    if columns.get("instruction", "instruction") in record or "instruction" in columns:
        return None
    return next((name for name in COLUMNS if name in record), None)


def messages(where: str, key: str, record: Mapping[str, Any]) -> list[Message]:
    """Read a conversation: a system message where there is one, then user and assistant by turns.

    Raises:
        InputError: it is none, or holds what is not supported; names the message.
    """
    if key not in record:
        present = ", ".join(f"'{name}'" for name in record) or "none"
        raise InputError(f"{where}: no key '{key}'; its keys are {present}.")
    found = record[key]
    if not isinstance(found, list) or not found:
        raise InputError(f"{where}: '{key}' is {kind(found)}; it has to be a list of messages.")
    read = [_message(f"{where}, message {n} of '{key}'", m) for n, m in enumerate(found, start=1)]
    before = ""
    for number, (role, _) in enumerate(read, start=1):
        # a system message comes first or not at all
        if role not in {"": (SYSTEM, USER), USER: (ASSISTANT,)}.get(before, (USER,)):
            after = f"follows one of '{before}'" if before else "is the first"
            raise InputError(
                f"{where}, message {number} of '{key}': its role is '{role}', and it {after}; after a system message,"
                " if any, user and assistant take turns, and the user begins."
            )
        before = role
    if before == SYSTEM:
        raise InputError(f"{where}: '{key}' has a system message alone; it needs a user message.")
    return read


def _message(where: str, message: Any) -> Message:
    if not isinstance(message, dict):
        wanted = "an object with role and content (or from and value)"
        raise InputError(f"{where}: {kind(message)}; it has to be {wanted}.")
    names = ("from", "value") if "from" in message else ("role", "content")
    role = message.get(names[0])
    if role in TOOLS or any(message.get(name) for name in CALLS):
        raise InputError(
            f"{where}: calls a tool or answers a call, which is not supported; leave such conversations out."
        )
    if not isinstance(role, str) or role not in ROLES:
        said = repr(role) if isinstance(role, str) else kind(role)
        raise InputError(
            f"{where}: its {names[0]} is {said}; roles are system, user and assistant, or ShareGPT's system, human and"
            " gpt."
        )
    text = encodable(where, names[1], message.get(names[1]), "has to be a text")
    if not text.strip():
        raise InputError(f"{where}: its {names[1]} is empty; leave such conversations out.")
    return ROLES[role], text


def unread(key: str, record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a record's messages that are not read, as `messages.name`, with what they hold."""
    for message in record[key]:
        yield from ((f"{key}.{name}", value) for name, value in message.items() if name not in READ)
