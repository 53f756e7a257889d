"""Checks of `chains`: existing names, decreasing sizes, and a method for every hop."""

import math
from typing import Any

from takd.experiment import lineage
from takd.experiment.lineage import SUPERVISED
from takd.experiment.schema import suggest
from takd.experiment.validation.common import by_hop, distillation_methods
from takd.experiment.validation.models import UNITS
from takd.experiment.yaml12 import Key, YamlFile, dotted


def check_chains(
    file: YamlFile, settings: dict[str, Any], parameters: dict[str, int]
) -> list[dict[str, Any]]:
    """Check all chains; return those without errors.

    Args:
        file: the experiment file, which collects errors.
        settings: its content with defaults.
        parameters: size by model, for models whose size is known.
    """
    seen: dict[str, Key] = {}
    labels: dict[str, Key] = {}
    sound = []
    for index, chain in enumerate(settings["chains"]):
        key: Key = ("chains", index)
        before = file.faults
        with file.each():
            _check_chain(file, chain, key, settings["models"], parameters)
        for entry, methods in enumerate(by_hop(chain)):
            here = (*key, "methods", entry)
            with file.each():
                _check_methods(file, chain, methods, here)
                name = lineage.of_chain(chain["models"], methods)
                if name in seen:
                    raise file.error(
                        here,
                        f"gives {name} again, which {dotted(seen[name])} gives already; remove one.",
                    )
                seen[name] = here
        label = chain["label"]
        with file.each():
            if label in labels:
                raise file.error(
                    (*key, "label"),
                    f"is '{label}', which is the label of {dotted(labels[label])}; rename one.",
                )
        if label:
            labels.setdefault(label, key)
        if file.faults == before:
            sound.append(chain)
    return sound


def _check_chain(
    file: YamlFile,
    chain: dict[str, Any],
    key: Key,
    models: dict[str, Any],
    parameters: dict[str, int],
) -> None:
    names = chain["models"]
    for at, name in enumerate(names):
        here = (*key, "models", at)
        if name not in models:
            raise file.error(here, f"is '{name}', which is not a model; {suggest(name, models)}")
        if name in names[:at]:
            raise file.error(
                here,
                f"is '{name}', which stands in this chain before; each model may stand there once.",
            )
        if at and parameters.get(name, 0) > parameters.get(names[at - 1], math.inf):
            raise file.error(
                here,
                f"is '{name}' ({_short(parameters[name])} parameters), which is larger than its"
                f" teacher '{names[at - 1]}' ({_short(parameters[names[at - 1]])}); sizes must fall"
                " along a chain.",
            )


def _check_methods(file: YamlFile, chain: dict[str, Any], methods: list[str], key: Key) -> None:
    entry = chain["methods"][key[-1]]
    known = distillation_methods()
    for at, method in enumerate(methods):
        here = (*key, at) if isinstance(entry, list) else key
        if method == SUPERVISED:
            raise file.error(
                here,
                f"is '{SUPERVISED}', which learns from labels, not from a teacher, and is run for"
                f" every model anyway; it must be one of {', '.join(known)}.",
            )
        if method not in known:
            raise file.error(
                here, f"is '{method}', which is not a method; {suggest(method, known)}"
            )
        if method not in file.value["training"]:
            raise file.error(
                ("training",),
                f"lacks the key {method}: the settings of the method that {dotted(here)} uses"
                " (steps, epochs or both, at least).",
                method,
            )
    hops = len(chain["models"]) - 1
    if len(methods) != hops:
        raise file.error(
            key,
            f"has {'1 entry' if len(methods) == 1 else f'{len(methods)} entries'} for"
            f" {hops} hop{'s' * (hops != 1)} ({' → '.join(chain['models'])});"
            f" it must be one method for all, or a list of {hops}.",
        )


def _short(parameters: int) -> str:
    for unit, factor in reversed(UNITS.items()):
        if parameters >= factor:
            return f"{parameters / factor:.3g}{unit}"
    return str(parameters)
