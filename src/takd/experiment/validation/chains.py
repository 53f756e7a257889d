"""Checks of `chains`: existing names, decreasing sizes, and a method for every hop."""

import math
from typing import Any

from takd.experiment import controls
from takd.experiment.labels import size_text
from takd.experiment.lineage import SUPERVISED, own
from takd.experiment.schema import load_schema, suggest
from takd.experiment.validation.common import (
    by_hop,
    distillation_methods,
    lineages_of,
    training_settings,
)
from takd.experiment.yaml12 import Key, YamlFile, dotted

LONGEST = 200
"""Bytes of a lineage: file systems take names of 255, and files made for a while have longer ones."""


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
        right = [_check_models(file, chain["models"], key, settings["models"], parameters)]
        right.append(_check_presence(file, chain, key))
        for entry, methods in enumerate(by_hop(chain)):
            here = (*key, "methods", entry) if methods else (*key, "models")
            right.append(not methods or _check_methods(file, settings, chain, methods, here))
            if chain["control"] and all(right):
                right.append(_check_control(file, settings, chain, methods, (*key, "control")))
            if not right[-1]:
                continue
            trained = controls.expanded({**chain, "methods": [methods] if methods else []})
            (name,) = lineages_of(settings, trained)
            if (size := len(name.encode())) > LONGEST:
                text = f"gives {name}, a folder's name of {size} bytes, of {LONGEST} at most; shorten names of models."
                right.append(file.fault(here, text))
            # methods that differ above the last hop have one control, and all have one SFT
            if name in seen and not (chain["control"] and seen[name][:2] == key):
                where = dotted(file.origin(seen[name]))
                text = f"gives {name} again, which {where} gives already; remove one."
                right.append(file.fault(here, text))
            seen.setdefault(name, here)
        if label := chain["label"]:
            if label in labels and (before := file.origin(labels[label])) != file.origin(key):
                text = f"is '{label}', which is the label of {dotted(before)}; rename one."
                right.append(file.fault((*key, "label"), text))
            labels.setdefault(label, key)
        if all(right):
            sound.append(chain)
    return sound


def _check_control(
    file: YamlFile, settings: dict[str, Any], chain: dict[str, Any], methods: list[str], key: Key
) -> bool:
    """Check that a chain can be the control that it says, by the method of its last hop."""
    name = chain["control"]
    if not methods:
        text = f"is {name}, but the chain has one model, '{chain['models'][0]}'; name a teacher and a method."
        return file.fault(key, text)
    if name == controls.SFT:
        if settings.get("budget"):
            return True
        text = "is sft, but the experiment has no budget that SFT could spend; set budget, or remove the chain."
        return file.fault(key, text)
    known = load_schema()["$defs"]["methods"]["properties"]
    method, control = methods[-1], controls.CONTROLS[name]
    if not controls.fits(name, method, known[method]["properties"]):
        fit = [one for one in known if controls.fits(name, one, known[one]["properties"])]
        return file.fault(
            key, f"is {name}, which '{method}' cannot be; it goes with {', '.join(fit)}."
        )
    resolved = training_settings(settings, chain["models"][-1], method)
    if fault := controls.unfit(control, resolved):
        return file.fault(key, f"is {name} of '{method}', {fault}")
    return True


def _check_presence(file: YamlFile, chain: dict[str, Any], key: Key) -> bool:
    """Check that a chain has methods where it has hops, and only there."""
    if len(chain["models"]) == 1 and chain["methods"]:
        text = f"is given, but the chain has one model, '{chain['models'][0]}', and no hop"
        return file.fault((*key, "methods"), f"{text}; remove it, or name a student.")
    if len(chain["models"]) > 1 and not chain["methods"]:
        text = "how each model teaches the next, a method for each hop."
        if file.has((*key, "methods")):
            return file.fault((*key, "methods"), f"is empty, but must say {text}")
        return file.fault(key, f"lacks the key methods: {text}", "methods")
    return True


def _check_models(
    file: YamlFile,
    names: list[str],
    key: Key,
    models: dict[str, Any],
    parameters: dict[str, int],
) -> bool:
    """Check the models of a chain up to the first error; return whether there is none."""
    names = [own(name) for name in names]
    for at, name in enumerate(names):
        here = (*key, "models", at)
        if name not in models:
            text = f"is '{name}', which is not a model; {suggest(name, models)}"
            return file.fault(here, text)
        if name in names[:at]:
            text = (
                f"is '{name}', which stands in this chain before; each model may stand there once."
            )
            return file.fault(here, text)
        if at and models[name]["trained"]:
            return file.fault(
                here,
                f"is '{name}', which has trained: true, so that it learns from no teacher; put it at the head of a"
                f" chain or alone in one ([{name}]), or remove models.{name}.trained.",
            )
        size, larger = parameters.get(name, 0), parameters.get(names[at - 1], math.inf)
        if at and size > larger:
            return file.fault(
                here,
                f"is '{name}' ({size_text(size)} parameters), which is larger than its teacher"
                f" '{names[at - 1]}' ({size_text(larger)}); sizes must fall along a chain.",
            )
    return True


def _check_methods(
    file: YamlFile, settings: dict[str, Any], chain: dict[str, Any], methods: list[str], key: Key
) -> bool:
    """Check one entry of `methods` up to the first error; return whether there is none."""
    several = isinstance(chain["methods"][key[-1]], list)
    known = distillation_methods()
    for at, method in enumerate(methods):
        here = (*key, at) if several else key
        if method == SUPERVISED:
            return file.fault(
                here,
                f"is '{SUPERVISED}', which learns from labels, not from a teacher, and is run for every model anyway;"
                f" it must be one of {', '.join(known)}.",
            )
        if method not in known:
            text = f"is '{method}', which is not a method; {suggest(method, known)}"
            return file.fault(here, text)
        if method not in settings["training"]:
            return file.fault(
                ("training",),
                f"lacks the key {method}: the settings of the method that {dotted(file.origin(here))} uses (steps,"
                " epochs or both, at least).",
                method,
            )
    hops = len(chain["models"]) - 1
    if len(methods) == hops:
        return True
    entries = "1 entry" if len(methods) == 1 else f"{len(methods)} entries"
    return file.fault(
        key,
        f"has {entries} for {hops} hop{'s' * (hops != 1)} ({' → '.join(chain['models'])});"
        f" it must be one method for all, or a list of {hops}.",
    )
