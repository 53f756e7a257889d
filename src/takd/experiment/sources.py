"""Sources of data and weights, with the digests of local files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from takd.data.folders import files_below
from takd.experiment.experiment import Experiment
from takd.experiment.schema import ROW_FILTERS
from takd.models.tokenizer_check import GENERATION
from takd.runtime.digests import source_digest
from takd.runtime.errors import InputError
from takd.runtime.files import model_folder


def source_of(experiment: Experiment, split: str) -> dict[str, Any]:
    """Source of a split with its digests, without the keys that its kind does not use."""
    sets = experiment.settings["evaluation"]["sets"]
    source = sets[split] if split in sets else experiment.settings["data"][split]
    kinds = {
        "folder": ["folder", "split"],
        "file": ["hub", "revision", "file", "sha256"],
        "hub": ["hub", "revision", "config", "split"],
        "url": ["url", "sha256"],
    }
    kept = next(
        (keys for kind, keys in kinds.items() if kind in source), ["json", "sha256", "text", "demo"]
    )
    taken = [*kept, "rows", "columns", *ROW_FILTERS]
    return with_digests(experiment.root, {key: source[key] for key in taken if key in source})


def with_digests(
    root: Path, source: Mapping[str, Any], but: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Add `sha256` to a local source, as [digest] or, for a folder, [name, digest] per file.

    Files whose suffix is in `but` are left out, and so are missing files (see `takd.experiment.experiment`).

    Raises:
        InputError: the file exists and differs from the digest that the experiment states.
    """
    kind = next((kind for kind in ("json", "text", "folder", "gguf") if kind in source), None)
    if kind is None:
        return dict(source)
    place = root / source[kind]
    if "sha256" in source:
        named = source["sha256"]
        if place.is_file() and (found := source_digest(place)) != named:
            raise InputError(
                f"{source[kind]} has the sha256 {found}, but the experiment says {named}; get the file that is meant,"
                " or correct `sha256`."
            )
        return {**source, "sha256": [named]}
    digests: list[Any] = []
    for path in files_below(place, ".txt" if kind == "text" else ""):
        if path == place or path.suffix not in but:
            digest = source_digest(path)
            in_folder = kind in ("folder", "text") and place.is_dir()
            digests.append([path.relative_to(place).as_posix(), digest] if in_folder else digest)
    return {**source, "sha256": digests}


def given_elsewhere(
    experiment: Experiment, tokenizer: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the models that are taken as they are and may name end tokens, but do not lie where the tokenizer does."""
    for name in experiment.given:
        weights = experiment.settings["models"][name]["weights"]
        source = {key: weights[key] for key in ("hub", "revision") if key in weights}
        if "folder" in weights:
            source = {"folder": model_folder(experiment.root, weights["folder"])}
            file = experiment.root / source["folder"] / GENERATION
            if not file.is_file():
                continue
        if not source or source.items() <= tokenizer.items():
            continue
        digests = {"sha256": [[GENERATION, source_digest(file)]]} if "folder" in source else {}
        yield name, source | digests
