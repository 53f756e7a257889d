"""Checks of `models`: declared sizes, and sizes computed from a shape."""

from pathlib import Path
from typing import Any

from takd.experiment.validation.common import divisors, vocabulary_size
from takd.experiment.yaml12 import Key, YamlFile
from takd.models.weight_files import safetensors_parameters

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
        with file.each():
            parameters[name] = _check_model(file, settings, name, model, root)
    return parameters


def _check_model(
    file: YamlFile, settings: dict[str, Any], name: str, model: dict[str, Any], root: Path
) -> int:
    vocabulary = vocabulary_size(settings)
    key: Key = ("models", name)
    weights = model["weights"]
    shape = weights.get("scratch")
    _check_kept(file, (*key, "weights"), weights)
    if shape is None:
        if "parameters" in model:
            return _count(model["parameters"])
        counted = None
        if "folder" in weights and "keep_layers" not in weights:
            counted = safetensors_parameters(root / weights["folder"])
        if counted is None:
            raise file.error(
                key,
                "lacks the key parameters: its size, such as 1.5B or 120M (only of a folder with whole safetensors it"
                " is counted).",
            )
        return counted
    if "parameters" in model:
        raise file.error((*key, "parameters"), "is computed for a model from scratch; remove it.")
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
            f" it must be {divisors(shape['width'])}.",
        )
    if shape["positions"] < settings["data"]["max_length"]:
        raise file.error(
            (*key, "positions"),
            f"is {shape['positions']}, but must be at least data.max_length"
            f" ({settings['data']['max_length']}).",
        )
    return gpt2_parameters(shape, vocabulary)


def _check_kept(file: YamlFile, key: Key, weights: dict[str, Any]) -> None:
    """Check `keep_layers`, as far as possible before the weights are known."""
    kept = weights.get("keep_layers")
    if kept is None:
        return
    if "scratch" in weights:
        raise file.error(
            (*key, "keep_layers"),
            "only goes with hub, folder and gguf; set scratch.layers instead.",
        )
    if isinstance(kept, list) and kept != sorted(kept):
        raise file.error(
            (*key, "keep_layers"),
            f"is {kept}, but must rise, since layers stay in their order: {sorted(kept)}.",
        )


def _count(size: float | str) -> int:
    if isinstance(size, str):
        return round(float(size[:-1]) * UNITS[size[-1]])
    return round(size)
