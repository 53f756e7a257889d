"""A smaller model made of some of the transformer blocks of a larger one, in their order, with all the rest as it was.

DistilBERT and DistilGPT2 started so (arXiv 1910.01108). Works on the files: a block's tensors are renamed, one file
after the other, so that no more than a file is in memory, and the configuration says how many there are.
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from takd.errors import InputError

INDEX = "model.safetensors.index.json"
# `model.layers.3.mlp.up_proj.weight`: what stands before the first number, the number, and the rest
BLOCK = re.compile(r"((?:[^.\d][^.]*\.)+)(\d+)(\..+)")


def choose(keep: int | list[int], layers: int, name: str) -> list[int]:
    """Numbers of the layers that stay, from 0; a count is spread evenly from the first layer to the last.

    Raises:
        InputError: more layers, or others, than there are.
    """
    if isinstance(keep, int):
        if keep > layers:
            raise InputError(
                f"model '{name}': keep_layers is {keep}, but the source has {layers} layers; it must be"
                f" at most {layers}."
            )
        step = (layers - 1) / max(keep - 1, 1)
        return [round(step * at) for at in range(keep)]
    if keep[-1] >= layers:
        raise InputError(
            f"model '{name}': keep_layers names the layer {keep[-1]}, but the source has {layers},"
            f" counted from 0; the last is {layers - 1}."
        )
    return keep


def keep_layers(source: Path, target: Path, keep: int | list[int], name: str) -> list[int]:
    """Write a model of some of the layers of the one in `source` to `target`; gives their numbers in the source.

    Args:
        source: `config.json` and safetensors, with an index where they are several.
        keep: numbers of layers, rising, or how many.

    Raises:
        InputError: as `choose`, and for tensors that are not those of one stack of blocks.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    layers = config.num_hidden_layers
    kept = choose(keep, layers, name)
    _write_tensors(source, target, {old: new for new, old in enumerate(kept)}, layers, name)
    settings = config.to_dict()
    settings[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    # what a family says of each layer, such as which of them look no further than a window
    for key, value in settings.items():
        if key.startswith("layer_") and isinstance(value, list) and len(value) == layers:
            settings[key] = [value[old] for old in kept]
    type(config).from_dict(settings).save_pretrained(target)
    return kept


def _write_tensors(
    source: Path, target: Path, places: dict[int, int], layers: int, name: str
) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    files = sorted(source.glob("*.safetensors"))
    where: dict[str, str] = {}
    found: dict[str, set[int]] = defaultdict(set)
    size = 0
    for file in files:
        tensors: dict[str, Any] = {}
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118, this is no dictionary
                if match := BLOCK.fullmatch(key):
                    before, number, after = match[1], int(match[2]), match[3]
                    found[before].add(number)
                    if number not in places:
                        continue
                    tensors[f"{before}{places[number]}{after}"] = opened.get_tensor(key)
                else:
                    tensors[key] = opened.get_tensor(key)
        if tensors:
            save_file(tensors, target / file.name, metadata={"format": "pt"})
            where |= dict.fromkeys(tensors, file.name)
            size += sum(tensor.nbytes for tensor in tensors.values())
    if len(found) != 1 or next(iter(found.values())) != set(range(layers)):
        names = ", ".join(sorted(found)) or "none"
        raise InputError(
            f"model '{name}': keep_layers works on models of one stack of {layers} blocks, but the tensors of its"
            f" source are numbered otherwise ({names}); use a family such as gpt2, opt, llama, mistral or qwen2."
        )
    if len(files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (target / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True), encoding="utf-8")
