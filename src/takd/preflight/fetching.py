"""What a run still has to fetch from the Hub, and how many bytes that is."""

import functools
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from takd.experiment import specs
from takd.experiment.experiment import Experiment
from takd.models.hub import cached_weight_files, weight_files
from takd.models.weight_files import INDEX, PICKLE_INDEX, index_of
from takd.preflight.jobs import TAKES_WEIGHTS, Job
from takd.runtime.errors import InputError, without_secrets

PATIENCE = 5  # seconds for an answer of the Hub

Sizes = Mapping[str, int]


class Wanted(NamedTuple):
    """What jobs still to be run read from one repository of the Hub.

    Attributes:
        kind: `model` or `dataset`.
        files: the files that are read, for weights and single files of data; None for all there are.
        parameters: of a model; 0 for other things.
    """

    kind: str
    name: str
    revision: str
    files: tuple[str, ...] | None = None
    parameters: int = 0

    @property
    def cached(self) -> Sizes:
        """Size of each wanted file that is in the Hub's cache."""
        from huggingface_hub import try_to_load_from_cache

        what = {"repo_type": self.kind, "revision": self.revision}
        names: Iterable[str] = self.files or ()
        if self.parameters:
            config = try_to_load_from_cache(self.name, "config.json", **what)
            if not isinstance(config, str):
                return {}
            names = cached_weight_files(self.name, self.revision, Path(config).parent)
        found = {file: try_to_load_from_cache(self.name, file, **what) for file in names}
        return {
            file: os.stat(path).st_size for file, path in found.items() if isinstance(path, str)
        }

    @property
    def complete(self) -> bool:
        """Whether nothing of it is left to be fetched, as far as the cache tells."""
        cached = self.cached
        needed = list(self.files or cached)
        if index := next((file for file in cached if file in (INDEX, PICKLE_INDEX)), None):
            needed += self._shards(index)
        return bool(needed) and set(needed) <= set(cached)

    def _shards(self, index: str) -> list[str]:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.name, index, revision=self.revision)
        try:
            return index_of(Path(str(path)).parent, index, self.name)[1]
        except InputError:  # the stage that fetches it reports it
            return [index]

    def sizes(self) -> Sizes | None:
        """Size of each wanted file; None where neither cache nor Hub can tell."""
        if self.complete:
            return self.cached
        listed = None if problem() else _listed(self.kind, self.name, self.revision)
        if listed is None:
            return None
        names = weight_files(listed) if self.parameters else self.files or ()
        return {file: listed[file] for file in names if file in listed}


def wanted(experiment: Experiment, jobs: Iterable[Job]) -> list[Wanted]:
    """List what the jobs still to be run read from the Hub, cached or not, each repository's part once."""
    return list(dict.fromkeys(_wanted(experiment, (job for job in jobs if job.to_do))))


def _wanted(experiment: Experiment, jobs: Iterable[Job]) -> Iterator[Wanted]:
    settings = experiment.settings
    for job in jobs:
        if job.rule in TAKES_WEIGHTS and (found := of_weights(experiment, job.wildcards["model"])):
            yield found
        elif job.rule == "tokenizer" and "hub" in (source := settings["tokenizer"]):
            yield Wanted("model", source["hub"], source["revision"], ("tokenizer_config.json",))
        elif job.rule == "data":
            source = specs.data(experiment, job.wildcards["split"])["source"]
            if "hub" in source:
                files = (source["file"],) if "file" in source else None
                yield Wanted("dataset", source["hub"], source["revision"], files)


def of_weights(experiment: Experiment, model: str) -> Wanted | None:
    """Weights that a model takes from the Hub, if it does."""
    weights: dict[str, Any] = experiment.settings["models"][model]["weights"]
    if "hub" not in weights:
        return None
    return Wanted("model", weights["hub"], weights["revision"], None, experiment.parameters[model])


def not_fetched(experiment: Experiment, jobs: Iterable[Job]) -> list[str]:
    """Names of the repositories of which something is still to be fetched."""
    left = (each.name for each in wanted(experiment, jobs) if not each.complete)
    return list(dict.fromkeys(left))


def fetched_bytes(experiment: Experiment, jobs: Iterable[Job]) -> float:
    """Bytes that are still to be fetched into the Hub's cache.

    Weights of which the Hub cannot be asked count with 4 bytes a parameter, the most there are; data sets that it
    splits itself are not counted.
    """
    largest: dict[tuple[str, str], float] = {}
    for each in wanted(experiment, jobs):
        sizes = each.sizes()
        size = 4.0 * each.parameters
        if sizes is not None:
            size = float(sum(sizes.values()) - sum(each.cached.values()))
        # models with `keep_layers` may share a repository
        place = each.name, each.revision + ",".join(each.files or ())
        largest[place] = max(largest.get(place, 0.0), size)
    return sum(largest.values())


def rewritten_bytes(weights: Wanted) -> float:
    """Bytes that the stage `base` writes for a model of the Hub: its weights, if they are pickled, else links."""
    sizes = weights.sizes() or {}
    pickled = any(file.endswith(".bin") for file in sizes)
    return float(sum(sizes.values())) if pickled else 0.0


@functools.cache
def problem() -> str | None:
    """Explain why the Hub cannot be reached; None if it can. It is tried once."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set"
    place = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        request = urllib.request.Request(place, method="HEAD")
        urllib.request.urlopen(request, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return None  # it answered
    except (OSError, ValueError) as error:
        return without_secrets(f"{place}: {getattr(error, 'reason', error)}")
    return None


@functools.cache
def _listed(kind: str, name: str, revision: str) -> Sizes | None:
    """Size of each file of a repository; None if the Hub does not tell, which the stage that fetches reports."""
    from huggingface_hub import HfApi

    try:
        ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
        info = ask(name, revision=revision, files_metadata=True, timeout=PATIENCE)
    except Exception:  # network errors have no common base
        return None
    return {file.rfilename: file.size or 0 for file in getattr(info, "siblings", None) or ()}
