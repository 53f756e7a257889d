"""Checks of `models`: declared sizes, and sizes computed from a shape."""

from pathlib import Path
from typing import Any

from takd.experiment.validation.common import divisors, vocabulary_size
from takd.experiment.yaml12 import Key, YamlFile
from takd.models.weight_files import safetensors_parameters
from takd.runtime.files import model_folder

UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}


def gpt2_parameters(shape: dict[str, Any], vocabulary: int) -> int:
    """Compute the number of parameters of a GPT-2 with tied output embedding.

    A block of width w has 4 w² weights in its attention, 8 w² in its feed-forward layers, and 13 w
    in biases and norms.
    """
    width = shape["width"]
    embeddings = (vocabulary + shape["positions"]) * width
    return embeddings + shape["layers"] * (12 * width**2 + 13 * width) + 2 * width


def check_models(file: YamlFile, settings: dict[str, Any], root: Path) -> dict[str, int]:
    """Check all models; return the parameters of those without errors."""
    parameters = {}
    for name, model in settings["models"].items():
        key = ("models", name)
        if _check_given(file, key, model) and _check_kept_layers(
            file, (*key, "weights"), model["weights"]
        ):
            check = _check_scratch if "scratch" in model["weights"] else _check_size
            size = check(file, settings, key, model, root)
            if size is not None:
                parameters[name] = size
    return parameters


def _check_given(file: YamlFile, key: Key, model: dict[str, Any]) -> bool:
    """Check that a model that is taken as it is has weights, and nothing to train it with."""
    if not model["trained"]:
        return True
    if "scratch" in model["weights"]:
        text = "is true, but the weights are random (weights.scratch); name the weights of a model that is trained."
        return file.fault((*key, "trained"), text)
    if "training" in model:
        text = (
            "has no effect, as the model is taken as it is (trained: true); remove one of the two."
        )
        return file.fault((*key, "training"), text)
    return True


def _check_size(
    file: YamlFile, settings: dict[str, Any], key: Key, model: dict[str, Any], root: Path
) -> int | None:
    """Return the size of a model that exists, as declared or counted; None if it is not known."""
    size, weights = model.get("parameters"), model["weights"]
    if size is None and "folder" in weights and "keep_layers" not in weights:
        size = safetensors_parameters(root / model_folder(root, weights["folder"]))
    if size is None:
        text = "lacks the key parameters: its size, such as 1.5B or 120M (only of a folder with whole safetensors it"
        file.fault(key, f"{text} is counted).")
        return None
    return round(float(size[:-1]) * UNITS[size[-1]]) if isinstance(size, str) else round(size)


def _check_scratch(
    file: YamlFile, settings: dict[str, Any], key: Key, model: dict[str, Any], root: Path
) -> int | None:
    """Return the computed size of a model from scratch; None after an error."""
    shape, longest = model["weights"]["scratch"], settings["data"]["max_length"]
    width, vocabulary = shape["width"], vocabulary_size(settings)
    inside = (*key, "weights", "scratch")
    if "parameters" in model:
        file.fault((*key, "parameters"), "is computed for a model from scratch; remove it.")
    elif vocabulary is None:
        text = (
            "lacks the key vocabulary: the number of its tokens, from which the size of the model"
        )
        file.fault(("tokenizer",), f"{text} '{key[-1]}', which starts from scratch, follows.")
    elif width % shape["heads"]:
        text = f"is {shape['heads']}, which does not divide the width {width}; it must be {divisors(width)}."
        file.fault((*inside, "heads"), text)
    elif shape["positions"] < longest:
        text = f"is {shape['positions']}, but must be at least data.max_length ({longest})."
        file.fault((*inside, "positions"), text)
    else:
        return gpt2_parameters(shape, vocabulary)
    return None


def _check_kept_layers(file: YamlFile, key: Key, weights: dict[str, Any]) -> bool:
    """Check `keep_layers`, as far as possible before the weights are known."""
    kept, key = weights.get("keep_layers"), (*key, "keep_layers")
    if kept is not None and "scratch" in weights:
        text = "only goes with hub, folder and gguf; set scratch.layers instead."
        return file.fault(key, text)
    if isinstance(kept, list) and kept != sorted(kept):
        text = f"is {kept}, but must rise, since layers stay in their order: {sorted(kept)}."
        return file.fault(key, text)
    return True
