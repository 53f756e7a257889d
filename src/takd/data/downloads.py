"""Download data files once, on the machine that starts the workflow, and identify them by their contents.

A file from a URL is stored under its sha256, so that experiments share it and a changed file is not mistaken for it.
A file of the Hub stays in the Hub's own cache.
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

from takd.models.hub import COMMIT, commit_of, discard
from takd.runtime.digests import file_digest
from takd.runtime.errors import InputError, hub_error

FOLDER = Path("resources/downloads")
SCHEMES = ("https", "file")
ATTEMPTS = 6
WAIT = 2.0  # seconds before the second attempt, doubled before each further one
SILENCE = 60.0  # seconds without a byte after which an attempt has failed
FINAL = (400, 401, 403, 404, 410, 451)  # status codes for which a retry is useless


def fetch(source: Mapping[str, Any]) -> Path:
    """Return the local file of a source, downloading it if necessary.

    Args:
        source: `{"url", "sha256"}`, or `{"hub", "revision", "file"}` with or without `sha256`.

    Raises:
        InputError: the file cannot be downloaded, or its digest differs.
    """
    return _fetch_url(source["url"], source["sha256"]) if "url" in source else _fetch_hub(source)


def _fetch_url(url: str, digest: str) -> Path:
    """Download to `FOLDER/<sha256>`, resuming an interrupted download."""
    scheme = url.partition(":")[0]
    if scheme not in SCHEMES:
        raise InputError(f"{url}: begins with {scheme}; it has to begin with https:// or file://.")
    target = FOLDER / digest
    if target.is_file():  # before the lock: the folder may be read-only
        return target
    FOLDER.mkdir(parents=True, exist_ok=True)
    # two splits may be parts of one file, and their jobs start at the same time
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
    """Download an address to a file, resuming at its end; broken connections are retried."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _append(url, partial)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:
                return  # complete, or not a part of this file; the caller checks the digest
            reason, final = f"HTTP {error.code} {error.reason}", error.code in FINAL
        except (OSError, HTTPException, ValueError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            # a retry cannot help an invalid address
            final = url.startswith("file:") or isinstance(error, ValueError)
        if final or attempt == ATTEMPTS:
            again = "" if final else f" after {ATTEMPTS} attempts, the last of which"
            raise InputError(
                f"{url} cannot be fetched{again}: {reason}; this stage needs that address, and resumes where it broke"
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


def pinned(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return a source with the commit of the Hub that its `revision` names, where that is a branch or tag.

    Raises:
        InputError: as `fetch`, or the Hub does not know the revision.
    """
    if COMMIT.fullmatch(source.get("revision") or "0" * 40):
        return dict(source)
    if "file" in source:  # in snapshots/COMMIT of the Hub's cache
        commit = fetch(source).parents[source["file"].count("/")].name
    else:
        commit = commit_of(source["hub"], source["revision"])
    return {**source, "revision": commit}


def _fetch_hub(source: Mapping[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download

    name, file, revision = source["hub"], source["file"], source["revision"]
    digest = source.get("sha256")
    moves = not COMMIT.fullmatch(revision)
    if moves and digest and (known := _cached(name, file, digest)):
        return known
    what = f"{file} of the data set {name}"
    try:
        path = Path(hf_hub_download(name, file, repo_type="dataset", revision=revision))
    except Exception as error:  # of connections, responses and disks, without a common class
        raise hub_error(what, revision, error) from error
    if digest and (found := file_digest(path)) != digest:
        discard(path)
        at = f" at {revision}, which may have moved," if moves else ""
        raise InputError(
            f"{what}{at} has the sha256 {found}, but the experiment says {digest}; it is not kept: start again to"
            " fetch it anew, or correct `sha256` or `revision`."
        )
    return path


def _cached(name: str, file: str, digest: str) -> Path | None:
    """Find a file of this content in the Hub's cache, at any commit: a branch may have moved on since."""
    from huggingface_hub.constants import HF_HUB_CACHE

    snapshots = Path(HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "snapshots"
    for commit in sorted(snapshots.iterdir()) if snapshots.is_dir() else ():
        if (commit / file).is_file() and file_digest(commit / file) == digest:
            return commit / file
    return None
