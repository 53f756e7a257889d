"""Language models and tokenizers: the one place that knows their files and families.

A model is a folder in Hugging Face format. A folder without weights is a model from scratch: its `config.json`
gives the shape and the training seed draws the weights.
"""

import contextlib
import functools
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
from takd.precision import PRETRAINED, pretrained_in
from takd.vocabulary import entries, used_entries
from takd.weight_files import reason

DROPOUT_KEYS = (
    *("resid_pdrop", "embd_pdrop", "attn_pdrop"),  # GPT-2
    *("dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "layerdrop"),
)
# the same functions in one kernel instead of eight
FUSED_ACTIVATIONS = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}

VOCABULARY_BLOCK = 2048


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read a tokenizer from a folder; never from a hub and never with foreign code."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_model(
    folder: Path, *, seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Read a causal language model from a folder, in evaluation mode.

    Args:
        folder: `config.json` and safetensors; without weights the model is drawn at random with `seed`.
        dropout: probability of every dropout in the model while it trains.
        dtype: type of the parameters.

    Raises:
        InputError: the folder has weights, but none in safetensors format; or the family refuses dropout.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # goes on to what is saved of the model, whose own type says nothing of its origin
    setattr(config, PRETRAINED, pretrained_in(folder))
    for key in DROPOUT_KEYS:
        if hasattr(config, key):
            setattr(config, key, 0.0 if key == "layerdrop" else dropout)
    for key in ("activation_function", "hidden_act"):
        if (name := getattr(config, key, None)) in FUSED_ACTIVATIONS:
            setattr(config, key, FUSED_ACTIVATIONS[name])
    weights = any(folder.glob("*.safetensors"))
    if not weights and (any(folder.glob("*.bin")) or any(folder.glob("*.pt"))):
        raise InputError(
            f"{folder} holds weights in a pickled format only; convert them to safetensors"
            " (save_pretrained does so), since unpickling a file runs its code."
        )
    try:
        if weights:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
        else:
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ValueError as error:  # DiffLlama's
        if not dropout or "dropout" not in str(error):
            raise
        raise InputError(
            f"a {config.model_type} cannot be trained with dropout ({reason(error)}); set `dropout: 0` in `training`."
        ) from None
    # a pad token that is also an end token stands in texts, and learns from them
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        embedding.padding_idx = None
    return cast(PreTrainedModel, model).eval()


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """Number of entries that the tokenizer and the model share.

    Models of one tokenizer may pad their embeddings to different sizes, and may lack an entry for a pad token at its
    end, which stands in no text; everything that compares two models cuts both to the smaller of their numbers.

    Raises:
        InputError: the model has fewer entries than the tokenizer uses.
    """
    rows: int = model.get_output_embeddings().weight.shape[0]
    if rows < used_entries(tokenizer):
        raise InputError(
            f"model '{name}' has {rows} vocabulary entries and the tokenizer {entries(tokenizer)}:"
            " teacher and students must share one tokenizer."
        )
    return min(rows, entries(tokenizer))


@functools.cache
def _takes(body: Any, argument: str) -> bool:
    return argument in inspect.signature(body.forward).parameters


def hidden_states(
    model: PreTrainedModel,
    ids_bt: Tensor,
    *,
    mask: Tensor | dict[str, Tensor] | None = None,
    positions_bt: Tensor | None = None,
    cache: Any = None,
) -> Tensor:
    """Last hidden states, (batch, length, hidden size).

    Padding belongs on the right: causal attention never sees it there, positions count from 0 as always, and no
    mask is needed.

    Args:
        ids_bt: tokens, (batch, length).
        mask: (batch, 1, length, cached and new tokens), True where a token may look, or one for each kind of layer.
            None: causal, and within the windows of a family that has them.
        positions_bt: None counts from 0, or from where the cache ends.
        cache: a `transformers` cache, which is extended; None decodes nothing step by step.
    """
    body = model.base_model
    arguments: dict[str, Any] = {}
    if positions_bt is not None and _takes(cast(Any, type(body)), "position_ids"):
        arguments["position_ids"] = positions_bt
    plain = lowered_type(model) is None
    with without_autocast(model.device) if plain else contextlib.nullcontext():
        return body(
            input_ids=ids_bt,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
            **arguments,
        ).last_hidden_state


def decoding_mask(
    model: PreTrainedModel, lengths_b: Tensor, columns: int
) -> Tensor | dict[str, Tensor]:
    """What the next token of each row may look at: a `mask` for `hidden_states`, (batch, 1, 1, columns).

    BLOOM, and Falcon with ALiBi, count positions in a mask that is (batch, columns), and make the other one of it.

    A model whose mask is given builds none itself, so layers that look no further back than a window (Mistral's all,
    some of Qwen2's) get theirs here.

    Args:
        lengths_b: tokens of each row that are cached; the next one stands in this column.
    """
    at = torch.arange(columns, device=lengths_b.device)
    causal = (at <= lengths_b[:, None])[:, None, None]
    config = model.config.get_text_config()
    if config.model_type == "bloom" or getattr(config, "alibi", False):
        return causal[:, 0, 0]
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return _added(causal, model)
    windowed = _added(causal & (at > lengths_b[:, None] - window)[:, None, None], model)
    if not kinds:
        return windowed
    return {"full_attention": _added(causal, model), "sliding_attention": windowed}


