"""Errors of the model hub as sentences."""

from takd.runtime.errors import InputError


def hub_error(what: str, revision: str, error: Exception) -> InputError:
    """Build an error that explains why something could not be fetched from the Hub, and the remedy."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match error:
        case GatedRepoError():
            do = "it is gated: accept its terms on its page, then log in with `hf auth login`"
        case RepositoryNotFoundError():
            do = "there is nothing of this name, or it is private: correct it, or log in with `hf auth login`"
        case RevisionNotFoundError():
            do = f"it has no commit {revision}: correct `revision`"
        case LocalEntryNotFoundError():
            do = (
                "the hub cannot be reached and its cache (HF_HOME) lacks it: start where there is internet; what has"
                " been fetched is kept"
            )
        case EntryNotFoundError():
            do = f"it has no such file at {revision}"
        case _:
            reason = str(error).strip().partition("\n")[0]
            do = f"{type(error).__name__}: {reason}; start again, what has been fetched is kept"
    return InputError(f"{what} cannot be fetched from the hub: {do}.")
