"""Smaller models made of some transformer blocks of a larger one, with all other weights unchanged.

DistilBERT and DistilGPT2 were initialised this way (arXiv 1910.01108). Works on files: tensors are
renamed one file at a time, so that memory holds at most one file, and the number of layers in the
configuration is adjusted.
"""

import copy
import json
import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from takd.models.weight_files import FITTING, INDEX, opened, read_config
from takd.runtime.errors import InputError, reason

# splits `model.layers.3.mlp.up_proj.weight` into prefix, layer index and rest
BLOCK = re.compile(r"((?:[^.\d][^.]*\.)+)(\d+)(\..+)")
# lists and numbered settings that are not per layer, whatever their length
NOT_OF_LAYERS = re.compile(r"_(tokens?|tokens?_ids?|words_ids)$|^(architectures|id2label)$")
WINDOWS = ("sliding_window", "attention_chunk_size")
WINDOW = 8  # tokens of the attention window in the comparison of two models
SAME = 1e-4  # relative error of hidden states that rounding may cause
# parts of the names of non-text layer stacks in multimodal models
OTHER_STACKS = re.compile("vision|visual|image|audio|speech")


def choose(keep: int | list[int], layers: int, name: str) -> list[int]:
    """Return the indices of the layers to keep, from 0, spreading a count from first to last.

    Raises:
        InputError: the count or an index exceeds the layers of the model.
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
    """Write a model with some of the layers of the model in `source`; return their indices there.

    Args:
        source: folder with `config.json` and safetensors, and an index if there are several files.
        target: folder for the smaller model.
        keep: ascending layer indices, or their number.

    Raises:
        InputError: as `choose`; the tensors do not form a single stack of blocks; or the kept
            layers would compute something else than in the source.
    """
    config = read_config(source, name)
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise _unfit(name, config, "its config.json does not say how many layers there are")
    kept = choose(keep, layers, name)
    part = shortened(config, kept, name)
    _check_same(config, part, kept, name)
    nested = text is not config
    _write_tensors(source, target, {old: new for new, old in enumerate(kept)}, layers, name, nested)
    part.save_pretrained(target)
    return kept


def shortened(config: Any, kept: list[int], name: str) -> Any:
    """Return the configuration for the kept layers, with per-layer settings selected.

    Raises:
        InputError: the settings do not allow it.
    """
    text = config.get_text_config()
    layers = text.num_hidden_layers
    settings = config.to_dict()
    of_text = settings
    if text is not config:
        of_text = settings[next(key for key in config.sub_configs if getattr(config, key) is text)]
    # per-layer settings, such as which layers have a sliding window or no position embedding
    for key, value in of_text.items():
        if NOT_OF_LAYERS.search(key):
            continue
        if isinstance(value, list) and len(value) == layers:
            of_text[key] = [value[old] for old in kept]
        elif isinstance(value, dict) and value and all(str(each).isdecimal() for each in value):
            of_layer = {int(number): each for number, each in value.items()}
            of_text[key] = {n: of_layer[old] for n, old in enumerate(kept) if old in of_layer}
    of_text[text.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    try:
        return type(config).from_dict(settings)
    except Exception as error:  # each model family raises its own exceptions
        why = f"its config.json cannot be shortened ({reason(error)})"
        raise _unfit(name, config, why) from None


def _check_same(config: Any, part: Any, kept: list[int], name: str) -> None:
    """Check that the smaller model equals the whole one with dropped layers as the identity.

    This detects families that number layers in settings other than lists, or whose computation
    depends on a layer's index. Both models have made-up weights (`takd.models.placeholder_weights`), and attention
    windows shorter than the text.
    """
    import torch

    from takd.models.causal_lm import hidden_states, relative_error
    from takd.models.placeholder_weights import hollow

    layers = config.get_text_config().num_hidden_layers
    config, part = copy.deepcopy(config), copy.deepcopy(part)
    for each in (config, part):
        text = each.get_text_config()
        for key in WINDOWS:
            if getattr(text, key, None):
                setattr(text, key, WINDOW)
    try:
        whole = hollow(config)
        stacks = _stacks(whole, layers)
        short = hollow(part, lambda key: _in_whole(key, stacks, kept))
        dropped = [stack[n] for stack in stacks.values() for n in range(layers) if n not in kept]
        for layer in dropped:
            layer.register_forward_hook(_hand_on, with_kwargs=True)
        ids = torch.arange(3 * WINDOW)[None] % config.get_text_config().vocab_size
        with torch.no_grad():
            expected, found = (hidden_states(model, ids) for model in (whole, short))
        distance = relative_error(found, expected)
    except Exception as error:  # an unsupported family may raise any exception
        why = f"some of its layers cannot be compared with all ({reason(error)})"
        raise _unfit(name, config, why) from None
    if not stacks or not distance < SAME:
        why = "would compute something else than in the whole model"
        raise _unfit(name, config, f"layers {', '.join(map(str, kept))} {why}")


def _stacks(model: Any, layers: int) -> dict[str, Any]:
    """Module lists with one entry per layer of the text model, by name; no nested lists."""
    from torch import nn

    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) != layers:
            continue
        if not OTHER_STACKS.search(path) and not any(path.startswith(f"{each}.") for each in found):
            found[path] = module
    return found


def _in_whole(key: str, stacks: Collection[str], kept: list[int]) -> str:
    """Name in the whole model of a parameter of the smaller one."""
    for stack in stacks:
        if key.startswith(f"{stack}."):
            number, dot, rest = key.removeprefix(f"{stack}.").partition(".")
            return f"{stack}.{kept[int(number)]}{dot}{rest}"
    return key


def _hand_on(layer: Any, args: Any, kwargs: Any, output: Any) -> Any:
    """Forward hook that replaces a layer's output by its input."""
    hidden = args[0] if args else kwargs["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _unfit(name: str, config: Any, why: str) -> InputError:
    return InputError(
        f"model '{name}' ({config.model_type}): keep_layers does not work on it: {why}; choose other layers, or"
        f" {FITTING}"
    )


def _write_tensors(
    source: Path, target: Path, places: dict[int, int], layers: int, name: str, nested: bool
) -> None:
    from safetensors.torch import save_file

    files = sorted(source.glob("*.safetensors"))
    where: dict[str, str] = {}
    found: dict[str, set[int]] = defaultdict(set)
    size = 0
    for file in files:
        tensors: dict[str, Any] = {}
        with opened(file, name) as weights:
            for key in weights.keys():  # noqa: SIM118, this is no dictionary
                match = BLOCK.fullmatch(key)
                if match and not (nested and OTHER_STACKS.search(match[1])):
                    before, number, after = match[1], int(match[2]), match[3]
                    found[before].add(number)
                    if number not in places:
                        continue
                    tensors[f"{before}{places[number]}{after}"] = weights.get_tensor(key)
                else:
                    tensors[key] = weights.get_tensor(key)
        if tensors:
            save_file(tensors, target / file.name, metadata={"format": "pt"})
            where |= dict.fromkeys(tensors, file.name)
            size += sum(tensor.nbytes for tensor in tensors.values())
    if len(found) != 1 or next(iter(found.values())) != set(range(layers)):
        names = ", ".join(sorted(found)) or "none"
        raise InputError(
            f"model '{name}': keep_layers works on models of one stack of {layers} blocks, but the tensors of its"
            f" source are numbered otherwise ({names}); {FITTING}"
        )
    if len(files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (target / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True), encoding="utf-8")
