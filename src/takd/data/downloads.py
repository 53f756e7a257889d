"""Files that are fetched once, on the machine that starts the workflow, and known by what they hold.

An address is kept under its sha256, so that two experiments share it and a changed file is never taken for it. A file
of the hub stays in the hub's own cache.
"""

import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

from filelock import FileLock

from takd.errors import InputError
from takd.provenance import file_digest

FOLDER = Path("resources/downloads")
SCHEMES = ("https", "file")
ATTEMPTS = 6
WAIT = 2.0  # seconds before the second attempt, doubled before each further one
SILENCE = 60.0  # seconds without a byte after which an attempt has failed
FINAL = (400, 401, 403, 404, 410, 451)  # answers that another attempt will not change


def fetch(source: Mapping[str, Any]) -> Path:
    """The local file of a source: `{"url", "sha256"}`, or `{"hub", "revision", "file"}` with or without `sha256`.

    Raises:
        InputError: a file that cannot be had, or that is another one than the digest says.
    """
    return _fetch_url(source["url"], source["sha256"]) if "url" in source else _fetch_hub(source)


def _fetch_url(url: str, digest: str) -> Path:
    """Download to `FOLDER/<sha256>`; what is left of an attempt that broke off is gone on with."""
    scheme = url.partition(":")[0]
    if scheme not in SCHEMES:
        raise InputError(f"{url}: begins with {scheme}; it has to begin with https:// or file://.")
    target = FOLDER / digest
    if target.is_file():
        return target
    FOLDER.mkdir(parents=True, exist_ok=True)
    # two splits may be parts of one file, and their jobs start together
    with FileLock(FOLDER / f"{digest}.lock"):
        if target.is_file():
            return target
        partial = FOLDER / f"{digest}.partial"
        _download(url, partial)
        found = file_digest(partial)
        if found != digest:
            partial.unlink()
            raise InputError(
                f"{url} has the sha256 {found}, but the experiment says {digest}: the file is another one than it was"
                " when the experiment was written; get the right one, or correct `sha256`."
            )
        os.replace(partial, target)
    return target


def _download(url: str, partial: Path) -> None:
    """Write what an address holds, going on where the file ends; connections that break are tried again."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _append(url, partial)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:
                return  # nothing is left to fetch, or what is there is no part of this file: the digest tells
            reason, final = f"HTTP {error.code} {error.reason}", error.code in FINAL
        except (OSError, HTTPException, ValueError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            # no attempt mends an address that cannot be one
            final = url.startswith("file:") or isinstance(error, ValueError)
        if final or attempt == ATTEMPTS:
            again = "" if final else f" after {ATTEMPTS} attempts, the last of which"
            raise InputError(
                f"{url} cannot be fetched{again}: {reason}; this stage needs that address, and goes on where it broke"
                " off when it is started again."
            )
        time.sleep(WAIT * 2 ** (attempt - 1))


def _append(url: str, partial: Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "takd"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=SILENCE) as answer:
        goes_on = getattr(answer, "status", None) == 206
        expected = answer.headers.get("Content-Length")
        with open(partial, "ab" if goes_on else "wb") as file:
            before = file.tell()
            shutil.copyfileobj(answer, file, 2**20)
            file.flush()
            os.fsync(file.fileno())
            written = file.tell() - before
    if expected is not None and written < int(expected):
        raise OSError(f"the connection broke after {have * goes_on + written} bytes")


def _fetch_hub(source: Mapping[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download

    name, file = source["hub"], source["file"]
    try:
        path = Path(hf_hub_download(name, file, repo_type="dataset", revision=source["revision"]))
    except (
        Exception
    ) as error:  # connections, answers and disks: what they raise has no base of its own
        raise hub_error(f"{file} of the data set {name}", source["revision"], error) from error
    digest = source.get("sha256")
    if digest and (found := file_digest(path)) != digest:
        raise InputError(
            f"{file} of the data set {name} has the sha256 {found}, but the experiment says {digest}; correct `sha256`"
            " or `revision`."
        )
    return path


def hub_error(what: str, revision: str, error: Exception) -> InputError:
    """A sentence on why something could not be had from the hub, and what to do."""
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
