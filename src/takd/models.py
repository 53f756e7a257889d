"""Language models and tokenizers: the one place that knows their files and families.

A model is a folder in Hugging Face format. A folder without weights is a model from scratch: its `config.json`
gives the shape and the training seed draws the weights.
"""

import inspect
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from takd.errors import InputError

DROPOUT_KEYS = (
    *("resid_pdrop", "embd_pdrop", "attn_pdrop"),  # GPT-2
    *("dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "layerdrop"),
)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read a tokenizer from a folder; never from a hub and never with foreign code."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_model(
    folder: Path, *, seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Read a causal language model from a folder.

    Args:
        folder: `config.json` and safetensors; without weights the model is drawn at random with `seed`.
        dropout: probability of every dropout in the model while it trains.
        dtype: type of the parameters.

    Raises:
        InputError: the folder has weights, but none in safetensors format.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for key in DROPOUT_KEYS:
        if hasattr(config, key):
            setattr(config, key, 0.0 if key == "layerdrop" else dropout)
    if any(folder.glob("*.safetensors")):
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    elif any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise InputError(
            f"{folder} holds weights in a pickled format only; convert them to safetensors"
            " (save_pretrained does so), since unpickling a file runs its code."
        )
    else:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return cast(PreTrainedModel, model)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """Number of entries that the tokenizer uses.

    Models of one tokenizer may pad their embeddings to different sizes; everything that compares two models
    cuts both to this size.

    Raises:
        InputError: the model has fewer entries than the tokenizer.
    """
    rows = model.get_output_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise InputError(
            f"model '{name}' has {rows} vocabulary entries and the tokenizer {len(tokenizer)}:"
            " teacher and students must share one tokenizer."
        )
    return len(tokenizer)


@torch.no_grad()
def check_projection(model: PreTrainedModel, name: str) -> None:
    """Make sure that logits are the output embedding of the last hidden states, and nothing more.

    Raises:
        InputError: the family scales, caps or otherwise changes its logits.
    """
    was_training = model.training
    model.eval()
    ids = torch.arange(4, device=model.device)[None]
    mask = torch.ones_like(ids)
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    ours = project(model, hidden_states(model, ids, mask), logits.shape[-1])
    model.train(was_training)
    if not torch.allclose(ours, logits, atol=1e-2, rtol=1e-2):
        raise InputError(
            f"model '{name}' ({model.config.model_type}) changes its logits after the output"
            " embedding, which the losses here do not know; use a family such as gpt2, opt,"
            " llama, mistral or qwen2."
        )


def position_ids(attention_mask_bt: Tensor) -> Tensor:
    """Positions counted over real tokens alone, (batch, length): padding on either side shifts nothing."""
    return (attention_mask_bt.cumsum(-1) - 1).clamp(min=0)


def _takes(module: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(module.forward).parameters


def hidden_states(
    model: PreTrainedModel,
    input_ids_bt: Tensor,
    attention_mask_bt: Tensor,
    cache: Any = None,
) -> Tensor:
    """Last hidden states, (batch, new tokens, hidden size).

    Args:
        input_ids_bt: the new tokens.
        attention_mask_bt: 1 for real tokens, over cached and new tokens.
        cache: a `transformers` cache, which is extended; None decodes nothing step by step.
    """
    body = model.base_model
    arguments: dict[str, Any] = {}
    if _takes(body, "position_ids"):
        arguments["position_ids"] = position_ids(attention_mask_bt)[:, -input_ids_bt.shape[1] :]
    return body(
        input_ids=input_ids_bt,
        attention_mask=attention_mask_bt,
        past_key_values=cache,
        use_cache=cache is not None,
        **arguments,
    ).last_hidden_state


def project(model: PreTrainedModel, hidden: Tensor, vocabulary: int) -> Tensor:
    """Logits in float32 of hidden states, (..., hidden size) to (..., vocabulary).

    Softmax in half precision is off by 0.02 on average in the chosen token's log-probability, which the ratios
    and weights of policy gradients do not forgive.
    """
    return model.get_output_embeddings()(hidden)[..., :vocabulary].float()


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
