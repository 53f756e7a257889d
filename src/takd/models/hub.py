"""What is fetched from the Hugging Face Hub: the files of a model, and the commit that a branch names."""

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from takd.models.tokenizer_check import ALSO, FILES
from takd.models.weight_files import ADAPTER, INDEX, PICKLE, PICKLE_INDEX, WHOLE
from takd.runtime.digests import source_digest
from takd.runtime.errors import InputError, hub_error

COMMIT = re.compile(r"[0-9a-f]{40}")
SMALL = ("config.json", ADAPTER, *FILES, *ALSO)
# forms that weights have, the preferred one first; shards go with their index
FORMS = (
    (WHOLE,),
    (INDEX, "model-*-of-*.safetensors"),
    (PICKLE,),
    (PICKLE_INDEX, "pytorch_model-*-of-*.bin"),
)


def weight_files(names: Iterable[str]) -> list[str]:
    """Select the files that hold a model's weights, in one form: safetensors, or pickles where there are none.

    Args:
        names: of all files in a repository or folder.
    """
    names = sorted(names)
    for first, *others in FORMS:
        if first in names:
            shards = (name for name in names if any(fnmatchcase(name, each) for each in others))
            return [first, *shards]
    return []


def fetch_model(name: str, revision: str, also: Sequence[str] = ()) -> Path:
    """Return the folder of a commit in the Hub's cache that has configuration, tokenizer and weights.

    Files that are there are not asked for again.

    Args:
        revision: a commit.
        also: further files to fetch, if it has them.

    Raises:
        InputError: something cannot be fetched; says why and what to do.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(SMALL)))
        wanted = cached_weight_files(name, revision, folder)
        snapshot_download(name, revision=revision, allow_patterns=[*SMALL, *also, *wanted])
    except Exception as error:  # network and disk errors have no common base
        raise hub_error(f"the model {name}", revision, error) from error
    for file in wanted:
        _check_download(folder / file, f"{file} of the model {name}")
    return folder


def cached_weight_files(name: str, revision: str, folder: Path) -> list[str]:
    """Select the files with a model's weights as `weight_files`, by what the Hub's cache knows of the repository.

    Args:
        folder: of this commit in the cache.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return weight_files(file.path for file in get_cached_repo_tree(name, revision=revision))
    except CachedRepoTreeNotFoundError:  # an older version of the library filled the cache
        return weight_files(path.name for path in folder.iterdir())


def _check_download(path: Path, what: str) -> None:
    """Compare a file of the Hub's cache with its sha256, which is its name there if it is large.

    The library compares sizes alone. A file that differs is removed, to be fetched again.

    Raises:
        InputError: it differs.
    """
    named = Path(os.readlink(path)).name if path.is_symlink() else ""
    if not re.fullmatch(r"[0-9a-f]{64}", named) or (found := source_digest(path)) == named:
        return
    discard(path)
    raise InputError(
        f"{what} was fetched with the sha256 {found}, but the hub says {named}; it is not kept: start again to fetch it"
        " anew."
    )


def discard(path: Path) -> None:
    """Remove a file from the Hub's cache, which would give it again instead of fetching it."""
    for each in (path.resolve(), path):
        with contextlib.suppress(OSError):
            each.unlink()


def commit_of(name: str, revision: str, kind: str = "dataset") -> str:
    """Return the commit that a branch or tag names now; without the Hub, when it was last asked.

    Args:
        kind: of the repository, `dataset` or `model`.

    Raises:
        InputError: the Hub cannot tell, and has not been asked before.
    """
    from huggingface_hub import HfApi

    try:
        found = HfApi().resolve_revision(name, revision=revision, repo_type=kind)
    except Exception as error:  # as above
        what = {"dataset": "data set"}.get(kind, kind)
        raise hub_error(f"the {what} {name}", revision, error) from error
    return found.resolved
