"""Checks of `training`, of models' own training settings, and of stored teacher outputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from takd.experiment.lineage import SUPERVISED
from takd.experiment.schema import show, suggest
from takd.experiment.validation.common import divisors, trained, training_settings, vocabulary_size
from takd.experiment.yaml12 import Key, YamlFile, dotted

DEEPSPEED = "config/deepspeed"
WRITTEN = ("responses", "teacher_outputs", "lm_teacher_outputs")
# settings that only some on-policy regimes use
REGIMES = {
    "temperature": ("mixed", "adaptive"),
    "on_policy_share": ("mixed",),
    **dict.fromkeys(("initial_share", "share_step", "loss_rise", "capacity"), ("adaptive",)),
}


def check_training(file: YamlFile, settings: dict[str, Any], root: Path) -> None:
    """Check the training settings of every pair of model and method."""
    with file.each():
        if SUPERVISED not in settings["training"]:
            raise file.error(
                ("training",),
                f"lacks the key {SUPERVISED}: the settings that teachers and starts are trained with"
                " (steps, epochs or both, at least).",
                SUPERVISED,
            )
        for model, method in trained(settings):
            _check_pair(file, settings, root, model, method)


def _check_pair(
    file: YamlFile, settings: dict[str, Any], root: Path, model: str, method: str
) -> None:
    """Check the settings of a method for a model; report shared errors for the first model only."""
    resolved = training_settings(settings, model, method)

    def where(name: str) -> Key:
        own: Key = ("models", model, "training", method, name)
        return own if own in file.lines else ("training", method, name)

    with file.each():
        if resolved["steps"] is None and resolved["epochs"] is None:
            raise file.error(
                where("steps")[:-1],
                f"gives neither steps nor epochs for the model '{model}'; give one or both.",
            )
    rollouts = resolved.get("rollouts_per_round")
    with file.each():
        if rollouts is not None and rollouts % resolved["batch_size"]:
            raise file.error(
                where("batch_size"),
                f"is {resolved['batch_size']}, which does not divide the {rollouts}"
                f" rollouts_per_round of the model '{model}'; it must be"
                f" {divisors(rollouts)}.",
            )
    if "on_policy" in resolved:
        shared = resolved["on_policy"] == settings["training"][method]["on_policy"]
        _check_regime(file, resolved, where, shared)
    if resolved["deepspeed"] is not None:
        with file.each():
            _check_deepspeed(file, where("deepspeed"), resolved["deepspeed"], root)
    shape = settings["models"][model]["weights"].get("scratch")
    if resolved["lora"] and shape:
        with file.each():
            _check_lora(file, where("lora"), resolved, shape["width"])
    for name in resolved if not settings["data"]["corpus"] else ():
        with file.each():
            if name.startswith("lm_") and where(name) in file.lines and resolved[name]:
                raise file.error(
                    where(name),
                    f"is {show(resolved[name])}, but has no effect without data.corpus; name a"
                    " corpus or remove the key.",
                )


def check_teacher_writes(file: YamlFile, settings: dict[str, Any]) -> None:
    """Check the settings of stored teacher outputs."""
    every = [training_settings(settings, *pair) for pair in trained(settings)]
    asked = {value for resolved in every for value in resolved.items() if value[0] in WRITTEN}
    text = {("responses", "teacher")}
    likeliest = {("teacher_outputs", "top_k"), ("lm_teacher_outputs", "top_k")}
    needs = {"temperature": text, "seed": text, "shards": text, "top_k": likeliest}
    for name, needed in needs.items():
        key: Key = ("teacher_writes", name)
        with file.each():
            if key in file.lines and not asked & needed:
                ways = " or ".join(f"{setting}: {value}" for setting, value in sorted(needed))
                raise file.error(
                    key,
                    f"is {settings['teacher_writes'][name]}, but has no effect, as no method of a chain"
                    f" has {ways}; set that or remove the key.",
                )
    vocabulary, top_k = vocabulary_size(settings), settings["teacher_writes"]["top_k"]
    with file.each():
        if asked & likeliest and vocabulary is not None and top_k >= vocabulary:
            raise file.error(
                ("teacher_writes", "top_k"),
                f"is {top_k}, but must be less than the {vocabulary} tokens of the tokenizer; with hidden"
                " instead of top_k, whole distributions are kept.",
            )


def _check_regime(
    file: YamlFile, resolved: dict[str, Any], where: Callable[[str], Key], shared: bool
) -> None:
    """Check the on-policy regime; `shared` is whether the settings apply to all models."""
    regime, capacity = resolved["on_policy"], resolved["capacity"]
    with file.each():
        if regime == "adaptive" and capacity < resolved["batch_size"]:
            raise file.error(
                where("capacity"),
                f"is {capacity}, but must be at least the batch_size ({resolved['batch_size']}), which is"
                " taken out of the buffer.",
            )
    for name, regimes in REGIMES.items():
        key = where(name)
        with file.each():
            if key in file.lines and regime not in regimes and (shared or key[0] == "models"):
                raise file.error(
                    key,
                    f"has no effect where on_policy is {regime}, only where it is"
                    f" {' or '.join(regimes)}; set {dotted(where('on_policy'))}, or remove the key.",
                )
    with file.each():
        if resolved.get("alpha") == resolved.get("beta") == 0:
            raise file.error(
                where("alpha"), "is 0 as beta is; one of the two must be greater than 0."
            )


def _check_lora(file: YamlFile, key: Key, resolved: dict[str, Any], width: int) -> None:
    """Check LoRA settings of a model from scratch, whose layers are known."""
    if resolved.get("start", "base") == "base":
        raise file.error(
            key,
            "is set, but the model starts from random weights, which LoRA would leave as they are;"
            " remove the key or start from sft.",
        )
    if resolved["lora"]["rank"] > width:
        raise file.error(
            (*key, "rank"),
            f"is {resolved['lora']['rank']}, but must be at most the width of the model, {width}.",
        )


def _check_deepspeed(file: YamlFile, key: Key, name: str, root: Path) -> None:
    known = sorted(path.stem for path in (root / DEEPSPEED).glob("*.json"))
    if name not in known:
        raise file.error(
            key, f"is '{name}', which is no file in {DEEPSPEED}; {suggest(name, known)}"
        )
    try:
        json.loads((root / DEEPSPEED / f"{name}.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise file.error(
            key, f"is '{name}', but {DEEPSPEED}/{name}.json is not JSON: {error}."
        ) from None
