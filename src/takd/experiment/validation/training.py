"""Checks of `training`, of models' own training settings, and of stored teacher outputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from takd.experiment import budget, controls
from takd.experiment.lineage import SUPERVISED, own
from takd.experiment.schema import HOME, own_or_shipped, show, suggest
from takd.experiment.validation.common import divisors, trained, training_settings, vocabulary_size
from takd.experiment.yaml12 import Key, YamlFile, dotted

DEEPSPEED = "config/deepspeed"
# settings that only some on-policy regimes use
REGIMES = {
    **dict.fromkeys(("temperature", "teacher_top_k"), ("mixed", "adaptive")),
    "on_policy_share": ("mixed",),
    **dict.fromkeys(("initial_share", "share_step", "loss_rise", "capacity"), ("adaptive",)),
}


def check_training(file: YamlFile, settings: dict[str, Any], root: Path) -> None:
    """Check the training settings of every pair of model and method."""
    pairs = list(trained(settings))
    if pairs and SUPERVISED not in settings["training"]:
        text = f"lacks the key {SUPERVISED}: the settings that teachers and starts are trained with"
        file.fault(("training",), f"{text} (steps, epochs or both, at least).", SUPERVISED)
        return
    counted = budget.own_steps(settings)
    for model, method in pairs:
        _check_pair(file, settings, root, model, method)
        resolved = training_settings(settings, model, method)
        if resolved["steps"] is None and resolved["epochs"] is None and (model, method) in counted:
            particular: Key = ("models", model, "training", method)
            key = particular if file.has(particular) else ("training", method)
            text = f"gives neither steps nor epochs for the model '{model}'; give one or both."
            file.fault(key, text)


def _check_pair(
    file: YamlFile, settings: dict[str, Any], root: Path, model: str, method: str
) -> None:
    """Check the settings of a method for a model; report shared errors for the first model only."""
    resolved = training_settings(settings, model, method)

    def where(name: str) -> Key:
        particular: Key = ("models", model, "training", method, name)
        return particular if file.has(particular) else ("training", method, name)

    rollouts, batch = resolved.get("rollouts_per_round"), resolved["batch_size"]
    if rollouts is not None and rollouts % batch:
        file.fault(
            where("batch_size"),
            f"is {batch}, which does not divide the {rollouts} rollouts_per_round of the model '{model}'; it must be"
            f" {divisors(rollouts)}.",
        )
    fault = controls.unfit(controls.CONTROLS["shuffled_prompts"], resolved)
    if fault and resolved.get("teacher_prompts") == "shuffled":
        file.fault(where("teacher_prompts"), f"is shuffled, {fault}")
    if "on_policy" in resolved:
        swept = where("on_policy") in file.written
        shared = not swept and resolved["on_policy"] == settings["training"][method]["on_policy"]
        _check_regime(file, resolved, where, shared)
    if resolved["deepspeed"] is not None:
        _check_deepspeed(file, where("deepspeed"), resolved["deepspeed"], root)
    shape = settings["models"][own(model)]["weights"].get("scratch")
    if resolved["lora"] and shape:
        _check_lora(file, where("lora"), resolved, shape["width"])
    for name in resolved if not settings["data"]["corpus"] else ():
        if name.startswith("lm_") and file.has(where(name)) and resolved[name]:
            text = "but has no effect without data.corpus; name a corpus or remove the key."
            file.fault(where(name), f"is {show(resolved[name])}, {text}")


def check_teacher_cache(file: YamlFile, settings: dict[str, Any]) -> None:
    """Check the settings of stored teacher outputs."""
    used = {
        (name, value)
        for pair in trained(settings)
        for name, value in training_settings(settings, *pair).items()
        if name in ("responses", "teacher_outputs", "lm_teacher_outputs")
    }
    text = {("responses", "teacher")}
    top_k = {("teacher_outputs", "top_k"), ("lm_teacher_outputs", "top_k")}
    needs = {"temperature": text, "seed": text, "shards": text, "top_k": top_k}
    for name, needed in needs.items():
        key: Key = ("teacher_cache", name)
        if key in file.lines and not used & needed:
            ways = " or ".join(f"{setting}: {value}" for setting, value in sorted(needed))
            file.fault(
                key,
                f"is {settings['teacher_cache'][name]}, but has no effect, as no method of a chain has {ways}; set"
                " that or remove the key.",
            )
    vocabulary, kept = vocabulary_size(settings), settings["teacher_cache"]["top_k"]
    if used & top_k and vocabulary is not None and kept >= vocabulary:
        file.fault(
            ("teacher_cache", "top_k"),
            f"is {kept}, but must be less than the {vocabulary} tokens of the tokenizer; with hidden instead of top_k,"
            " whole distributions are kept.",
        )


def _check_regime(
    file: YamlFile, resolved: dict[str, Any], where: Callable[[str], Key], shared: bool
) -> None:
    """Check the on-policy regime; `shared` is whether the settings apply to all models."""
    regime, capacity, batch = (resolved[key] for key in ("on_policy", "capacity", "batch_size"))
    if regime == "adaptive" and capacity < batch:
        text = f"must be at least the batch_size ({batch}), which is taken out of the buffer."
        file.fault(where("capacity"), f"is {capacity}, but {text}")
    for name, regimes in REGIMES.items():
        key = where(name)
        if file.has(key) and regime not in regimes and (shared or key[0] == "models"):
            file.fault(
                key,
                f"has no effect where on_policy is {regime}, only where it is {' or '.join(regimes)};"
                f" set {dotted(file.origin(where('on_policy')))}, or remove the key.",
            )
    if resolved.get("alpha") == resolved.get("beta") == 0:
        file.fault(where("alpha"), "is 0 as beta is; one of the two must be greater than 0.")


def _check_lora(file: YamlFile, key: Key, resolved: dict[str, Any], width: int) -> None:
    """Check LoRA settings of a model from scratch, whose layers are known."""
    rank = resolved["lora"]["rank"]
    if resolved.get("start", "base") == "base":
        file.fault(
            key,
            "is set, but the model starts from random weights, which LoRA would leave as they are; remove the key or"
            " start from sft.",
        )
    elif rank > width:
        text = f"is {rank}, but must be at most the width of the model, {width}."
        file.fault((*key, "rank"), text)


def _check_deepspeed(file: YamlFile, key: Key, name: str, root: Path) -> None:
    folders = root / DEEPSPEED, HOME / DEEPSPEED
    known = sorted({path.stem for folder in folders for path in folder.glob("*.json")})
    if name not in known:
        file.fault(key, f"is '{name}', which is no file in {DEEPSPEED}; {suggest(name, known)}")
        return
    path = f"{DEEPSPEED}/{name}.json"
    try:
        config = json.loads(own_or_shipped(root, path).read_text(encoding="utf-8"))
    except ValueError as error:
        file.fault(key, f"is '{name}', but {path} is not JSON: {error}.")
        return
    found = config.get("zero_optimization") if isinstance(config, dict) else None
    zero = found if isinstance(found, dict) else {}
    stage = zero.get("stage", 0)
    # without ZeRO, DeepSpeed reports no gradient norm in fp32, and nothing is sharded
    if stage not in (1, 2, 3):
        use = "write 1, 2 or 3, or leave deepspeed out: several processes train without it too."
        file.fault(key, f"is '{name}', but zero_optimization.stage in {path} is {stage!r}; {use}")
    elif zero.get("compute_grad_norm", True) is not True:
        use = "remove that key: a step without a finite norm would not be seen."
        file.fault(key, f"is '{name}', but {path} sets zero_optimization.compute_grad_norm; {use}")
