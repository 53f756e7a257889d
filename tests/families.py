"""Tiny models of every family, as users provide them: only a `config.json`, or safetensors in some precision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
)

WINDOW = 4  # tokens, shorter than the texts
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}


def gpt2(vocabulary: int, width: int) -> PretrainedConfig:
    return GPT2Config(
        architectures=["GPT2LMHeadModel"],
        vocab_size=vocabulary,
        n_layer=2,
        n_embd=width,
        n_head=2,
        n_positions=32,
        **TOKENS,
    )


def _common(vocabulary: int, width: int) -> dict[str, Any]:
    shape = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {"vocab_size": vocabulary, "max_position_embeddings": 32, **shape, **TOKENS}


def opt(vocabulary: int, width: int) -> PretrainedConfig:
    return OPTConfig(
        architectures=["OPTForCausalLM"],
        ffn_dim=2 * width,
        word_embed_proj_dim=width,
        **_common(vocabulary, width),
    )


def _gated(vocabulary: int, width: int) -> dict[str, Any]:
    grouped = {"intermediate_size": 2 * width, "num_key_value_heads": 1}
    return {**_common(vocabulary, width), **grouped}


def llama(vocabulary: int, width: int) -> PretrainedConfig:
    return LlamaConfig(architectures=["LlamaForCausalLM"], **_gated(vocabulary, width))


def mistral(vocabulary: int, width: int) -> PretrainedConfig:
    return MistralConfig(
        architectures=["MistralForCausalLM"], sliding_window=WINDOW, **_gated(vocabulary, width)
    )


def qwen2(vocabulary: int, width: int) -> PretrainedConfig:
    """Qwen2 whose second layer uses sliding-window attention."""
    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
        tie_word_embeddings=True,
        **_gated(vocabulary, width),
    )


def gemma3(vocabulary: int, width: int) -> PretrainedConfig:
    """Gemma 3, which scales its embeddings; the first layer uses sliding-window attention."""
    return Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        head_dim=width // 2,
        query_pre_attn_scalar=width // 2,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        **_gated(vocabulary, width),
    )


FAMILIES: dict[str, Callable[[int, int], PretrainedConfig]] = {
    family.__name__: family for family in (gpt2, opt, llama, mistral, qwen2, gemma3)
}


def save_weights(config: PretrainedConfig, folder: Path, dtype: torch.dtype) -> None:
    """Write random weights, with distributions far from uniform, as safetensors in the given precision."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    model.to(dtype).save_pretrained(folder)
