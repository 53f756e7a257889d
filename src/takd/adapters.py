"""LoRA (arXiv 2106.09685) on any model: small trained matrices beside frozen weights, put in and merged in place.

The model stays what `transformers` made it: its body, its embeddings and its decoding work as before, and what is
written is a plain model.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from takd.errors import InputError

NAME = "default"


def add_lora(
    model: PreTrainedModel,
    settings: dict[str, Any],
    *,
    name: str,
    seed: int,
    frozen_dtype: torch.dtype = torch.float32,
) -> None:
    """Freeze a model and put adapters beside its linear layers: W x becomes W x + (alpha / rank) B A x.

    A is drawn with `seed` and B is zero, so that the model computes at first what it did before.

    Args:
        settings: `rank`, `alpha`, `dropout`, and `targets`: last parts of the names of layers, or None for all linear
            layers of the body; the output embedding never has one.
        name: the model's, for messages.
        frozen_dtype: type of the frozen matrices beside adapters. The type of the computation is right: autocast
            turns them into it at every pass anyway.

    Raises:
        InputError: a target that is no linear layer, or a rank above the size of a layer.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds, and few trainings need it

    layers = _chosen(model, settings["targets"], name)
    narrowest = min(layers, key=lambda layer: min(layers[layer].weight.shape))
    limit = min(layers[narrowest].weight.shape)
    if settings["rank"] > limit:
        raise InputError(
            f"lora.rank is {settings['rank']}, but the layer {narrowest} of model '{name}' has only"
            f" {limit} inputs or outputs; choose a rank of at most {limit}."
        )
    torch.manual_seed(seed)
    config = LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=list(layers),
        fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in layers.values()),
    )
    inject_adapter_in_model(config, model, adapter_name=NAME)
    for layer in _adapted(model).values():
        layer.base_layer.weight.data = layer.base_layer.weight.data.to(frozen_dtype)


def _chosen(
    model: PreTrainedModel, targets: list[str] | None, name: str
) -> dict[str, nn.Linear | Conv1D]:
    """The linear layers of the body that get adapters, by their full names."""
    inside = f"{model.base_model_prefix}."
    linear = {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
        and path.startswith(inside)
        and layer is not model.get_output_embeddings()
    }
    if targets is None:
        return linear
    for target in targets:
        if not any(f".{path}".endswith(f".{target}") for path in linear):
            known = sorted({path.rpartition(".")[2] for path in linear})
            raise InputError(
                f"lora.targets has '{target}', which is no linear layer of model '{name}'"
                f" ({model.config.model_type}); it has {', '.join(known)}."
            )
    return {
        path: layer
        for path, layer in linear.items()
        if any(f".{path}".endswith(f".{target}") for target in targets)
    }


def _adapted(model: nn.Module) -> dict[str, Any]:
    """The layers with adapters, by name."""
    return {path: layer for path, layer in model.named_modules() if hasattr(layer, "base_layer")}


@torch.no_grad()
def plain_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of the same model without adapters: merged, in float32; the model itself is left as it is.

    A model without adapters gives its own.
    """
    layers = _adapted(model)
    weights = {}
    for key, tensor in model.state_dict().items():
        owner, _, rest = key.rpartition(".base_layer.")
        if owner not in layers:
            if "lora_" not in key:
                weights[key] = tensor
            continue
        if rest == "weight":
            # not on the device, where there may be no room for all weights twice
            tensor = (tensor.float() + layers[owner].get_delta_weight(NAME).float()).cpu()
        weights[f"{owner}.{rest}"] = tensor
    return weights
