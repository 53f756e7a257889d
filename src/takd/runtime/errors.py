"""Errors as sentences for users of the workflow: place, fault and remedy."""

import errno
import os
import re

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
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


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


def reason(error: BaseException) -> str:
    """Summarise an exception of a library: its class and the first sentence of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    # validation errors of configurations have the reason in the second line
    said = lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {said.partition('. ')[0].rstrip('.')}"


def hub_fault(revision: str, error: BaseException) -> str | None:
    """Explain why the Hub gave nothing, with the remedy; None if the error is not one of the Hub's.

    Errors of other libraries are followed to the one that caused them.
    """
    from huggingface_hub import errors as hub

    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    # from the first cause on: that access is refused says more than that the cache lacks a file
    for cause in reversed(chain):
        match cause:
            case hub.GatedRepoError():
                return f"it is gated: accept its terms on its page, then {LOG_IN}"
            case hub.RepositoryNotFoundError():
                return f"there is nothing of this name, or it is private: correct it, or {LOG_IN}"
            case hub.RevisionNotFoundError():
                return f"it has no commit {revision}: correct `revision` (a commit has 40 digits)"
            case (
                hub.LocalEntryNotFoundError()
                | hub.IncompleteSnapshotError()
                | hub.RevisionResolutionError()
                | hub.OfflineModeIsEnabled()
            ):
                why = "" if cause is chain[-1] else f" ({reason(chain[-1])})"
                return (
                    f"the hub cannot be reached and its cache (HF_HOME) lacks it{why}: start where there is internet;"
                    " what has been fetched is kept"
                )
            case hub.EntryNotFoundError():
                address = getattr(getattr(cause, "response", None), "url", None)
                file = f"file {address.path.rpartition('/')[2]}" if address else "such file"
                return f"it has no {file} at {revision}"
            case hub.HfHubHTTPError() if cause.response.status_code in (401, 403):
                return f"access is refused (HTTP {cause.response.status_code}): {LOG_IN}"
    return None


def hub_error(what: str, revision: str, error: BaseException) -> InputError:
    """Build an error that explains why something could not be fetched from the Hub, and the remedy."""
    do = hub_fault(revision, error)
    if not do:
        said = str(error).strip().partition("\n")[0]
        do = f"{type(error).__name__}: {said}; start again, what has been fetched is kept"
    mirror = f" at {os.environ['HF_ENDPOINT']}" if os.environ.get("HF_ENDPOINT") else ""
    return InputError(without_secrets(f"{what} cannot be fetched from the hub{mirror}: {do}."))


def without_secrets(text: str) -> str:
    """Remove user names, passwords and query strings (of signed addresses) from the URLs in a text."""
    return re.sub(r"(https?://)(?:[^/@\s]*@)?([^\s?'\"]*)(?:\?[^\s'\"]*)?", r"\1\2", text)
