"""Language models and tokenizers: loading, forward passes, logits, differences of families.

A model is a folder in Hugging Face format, or its `config.json` alone: then the training seed draws the weights.
"""

import contextlib
import functools
import inspect
import os
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
    masking_utils,
)

from takd.models.logits import lowered_type, without_autocast
from takd.models.precision import PRETRAINED, pretrained_in
from takd.models.tokenizer_check import entries, used_entries
from takd.runtime.errors import InputError, reason
from takd.runtime.stage import Stage

if not torch.cuda.is_available():
    # DeepSpeed, which other libraries import, would warn on the console about a missing GPU
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

DROPOUT_KEYS = (
    *("resid_pdrop", "embd_pdrop", "emb_pdrop", "attn_pdrop"),  # GPT-2, MPT
    *("dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "layerdrop"),
    *("residual_dropout", "embedding_dropout"),  # StarCoder2, Seed-OSS
    *("resid_dropout", "embed_dropout"),  # GPT-Neo
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),  # BioGPT
)
# Texts are padded here, never packed one behind the other in a row. Models look for that in each pass
# over whole texts, for which the host would wait for the device
masking_utils.find_packed_sequence_indices = lambda position_ids: None

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
# equal functions that run as one kernel instead of eight
FUSED_ACTIVATIONS = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}


def tokenizer_of(stage: Stage) -> PreTrainedTokenizerBase:
    """Load the tokenizer that a stage gets as its input `tokenizer`."""
    return load_tokenizer(stage.input("tokenizer").parent / "tokenizer")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a local folder, without custom code."""
    return AutoTokenizer.from_pretrained(folder, **LOCAL)


def load_model(
    folder: Path, *, seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a causal language model from a folder, in evaluation mode.

    Args:
        folder: `config.json` and safetensors; without weights, the model is initialised with
            `seed`.
        dropout: dropout probability everywhere in the model during training.

    Raises:
        InputError: the folder has weights, but none in safetensors format; or the family refuses dropout.
    """
    config = AutoConfig.from_pretrained(folder, **LOCAL)
    # saved with the trained model, whose float32 weights do not show the pretraining dtype
    setattr(config, PRETRAINED, pretrained_in(folder))
    for part, key in dropout_settings(config):
        setattr(part, key, 0.0 if key == "layerdrop" else dropout)
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
            safe = {"use_safetensors": True, **LOCAL}
            model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype, **safe)
        else:
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ValueError as error:  # DiffLlama's
        if not dropout or "dropout" not in str(error):
            raise
        raise InputError(
            f"a {config.model_type} cannot be trained with dropout ({reason(error)}); set `dropout: 0` in `training`."
        ) from None
    # a pad token that is also the end token occurs in texts, so its embedding must be trained
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        embedding.padding_idx = None
    return cast(PreTrainedModel, model).eval()


def dropout_settings(config: Any) -> list[tuple[Any, str]]:
    """Return the names of all dropout probabilities of a configuration, each with the part that has it."""
    text = config.get_text_config()  # multimodal models have one within that of the whole
    parts = [config] if text is config else [config, text]
    return [(part, key) for part in parts for key in DROPOUT_KEYS if hasattr(part, key)]


def text_model(model: PreTrainedModel) -> nn.Module:
    """Return the part of a model that reads texts: all of it, except in multimodal models."""
    multimodal = model.config.get_text_config() is not model.config
    return model.get_decoder() if multimodal else model


def freeze_other_parts(model: PreTrainedModel) -> None:
    """Freeze what no text passes through, such as the image encoder of a multimodal model.

    It would get no gradients, and DDP waits for one of each parameter that is trained.
    """
    read = {id(p) for p in text_model(model).parameters()}
    read |= {id(p) for p in model.get_output_embeddings().parameters()}
    for parameter in model.parameters():
        if id(parameter) not in read:
            parameter.requires_grad_(False)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """Return the number of vocabulary entries that the tokenizer and the model shard.

    Models with the same tokenizer may pad their embeddings to different sizes, or lack an entry for
    a pad token at the end, which occurs in no text. Comparisons of two models cut both to the
    smaller number.

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
    """Compute the last hidden states, (batch, length, hidden size).

    Texts must be padded on the right, where causal attention never reaches the padding: positions
    then count from 0 as usual, and no attention mask is needed.

    Args:
        ids_bt: token ids, (batch, length).
        mask: attention mask, (batch, 1, length, cached and new tokens), True where a token may
            attend, or one mask per kind of layer. None: causal, within the family's attention
            windows.
        positions_bt: position ids, (batch, length); None counts from 0, or from the end of the
            cache.
        cache: a `transformers` KV cache, which is extended; None for a single pass over whole
            texts.
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