def _added(mask: Tensor, model: PreTrainedModel) -> Tensor:
    """A mask as the attention of this family takes it: GPT-J's, for one, adds it to the scores."""
    if model.config.get_text_config()._attn_implementation != "eager":
        return mask
    zero = torch.zeros((), dtype=model.dtype, device=mask.device)
    return torch.where(mask, zero, torch.finfo(model.dtype).min)


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Prepare a model for inference: no dropout, no gradients, and arithmetic in the type of its own weights.

    A teacher runs inside the autocast of its student, which would keep the hidden states of half-precision weights
    in float32, cast its norms at every step, and lower one whose weights are float32 because float16 overflows in it.
    """
    setattr(model, _FROZEN, True)
    return model.eval().requires_grad_(False)


_FROZEN = "takd_frozen"


def lowered_type(model: PreTrainedModel) -> torch.dtype | None:
    """The type to which autocast lowers a model's products at the moment; None where they are in their own."""
    return None if getattr(model, _FROZEN, False) else autocast_type(model.device)


def autocast_type(device: torch.device) -> torch.dtype | None:
    """The type to which autocast lowers products at the moment; None where it lowers none."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Have products computed in the types of their operands."""
    if autocast_type(device) is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def project(model: PreTrainedModel, hidden: Tensor, vocabulary: int) -> Tensor:
    """Compute float32 logits of hidden states, (..., hidden size) to (..., vocabulary); without gradients.

    Only the operands are rounded to half precision. Rounding logits near -65, where GPT-2's lie, would put an error
    with a standard deviation of 0.13 (bfloat16) into each log-probability, and with it into the ratios and weights of
    policy gradients; rounded operands give 0.001.
    """
    head = output_layer(model)
    dtype = lowered_type(model) or head.weight.dtype
    with torch.no_grad():
        return vocabulary_product(
            hidden.to(dtype), head.weight[:vocabulary].to(dtype), cut(head.bias, vocabulary)
        )


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """The layer that makes logits of the last hidden states."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear), type(head)  # check_projection has seen to it
    return head


def cut(bias_v: Tensor | None, vocabulary: int) -> Tensor | None:
    """The bias of the entries that the tokenizer uses, if there is a bias."""
    return None if bias_v is None else bias_v[:vocabulary]


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits divided by a temperature; 1 costs no pass over the vocabulary."""
    return logits if temperature == 1 else logits / temperature


def wide_product(left_nk: Tensor, right_km: Tensor) -> Tensor:
    """Product of two matrices, (n, k) and (k, m), that is not rounded to the half precision of its operands.

    A GPU adds up in float32 and returns that; a CPU, which multiplies half precision slowly, gets the same by
    multiplying in float32.
    """
    with without_autocast(left_nk.device):
        if left_nk.dtype not in (torch.float16, torch.bfloat16):
            return left_nk @ right_km
        if left_nk.device.type == "cuda":
            return torch.mm(left_nk, right_km, out_dtype=torch.float32)
        return left_nk.float() @ right_km.float()


def vocabulary_product(hidden: Tensor, weight_vh: Tensor, bias_v: Tensor | None = None) -> Tensor:
    """Logits of hidden states, (..., hidden size) to (..., vocabulary): float32 unless the operands are wider.

    On a CPU, block by block: the library's product of a few rows with 50,000 columns runs at half of its rate.
    """
    flat_nh = hidden.reshape(-1, hidden.shape[-1])
    rows = weight_vh.shape[0]
    in_blocks = hidden.device.type == "cpu" and rows > 2 * VOCABULARY_BLOCK
    parts = weight_vh.split(VOCABULARY_BLOCK if in_blocks else rows)
    pieces = [wide_product(flat_nh, part_vh.T) for part_vh in parts]
    logits_nv = pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)
    if bias_v is not None:
        logits_nv = logits_nv + bias_v.to(logits_nv.dtype)
    return logits_nv.unflatten(0, hidden.shape[:-1]) if hidden.ndim != 2 else logits_nv


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def checkpoint_activations(model: PreTrainedModel, name: str) -> None:
    """Keep no activations within a block while training; the backward pass computes them once more.

    Raises:
        InputError: a family that cannot.
    """
    try:
        # the reentrant kind asks for a gradient at a block's input, which frozen embeddings do not give
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError:
        raise InputError(
            f"model '{name}' ({model.config.model_type}) has no gradient checkpointing; leave it off in"
            " the profile and choose a smaller micro_batch."
        ) from None


def compile_training(model: PreTrainedModel, device: torch.device) -> None:
    """Let training passes of the body run through torch.compile; evaluation and decoding stay as they are.

    Raises:
        InputError: nothing can be compiled on this machine.
    """
    body = model.base_model
    plain = body.forward
    # dropout draws the same numbers compiled or not
    how: dict[str, Any] = {"dynamic": True, "options": {"fallback_random": True}}
    try:
        torch.compile(torch.neg, **how)(torch.ones(2, device=device))
    except Exception as error:  # whatever the compilers behind it raise
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            "compile needs a C++ compiler and Python's headers on this machine (apt-get install g++ python3-dev);"
            f" leave it off in the profile without them ({type(error).__name__}: {reason})."
        ) from None
    compiled = torch.compile(plain, **how)

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if body.training else plain)(*args, **kwargs)

    body.forward = forward
