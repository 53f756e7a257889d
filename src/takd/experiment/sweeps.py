"""Sweeps: settings with several values to try, such as `learning_rate: {values: [1e-5, 5e-5]}`.

When an experiment is read, a chain that such a setting concerns becomes one chain for each value, of models whose names
say it: `student@learning_rate=1e-05`. Other models keep their names, so that they are trained once.
"""

import copy
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from takd.experiment.lineage import ARM, SUPERVISED, start
from takd.experiment.schema import follow, load_schema
from takd.experiment.yaml12 import Key, YamlFile
from takd.runtime.digests import canonical_json, short_digest

VALUES = "values"
MOST = 500  # chains that one chain may become
LONGEST = 40  # characters of a value in a name
WORD = re.compile(r"-?[A-Za-z0-9.]+(?:-[A-Za-z0-9.]+)*")
Chosen = Sequence[tuple["Sweep", int]]
"""Sweeps with the number of a value of each."""


class Sweep(NamedTuple):
    """A setting with several values: its place (`training` or `models.NAME.training`), its method, its keys there."""

    place: Key
    method: str
    path: Key
    written: Any

    @property
    def key(self) -> Key:
        return (*self.place, self.method, *self.path)

    def name(self, number: int) -> str:
        """Return what the name of a model says of a value: `learning_rate=1e-05`, of SFT `sft.learning_rate=1e-05`."""
        path = (SUPERVISED, *self.path) if self.method == SUPERVISED else self.path
        return f"{'.'.join(map(str, path))}={_text(self.written[VALUES][number])}"

    def concerns(self, model: str, method: str, models: Mapping[str, Any]) -> bool:
        """Return whether a method trains a model with this setting."""
        settings = models.get(model, {})
        if method != self.method or settings.get("trained"):
            return False
        if len(self.place) > 1:
            return self.place[1] == model
        return self.path[0] not in settings.get("training", {}).get(method, {})


def take(file: YamlFile) -> list[Sweep]:
    """Return the sweeps of a file that is not yet checked, with the first value of each put in its place."""

    def below(part: Any, name: Any) -> Any:
        return part.get(name) if isinstance(part, dict) else None

    def walk(settings: Any, schema: Any, key: Key) -> Iterator[tuple[Key, Any]]:
        known = follow(schema).get("properties", {})
        for name, value in list(settings.items()) if isinstance(settings, dict) else ():
            if name not in known or not isinstance(value, dict):
                continue
            if len(key) == 0 or VALUES not in value:
                yield from walk(value, known[name], (*key, name))
                continue
            yield (*key, name), value
            del settings[name]
            if isinstance(values := value[VALUES], list) and values:
                settings[name] = values[0]

    models = below(file.value, "models")
    places: list[Key] = [("training",)]
    places += [
        ("models", name, "training") for name in (models if isinstance(models, dict) else ())
    ]
    found = []
    for place in places:
        training = file.value
        for part in place:
            training = below(training, part)
        for key, written in walk(training, load_schema()["$defs"]["methods"], ()):
            found.append(Sweep(place, str(key[0]), key[1:], written))
    return found


def expand(file: YamlFile, sweeps: Sequence[Sweep]) -> None:
    """Put chains and models with one value each in place of those that sweeps concern.

    Raises:
        InputError: a sweep concerns no chain, or makes too many; one line per error.
    """
    chains, file.value["chains"] = file.value["chains"], []
    for place, chain in enumerate(chains):
        for names, entries in _arms(file, sweeps, chain, ("chains", place)).items():
            key: Key = ("chains", len(file.value["chains"]))
            file.written[key] = ("chains", place)
            for new, old in enumerate(entries):
                file.written[*key, "methods", new] = ("chains", place, "methods", old)
            methods = {"methods": [chain["methods"][entry] for entry in entries]} if entries else {}
            file.value["chains"].append({**chain, "models": list(names), **methods})
    used = set(file.written.values())
    for sweep in sweeps:
        if not file.faults and (*sweep.key, VALUES, 0) not in used:
            text = "has several values, but no model of a chain is trained with this setting; give it one."
            file.fault(sweep.key, text)
    file.refuse()
    file.written.update({sweep.key: (*sweep.key, VALUES, 0) for sweep in sweeps})