class DecodingMasks:
    """Attention masks for the next tokens of rows that have different lengths.

    BLOOM, and Falcon with ALiBi, compute positions from a mask of shape (batch, columns) and make
    the attention mask from it. Layers with sliding-window attention (all of Mistral's, some of
    Qwen2's) get a mask of their own, since a model that is given a mask does not build the windows
    itself.

    All other masks are numbers that attention adds to its scores, in the dtype that it computes in,
    so that no layer has to convert them. A mask is a stretch of one long line, which is hidden but
    for the window: taking masks is one operation, and a line needs no (columns, columns) table.

    Args:
        columns: most columns that a mask may have.
    """

    def __init__(self, model: PreTrainedModel, columns: int) -> None:
        config = model.config.get_text_config()
        self.positions = config.model_type == "bloom" or getattr(config, "alibi", False)
        window = getattr(config, "sliding_window", None)
        self.kinds = getattr(config, "layer_types", None)
        if self.kinds and "sliding_attention" not in self.kinds:
            window = None
        self.windowed, self.columns = window is not None, columns
        # GPT-J, for one, computes attention without a kernel and adds masks in the weights' dtype
        eager = config._attn_implementation == "eager"
        dtype = model.dtype if eager else lowered_type(model) or model.dtype
        lowest = torch.finfo(dtype).min if eager else -torch.inf
        self.lines: dict[int, Tensor] = {}
        for width in {columns, min(window or columns, columns)}:
            line = torch.full((2 * columns + width,), lowest, dtype=dtype, device=model.device)
            line[columns : columns + width] = 0
            self.lines[width] = line
        self.width = min(self.lines)

    def of(self, lengths: Tensor, columns: int) -> Tensor | dict[str, Tensor]:
        """Take the masks of rows, (..., 1, 1, columns), for `hidden_states`.

        Args:
            lengths: cached tokens of each row, (...), which is also the column of the next token.
        """
        if self.positions:
            return torch.arange(columns, device=lengths.device) <= lengths[..., None]
        if not self.windowed:
            return self._taken(self.columns, lengths, columns)
        windowed = self._taken(self.width, lengths, columns)
        if not self.kinds:
            return windowed
        whole = self._taken(self.columns, lengths, columns)
        return {"full_attention": whole, "sliding_attention": windowed}

    def _taken(self, width: int, lengths: Tensor, columns: int) -> Tensor:
        # the window's last column is that of the new token
        starts = (self.columns + width - 1) - lengths
        stretches = self.lines[width].unfold(0, columns, 1)
        return stretches.index_select(0, starts.flatten()).view(*lengths.shape, 1, 1, columns)


def checkpoint_activations(model: PreTrainedModel, name: str) -> None:
    """Enable gradient checkpointing: the backward pass recomputes activations within blocks.

    Raises:
        InputError: the model family does not support it.
    """
    try:
        # the reentrant variant needs gradients at a block's input, which frozen embeddings do not
        # have
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError:
        raise InputError(
            f"model '{name}' ({model.config.model_type}) has no gradient checkpointing; leave it off in"
            " the profile and choose a smaller micro_batch."
        ) from None


def compile_training(model: PreTrainedModel, device: torch.device) -> None:
    """Use torch.compile for training passes of the body; evaluation and decoding stay uncompiled.

    Raises:
        InputError: torch.compile does not work on this machine.
    """
    body = model.base_model
    plain = body.forward
    # fallback_random: dropout draws the same numbers with and without compilation
    how: dict[str, Any] = {"dynamic": True, "options": {"fallback_random": True}}
    try:
        torch.compile(torch.neg, **how)(torch.ones(2, device=device))
    except Exception as error:  # the compilers raise various exceptions
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


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest distance of two vectors (last dimension), relative to the second."""
    found, expected = found.float(), expected.float()
    distance, length = (found - expected).norm(dim=-1), expected.norm(dim=-1)
    return (distance / length.clamp_min(1e-30)).max().item()
