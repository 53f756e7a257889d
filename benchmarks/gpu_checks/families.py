"""Models of each family at any size, with random weights drawn on their device."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

ROTARY: dict[str, Any] = {
    "llama": (LlamaConfig, "LlamaForCausalLM"),
    "mistral": (MistralConfig, "MistralForCausalLM"),
    "qwen2": (Qwen2Config, "Qwen2ForCausalLM"),
    "gemma3": (Gemma3TextConfig, "Gemma3ForCausalLM"),
}
FAMILIES = ("gpt2", "opt", *ROTARY)


def config(
    family: str, layers: int, width: int, *, vocabulary: int, positions: int = 512
) -> PreTrainedConfig:
    """Make a configuration without dropout, with heads of 64 dimensions where the width allows two of them."""
    heads = max(2, width // 64)
    common = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    if family == "gpt2":
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        sizes = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": positions}
        activation = "gelu_pytorch_tanh"  # as takd loads it
        return GPT2Config(
            architectures=["GPT2LMHeadModel"],
            activation_function=activation,
            **sizes,
            **dropout,
            **common,
        )
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
    }
    if family == "opt":
        return OPTConfig(
            architectures=["OPTForCausalLM"],
            ffn_dim=4 * width,
            word_embed_proj_dim=width,
            dropout=0.0,
            **sizes,
            **common,
        )
    kind, name = ROTARY[family]
    more: dict[str, Any] = {
        "intermediate_size": max(32, 8 * width // 3 // 64 * 64),
        "num_key_value_heads": heads // 2,
    }
    if family == "gemma3":
        more |= {"head_dim": width // heads, "query_pre_attn_scalar": width // heads}
    return kind(architectures=[name], **more, **sizes, **common)


def random_model(
    family: str,
    layers: int,
    width: int,
    *,
    vocabulary: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> PreTrainedModel:
    """Make a random model in evaluation mode. Its weights depend on the device: to compare devices, move one model."""
    torch.manual_seed(seed)
    # 1.5 billion parameters are drawn on a card in a second, on a CPU in twenty
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config(family, layers, width, vocabulary=vocabulary)
        )
    return model.to(dtype).eval()