def apart(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings in which `arms` has the models of sweeps, each with the values that it is trained with."""
    models, arms = dict(settings["models"]), {}
    for name in filter(lambda name: ARM in name, settings["models"]):
        arms[name] = models.pop(name)["training"]
    return {**settings, "models": models, "arms": arms} if arms else settings


def _arms(
    file: YamlFile, sweeps: Sequence[Sweep], chain: Mapping[str, Any], key: Key
) -> dict[tuple[str, ...], list[int]]:
    """Return the models of the chains that a chain becomes, each with the numbers of its entries of `methods`."""
    models, names, control = file.value["models"], chain["models"], chain.get("control")
    own = names[-1:] if control in ("self_teacher", SUPERVISED) else names
    found: dict[tuple[str, ...], list[int]] = {}
    for entry, methods in enumerate(chain.get("methods") or [None]):
        hops = [methods] * (len(names) - 1) if isinstance(methods, str) else methods or []
        taught = [] if control == SUPERVISED else list(zip(names[1:], hops, strict=False))
        pairs = [(name, method) for name, method in taught if name in own]
        pairs += [(name, SUPERVISED) for name in own]
        of_pair = {pair: [s for s in sweeps if s.concerns(*pair, models)] for pair in pairs}
        known = [sweep for sweep in sweeps if any(sweep in each for each in of_pair.values())]
        known.sort(key=lambda sweep: sweep.method != SUPERVISED)
        numbers = [range(len(sweep.written[VALUES])) for sweep in known]
        if math.prod(map(len, numbers)) > MOST:
            file.fault(key, f"becomes more than {MOST} chains by its sweeps; try fewer values.")
            continue
        for values in itertools.product(*numbers):
            chosen = list(zip(known, values, strict=True))
            arm = tuple(
                _add(file, name, [one for one in chosen if any(
                    one[0] in of_pair[pair] for pair in pairs if pair[0] == name)])
                for name in names
            )  # fmt: skip
            found.setdefault(arm, []).extend([] if methods is None else [entry])
    return found


def _add(file: YamlFile, model: str, chosen: Chosen) -> str:
    """Add a model with values of sweeps, and that of its supervised run; return its name."""
    arm = ARM.join([model, *(sweep.name(number) for sweep, number in chosen)])
    if arm == model or arm in file.value["models"]:
        return arm
    own: dict[str, Any] = {}
    for sweep, number in chosen:
        made: Key = ("models", arm, "training", sweep.method)
        settings = file.value
        for part in sweep.key[: -len(sweep.path)]:
            settings = settings[part]
        first, *inner = sweep.path
        part = own.setdefault(sweep.method, {})
        file.written[*made, first] = (*sweep.place, sweep.method, first)
        part.setdefault(first, copy.deepcopy(settings[first]))
        for name in inner:
            part, first = part[first], name
        part[first] = sweep.written[VALUES][number]
        file.written[*made, *sweep.path] = (*sweep.key, VALUES, number)
    file.value["models"][arm] = {"training": own}
    file.written["models", arm] = ("models", model)
    if start(arm) != arm:
        _add(file, model, [one for one in chosen if one[0].method == SUPERVISED])
    return arm


def _text(value: Any) -> str:
    """Write a value as part of a file's name: of letters, digits, dots, single - and _, else as a digest."""
    plain = int(value) if isinstance(value, float) and value.is_integer() else value
    text = plain if isinstance(plain, str) else json.dumps(plain)
    name = "_".join(WORD.findall(text))
    exact = name == text or not isinstance(plain, str)
    return name if name and exact and len(name) <= LONGEST else short_digest(canonical_json(value))
