"""Differences between experiments in settings and in digests of code, data and weights, including unintended ones."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from takd.analysis.across_experiments import Compared
from takd.analysis.costs import device_text
from takd.analysis.text import flat
from takd.experiment.labels import full_text
from takd.experiment.lineage import is_given, split
from takd.runtime.digests import canonical_json, short_digest

NO_RESULT = ("title", "description", "report", "variables", "chains")
"""Keys of an experiment that change no result; chains are compared by their models and methods, not by their place."""
SETTING = "setting"
TRAINED, EVALUATED = "trained", "evaluated"
"""Values of a chain that an experiment has; the second of one model that is taken as it is."""
SHOWN = 12
"""Digits of a digest that are shown."""


@dataclass(frozen=True)
class Setting:
    """One setting or digest, with its value in each experiment; None where an experiment has none."""

    kind: str
    what: str
    values: list[str | None]

    @property
    def differs(self) -> bool:
        return any(self.apart(place) for place in range(1, len(self.values))) or (
            len({value for value in self.values if value is not None}) > 1
        )

    def apart(self, place: int) -> bool:
        """Return whether an experiment differs from the first.

        An experiment that lacks a setting differs. One that lacks a digest does not: the difference in settings
        explains it.
        """
        one, other = self.values[0], self.values[place]
        return one != other and (self.kind == SETTING or None not in (one, other))


def settings(experiments: Sequence[Compared]) -> list[Setting]:
    """List the settings that differ, flattened (`training.minillm.steps`), in the order of the experiment files."""
    found = [_settings(each) for each in experiments]
    return [line for line in _lines(SETTING, found) if line.differs]


def origins(experiments: Sequence[Compared]) -> list[Setting]:
    """List what else determines the results, equal or not: code, data, starting weights, versions, devices."""
    kinds = {
        "code": _code,
        "data": lambda each: {name: _data(found) for name, found in each.data.items()},
        "tokens of ROUGE-L": lambda each: {
            name: found["rouge_tokenizer"]
            for name, found in each.data.items()
            if "rouge_tokenizer" in found
        },
        "starting weights": lambda each: {
            model: _digest_of(found.get("files")) for model, found in each.base.items()
        },
        "weights as given": lambda each: {
            split(node.lineage)[0].model: _digest_of(model.weights)
            for node, model in each.results.models.items()
            if is_given(node.lineage)
        },
        "version": _versions,
        "device": _devices,
    }
    return [
        line
        for kind, function in kinds.items()
        for line in _lines(kind, [function(each) for each in experiments])
    ]


def by_kind(lines: Iterable[Setting]) -> dict[str, list[str]]:
    """List the names of settings or origins by kind."""
    found: dict[str, list[str]] = {}
    for line in lines:
        found.setdefault(line.kind, []).append(line.what)
    return found


def _lines(kind: str, found: Sequence[Mapping[str, str]]) -> list[Setting]:
    keys = dict.fromkeys(key for values in found for key in values)
    return [Setting(kind, key, [values.get(key) for values in found]) for key in keys]


def _settings(experiment: Compared) -> dict[str, str]:
    values = {k: v for k, v in experiment.settings.items() if k not in NO_RESULT}
    chains = {
        f"chain {full_text(chain['lineage'])}": EVALUATED if is_given(chain["lineage"]) else TRAINED
        for chain in experiment.results.spec["chains"]
    }
    return flat(values) | chains


def _grouped(values: Iterable[tuple[str, str]], mark: str = ", ") -> dict[str, str]:
    """Map each name to its different values, joined."""
    found: dict[str, set[str]] = {}
    for name, value in values:
        found.setdefault(name, set()).add(value)
    return {name: mark.join(sorted(each)) for name, each in found.items()}


def _code(experiment: Compared) -> dict[str, str]:
    """Code digests of the trainings by method, and of the stages that made data and starting weights."""
    models = experiment.results.trained_here.items()
    found = [(f"training by {split(n.lineage)[-1].method}", m.manifest["code"]) for n, m in models]
    for name, manifest in experiment.data.items():
        found.append(("tokenizer" if name == "tokenizer" else "data", manifest["code"]))
    found += [("starting weights", manifest["code"]) for manifest in experiment.base.values()]
    return _grouped((what, _short(digest)) for what, digest in found)


def _data(manifest: Mapping[str, Any]) -> str:
    counts = manifest.get("counts") or {}
    size = next((f"{counts[key]} {key}: " for key in ("kept", "blocks") if key in counts), "")
    return size.replace("kept", "rows") + _short(manifest["sha256"])


def _versions(experiment: Compared) -> dict[str, str]:
    every = (model.manifest.get("versions") or {} for model in experiment.results.models.values())
    found = _grouped((name, text or "not installed") for of in every for name, text in of.items())
    return dict(sorted(found.items()))


def _devices(experiment: Compared) -> dict[str, str]:
    ends = (model.end for model in experiment.results.trained_here.values())
    return _grouped((("trained on", device_text(end)) for end in ends), "; ")


def _short(digest: str) -> str:
    return digest[:SHOWN]


def _digest_of(value: Any) -> str:
    return _short(short_digest(canonical_json(value)))
