"""What an experiment file must obey beyond its schema: rules between keys, names that exist."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from takd import lineage
from takd.lineage import SUPERVISED
from takd.schema import load_schema, show, suggest
from takd.yamlfile import Key, YamlFile, dotted

DEEPSPEED = "config/deepspeed"
WRITTEN = ("responses", "teacher_outputs", "lm_teacher_outputs")
# settings that only some ways of sampling read
REGIMES = {
    "temperature": ("mixed", "adaptive"),
    "on_policy_share": ("mixed",),
    **dict.fromkeys(("initial_share", "share_step", "loss_rise", "capacity"), ("adaptive",)),
}
UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}


def distillation_methods() -> list[str]:
    """The methods of the schema that have a teacher."""
    return [name for name in load_schema()["$defs"]["methods"]["properties"] if name != SUPERVISED]


def by_hop(chain: dict[str, Any]) -> list[list[str]]:
    """For each entry of a chain's `methods`, the method of every hop."""
    hops = len(chain["models"]) - 1
    return [[entry] * hops if isinstance(entry, str) else entry for entry in chain["methods"]]


def training_settings(settings: dict[str, Any], model: str, method: str) -> dict[str, Any]:
    """Settings of a method for a model: its own before those for all models."""
    own = settings["models"][model].get("training", {}).get(method, {})
    return {**settings["training"][method], **own}


def gpt2_parameters(shape: dict[str, Any], vocabulary: int) -> int:
    """Number of parameters of a GPT-2 whose output layer is its token embedding.

    A block of width w has 4 w² weights in its attention, 8 w² in its feed-forward layers, and 13 w
    in biases and norms.
    """
    width = shape["width"]
    embeddings = (vocabulary + shape["positions"]) * width
    return embeddings + shape["layers"] * (12 * width**2 + 13 * width) + 2 * width


def check(file: YamlFile, settings: dict[str, Any], root: Path) -> dict[str, int]:
    """Raise InputError for the first rule that a file breaks; return each model's parameters."""
    _check_data(file, settings)
    parameters = _check_models(file, settings)
    _check_chains(file, settings, parameters)
    _check_training(file, settings, root)
    _check_teacher_writes(file, settings)
    _check_evaluation(file, settings)
    return parameters


def _check_data(file: YamlFile, settings: dict[str, Any]) -> None:
    data, sets = file.value["data"], file.value["evaluation"]["sets"]
    sources: dict[Key, Any] = {
        ("data", name): data.get(name) for name in ("train", "dev", "corpus")
    }
    sources |= {("evaluation", "sets", name): source for name, source in sets.items()}
    for key, source in sources.items():
        if source and "split" in source and not ("hub" in source or "folder" in source):
            raise file.error((*key, "split"), "only goes with hub and folder; remove it.")
    if "train" in settings["tokenizer"] and "vocabulary" in settings["tokenizer"]:
        raise file.error(
            ("tokenizer", "vocabulary"),
            "only goes with hub, folder and gguf; train has its own, remove it.",
        )
    longest, prompt = settings["data"]["max_length"], settings["data"]["max_prompt_length"]
    if prompt >= longest:
        raise file.error(
            ("data", "max_prompt_length"),
            f"is {prompt}, but must be less than data.max_length ({longest}), which leaves room for"
            " a response.",
        )
    corpus = settings["data"]["corpus"]
    if corpus and (corpus["block_length"] or 0) > longest:
        raise file.error(
            ("data", "corpus", "block_length"),
            f"is {corpus['block_length']}, but must be at most data.max_length ({longest}), the"
            " longest text that the models read.",
        )


def _check_models(file: YamlFile, settings: dict[str, Any]) -> dict[str, int]:
    vocabulary = _vocabulary(settings)
    parameters = {}
    for name, model in settings["models"].items():
        key: Key = ("models", name)
        shape = model["weights"].get("scratch")
        if shape is None:
            if "parameters" not in model:
                raise file.error(key, "lacks the key parameters: its size, such as 1.5B or 120M.")
            parameters[name] = _count(model["parameters"])
            continue
        if "parameters" in model:
            raise file.error(
                (*key, "parameters"), "is computed for a model from scratch; remove it."
            )
        if vocabulary is None:
            raise file.error(
                ("tokenizer",),
                "lacks the key vocabulary: the number of its tokens, from which the size of the"
                f" model '{name}', which starts from scratch, follows.",
            )
        key = (*key, "weights", "scratch")
        if shape["width"] % shape["heads"]:
            raise file.error(
                (*key, "heads"),
                f"is {shape['heads']}, which does not divide the width {shape['width']};"
                f" it must be one of {_divisors(shape['width'])}.",
            )
        if shape["positions"] < settings["data"]["max_length"]:
            raise file.error(
                (*key, "positions"),
                f"is {shape['positions']}, but must be at least data.max_length"
                f" ({settings['data']['max_length']}).",
            )
        parameters[name] = gpt2_parameters(shape, vocabulary)
    return parameters


