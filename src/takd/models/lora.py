"""LoRA adapters (arXiv 2106.09685): trained low-rank matrices beside frozen weights.

Adapters are injected in place, so the model keeps its `transformers` class and its decoding code.
On export they are merged, and the folder holds a plain model.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from takd.models.causal_lm import text_model
from takd.runtime.errors import InputError

NAME = "default"


def add_lora(
    model: PreTrainedModel,
    settings: dict[str, Any],
    *,
    name: str,
    seed: int,
    frozen_dtype: torch.dtype = torch.float32,
) -> None:
    """Freeze a model and add adapters to its linear layers: W x becomes W x + (alpha / rank) B A x.

    A is drawn with `seed` and B is zero, so the model's outputs are unchanged before training.

    Args:
        settings: `rank`, `alpha`, `dropout`, and `targets`: the last parts of layer names, or None
            for all linear layers of the body. The output embedding never gets an adapter.
        frozen_dtype: dtype of the frozen matrices that have adapters. Use the dtype of the
            computation, since autocast would cast them to it in every forward pass.

    Raises:
        InputError: a target is no linear layer, or the rank exceeds the size of a layer.
    """
    # imported here: the import is slow, and few runs need it
    from peft import LoraConfig, inject_adapter_in_model

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
    """Linear layers of the body that get adapters, by their full names."""
    inside, read = f"{model.base_model_prefix}.", set(text_model(model).modules())
    linear = {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
        and path.startswith(inside)
        and layer in read
        and layer is not model.get_output_embeddings()
    }
    if targets is None:
        return linear
    chosen: set[str] = set()
    for target in targets:
        found = {path for path in linear if f".{path}".endswith(f".{target}")}
        if not found:
            known = sorted({path.rpartition(".")[2] for path in linear})
            raise InputError(
                f"lora.targets has '{target}', which is no linear layer of model '{name}'"
                f" ({model.config.model_type}); it has {', '.join(known)}."
            )
        chosen |= found
    return {path: layer for path, layer in linear.items() if path in chosen}


def _adapted(model: nn.Module) -> dict[str, Any]:
    """Layers that have adapters, by name."""
    return {path: layer for path, layer in model.named_modules() if hasattr(layer, "base_layer")}


@torch.no_grad()
def plain_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the state dict without adapters: adapters are merged into their layers in float32.

    The model itself is not changed. A model without adapters returns its own state dict.
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
            # merged on the CPU: the device may lack memory for a second copy of the weights
            tensor = (tensor.float() + layers[owner].get_delta_weight(NAME).float()).cpu()
        weights[f"{owner}.{rest}"] = tensor
    return weights
