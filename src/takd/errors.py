"""The one error that a user of the workflow is meant to read."""

import errno

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of this disk is used up",
    errno.EFBIG: "files may not be that large (ulimit -f)",
}
# in the words of libraries that hide the number
SAID = {
    "no space left on device": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "file too large": errno.EFBIG,
}


class InputError(ValueError):
    """Something that the user gave is wrong: one sentence that says where, what, and what would be right.

    Several errors that are told at once are a line each. What is not shown of a text, line breaks among it, is escaped.
    """

    def __init__(self, *sentences: str) -> None:
        super().__init__("\n".join(map(printable, sentences)))


def printable(text: str) -> str:
    """A text in one line: characters that are not shown as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def no_room(error: BaseException, place: object) -> str | None:
    """A sentence where an error, or what it came from, is that a file could not be written for want of room.

    Args:
        place: what was written to, where the error does not say it.
    """
    seen: list[BaseException] = []
    now: BaseException | None = error
    while now is not None and now not in seen:
        seen.append(now)
        number = getattr(now, "errno", None)
        if number not in FULL:
            number = next((n for words, n in SAID.items() if words in str(now).lower()), None)
        if number in FULL:
            where = getattr(now, "filename", None) or place
            return (
                f"{where}: cannot be written, since {FULL[number]}; make room there, or make `results` a link to a"
                " larger disk, and start again: finished results stay."
            )
        now = now.__cause__ or now.__context__
    return None