def _vocabulary(settings: dict[str, Any]) -> int | None:
    """Number of tokens, where the file says it."""
    tokenizer = settings["tokenizer"]
    return tokenizer.get("train", tokenizer).get("vocabulary")


def _check_chains(file: YamlFile, settings: dict[str, Any], parameters: dict[str, int]) -> None:
    seen: dict[str, Key] = {}
    labels: dict[str, Key] = {}
    for index, chain in enumerate(settings["chains"]):
        key: Key = ("chains", index)
        _check_chain(file, chain, key, parameters)
        for entry, methods in enumerate(by_hop(chain)):
            here = (*key, "methods", entry)
            _check_methods(file, chain, methods, here)
            name = lineage.of_chain(chain["models"], methods)
            if name in seen:
                raise file.error(
                    here,
                    f"gives {name} again, which {dotted(seen[name])} gives already; remove one.",
                )
            seen[name] = here
        label = chain["label"]
        if label in labels:
            raise file.error(
                (*key, "label"),
                f"is '{label}', which is the label of {dotted(labels[label])}; rename one.",
            )
        if label:
            labels[label] = key


def _check_chain(
    file: YamlFile, chain: dict[str, Any], key: Key, parameters: dict[str, int]
) -> None:
    names = chain["models"]
    for at, name in enumerate(names):
        here = (*key, "models", at)
        if name not in parameters:
            raise file.error(
                here, f"is '{name}', which is not a model; {suggest(name, parameters)}"
            )
        if name in names[:at]:
            raise file.error(
                here,
                f"is '{name}', which stands in this chain before; each model may stand there once.",
            )
        if at and parameters[name] > parameters[names[at - 1]]:
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
            )
    hops = len(chain["models"]) - 1
    if len(methods) != hops:
        raise file.error(
            key,
            f"has {'1 entry' if len(methods) == 1 else f'{len(methods)} entries'} for"
            f" {hops} hop{'s' * (hops != 1)} ({' → '.join(chain['models'])});"
            f" it must be one method for all, or a list of {hops}.",
        )


def _check_training(file: YamlFile, settings: dict[str, Any], root: Path) -> None:
    if SUPERVISED not in settings["training"]:
        raise file.error(
            ("training",),
            f"lacks the key {SUPERVISED}: the settings that teachers and starts are trained with"
            " (steps, epochs or both, at least).",
        )
    for model, method in _trained(settings):
        resolved = training_settings(settings, model, method)

        def where(name: str, model: str = model, method: str = method) -> Key:
            own: Key = ("models", model, "training", method, name)
            return own if own in file.lines else ("training", method, name)

        if resolved["steps"] is None and resolved["epochs"] is None:
            raise file.error(
                where("steps")[:-1],
                f"gives neither steps nor epochs for the model '{model}'; give one or both.",
            )
        rollouts = resolved.get("rollouts_per_round")
        if rollouts is not None and rollouts % resolved["batch_size"]:
            raise file.error(
                where("batch_size"),
                f"is {resolved['batch_size']}, which does not divide the {rollouts}"
                f" rollouts_per_round of the model '{model}'; it must be one of"
                f" {_divisors(rollouts)}.",
            )
        if "sampling" in resolved:
            shared = resolved["sampling"] == settings["training"][method]["sampling"]
            _check_regime(file, resolved, where, shared)
        if resolved["deepspeed"] is not None:
            _check_deepspeed(file, where("deepspeed"), resolved["deepspeed"], root)
        shape = settings["models"][model]["weights"].get("scratch")
        if resolved["lora"] and shape:
            _check_lora(file, where("lora"), resolved, shape["width"])
        for name in resolved if not settings["data"]["corpus"] else ():
            if name.startswith("lm_") and where(name) in file.lines and resolved[name]:
                raise file.error(
                    where(name),
                    f"is {show(resolved[name])}, but has no effect without data.corpus; name a"
                    " corpus or remove the key.",
                )


