"""The error class whose message is written for users of the workflow."""

import errno

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of this disk is used up",
    errno.EFBIG: "files may not be that large (ulimit -f)",
}
# for libraries that raise an error without its errno
SAID = {
    "no space left on device": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "file too large": errno.EFBIG,
}


class InputError(ValueError):
    """An error in the user's input: one sentence that names the place, the fault and the remedy.

    Several errors that are reported together have a line each. Non-printable characters are
    escaped.
    """

    def __init__(self, *sentences: str) -> None:
        super().__init__("\n".join(map(printable, sentences)))


def printable(text: str) -> str:
    """Return a text with non-printable characters, line breaks included, escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def no_room(error: BaseException, place: object) -> str | None:
    """Return a sentence if an error, or its cause, is a full disk or quota; else None.

    Args:
        place: the path to name if the error does not hold one.
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