def _check_teacher_writes(file: YamlFile, settings: dict[str, Any]) -> None:
    trained = [training_settings(settings, *pair) for pair in _trained(settings)]
    asked = {value for resolved in trained for value in resolved.items() if value[0] in WRITTEN}
    text = {("responses", "teacher")}
    likeliest = {("teacher_outputs", "top_k"), ("lm_teacher_outputs", "top_k")}
    needs = {"temperature": text, "seed": text, "shards": text, "top_k": likeliest}
    for name, needed in needs.items():
        key: Key = ("teacher_writes", name)
        if key in file.lines and not asked & needed:
            ways = " or ".join(f"{setting}: {value}" for setting, value in sorted(needed))
            raise file.error(
                key,
                f"is {settings['teacher_writes'][name]}, but has no effect, as no method of a chain"
                f" has {ways}; set that or remove the key.",
            )
    vocabulary, top_k = _vocabulary(settings), settings["teacher_writes"]["top_k"]
    if asked & likeliest and vocabulary is not None and top_k >= vocabulary:
        raise file.error(
            ("teacher_writes", "top_k"),
            f"is {top_k}, but must be less than the {vocabulary} tokens of the tokenizer; with hidden"
            " instead of top_k, whole distributions are kept.",
        )


def _check_regime(
    file: YamlFile, resolved: dict[str, Any], where: Callable[[str], Key], shared: bool
) -> None:
    """Where a method's responses come from; `shared` is whether all models take them from there."""
    sampling, capacity = resolved["sampling"], resolved["capacity"]
    if sampling == "adaptive" and capacity < resolved["batch_size"]:
        raise file.error(
            where("capacity"),
            f"is {capacity}, but must be at least the batch_size ({resolved['batch_size']}), which is"
            " taken out of the buffer.",
        )
    for name, regimes in REGIMES.items():
        key = where(name)
        if key in file.lines and sampling not in regimes and (shared or key[0] == "models"):
            raise file.error(
                key,
                f"has no effect where sampling is {sampling}, only where it is"
                f" {' or '.join(regimes)}; set {dotted(where('sampling'))}, or remove the key.",
            )
    if resolved.get("alpha") == resolved.get("beta") == 0:
        raise file.error(where("alpha"), "is 0 as beta is; one of the two must be greater than 0.")


def _trained(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every model with every method that trains it, each pair once."""
    pairs: dict[tuple[str, str], None] = {}
    for chain in settings["chains"]:
        pairs.update(((name, SUPERVISED), None) for name in chain["models"])
        for methods in by_hop(chain):
            pairs.update((pair, None) for pair in zip(chain["models"][1:], methods, strict=True))
    yield from pairs


def _check_lora(file: YamlFile, key: Key, resolved: dict[str, Any], width: int) -> None:
    """Of a model from scratch; what the layers of other models are is known when they are there."""
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


def _check_evaluation(file: YamlFile, settings: dict[str, Any]) -> None:
    evaluation = settings["evaluation"]
    if not evaluation["decoding"]["sample"] and len(evaluation["seeds"]) > 1:
        raise file.error(
            ("evaluation", "seeds"),
            f"has {len(evaluation['seeds'])} entries, but greedy decoding"
            " (evaluation.decoding.sample is false) gives the same text for each; keep one, such as"
            f" [{evaluation['seeds'][0]}].",
        )
    for at, seed in enumerate((evaluation["judge"] or {}).get("seeds") or []):
        if seed not in evaluation["seeds"]:
            raise file.error(
                ("evaluation", "judge", "seeds", at),
                f"is {seed}, which is not in evaluation.seeds; there are: {evaluation['seeds']}.",
            )
    names: dict[str, None] = {}
    for chain in settings["chains"]:
        names.update((lineage.supervised(name), None) for name in chain["models"])
        for methods in by_hop(chain):
            names.update(
                (name, None)
                for name in lineage.prefixes(lineage.of_chain(chain["models"], methods))
            )
    for index, target in enumerate(settings["report"]["targets"]):
        for name, scores in target["scores"].items():
            key: Key = ("report", "targets", index, "scores", name)
            if name not in names:
                raise file.error(
                    key, f"is not a lineage of this experiment; {suggest(name, names)}"
                )
            for evaluation_set in scores:
                if evaluation_set not in evaluation["sets"]:
                    raise file.error(
                        (*key, evaluation_set),
                        f"is not an evaluation set; {suggest(evaluation_set, evaluation['sets'])}",
                    )


def _count(size: float | str) -> int:
    if isinstance(size, str):
        return round(float(size[:-1]) * UNITS[size[-1]])
    return round(size)


def _short(parameters: int) -> str:
    for unit, factor in reversed(UNITS.items()):
        if parameters >= factor:
            return f"{parameters / factor:.3g}{unit}"
    return str(parameters)


def _divisors(number: int) -> str:
    found = [str(part) for part in range(1, number + 1) if number % part == 0]
    return ", ".join(found)
