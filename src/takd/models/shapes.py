"""Shape of a model, which determines its memory and its FLOPs; without torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from takd.models.precision import pretrained_dtype
from takd.runtime.files import read_json

# families whose block has three matrices in its feed-forward part and norms without biases
GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "olmo", "granite", "smollm3")
GPT2_VOCABULARY = 50257
# ends of the names that families give to the same matrix of a block
NAMES = {
    "qkv": ("c_attn", "qkv_proj", "query_key_value"),
    "q": ("q_proj",),
    "k": ("k_proj",),
    "v": ("v_proj",),
    "o": ("o_proj", "out_proj", "attn.c_proj"),
    "gate": ("gate_proj",),
    "up": ("up_proj", "c_fc", "fc1"),
    "down": ("down_proj", "mlp.c_proj", "fc2"),
}


@dataclass(frozen=True)
class Shape:
    """Dimensions of a transformer.

    Attributes:
        family: `model_type` of its configuration.
        width: size of the hidden states.
        keys: size of the keys, and of the values, per token and block: below `queries` with grouped-query attention.
        queries: size of the queries.
        inner: inner size of the feed-forward part.
        gated: whether the feed-forward part has three matrices.
        vocabulary: rows of its embedding.
        positions: rows of its position embedding, 0 without one.
        tied: whether input and output embedding share their weights.
        biases: parameters of the biases of a block.
        estimated: whether the shape was derived from the number of parameters alone.
        pretrained: precision that it was pretrained in, such as "bfloat16"; empty if unknown.
    """

    family: str
    layers: int
    width: int
    heads: int
    keys: int
    queries: int
    inner: int
    gated: bool
    vocabulary: int
    positions: int
    tied: bool
    biases: int
    estimated: bool = False
    pretrained: str = ""

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of one block; GPT-2 has one for queries, keys and values."""
        width, queries, keys, inner = self.width, self.queries, self.keys, self.inner
        if self.family == "gpt2":
            attention = {"qkv": (width, queries + 2 * keys)}
        else:
            attention = {"q": (width, queries), "k": (width, keys), "v": (width, keys)}
        up = dict.fromkeys(("gate", "up") if self.gated else ("up",), (width, inner))
        return {**attention, "o": (queries, width), **up, "down": (inner, width)}

    @property
    def body(self) -> int:
        """Number of weights in the matrices of all blocks."""
        return self.layers * sum(one * other for one, other in self.matrices.values())

    @property
    def embedding(self) -> int:
        """Number of weights of the input embedding."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """Number of parameters, shared ones once."""
        norms = (1 if self.gated else 2) * self.width * (2 * self.layers + 1)
        embeddings = self.embedding * (1 if self.tied else 2) + self.positions * self.width
        return self.body + embeddings + norms + self.layers * self.biases

    def lora(self, rank: int, targets: Sequence[str] | None) -> tuple[int, int]:
        """Number of parameters of LoRA adapters, and of weights in the adapted matrices."""
        chosen = [
            size
            for kind, size in self.matrices.items()
            if targets is None or any(_names(target, kind) for target in targets)
        ] or list(self.matrices.values())
        adapters = sum(rank * (one + other) for one, other in chosen)
        return self.layers * adapters, self.layers * sum(one * other for one, other in chosen)


def _names(target: str, kind: str) -> bool:
    """Whether the end of a layer's name denotes a kind of matrix."""
    return target == kind or any(f".{target}".endswith(f".{end}") for end in NAMES[kind])


def of_config(config: Mapping[str, Any]) -> Shape:
    """Shape that a `config.json` describes; absent keys get the family's usual values."""
    # multimodal models nest the settings of their text model
    config = {**config, **(config.get("text_config") or {})}
    family = config.get("model_type", "gpt2")

    def get(*names: str, default: Any = None) -> Any:
        return next((config[name] for name in names if config.get(name) is not None), default)

    width = get("hidden_size", "n_embd", "d_model", default=768)
    heads = get("num_attention_heads", "n_head", "n_heads", "attention_heads", default=12)
    size = get("head_dim", default=width // heads)
    key_heads = get("num_key_value_heads", "num_kv_heads", default=heads)
    # Falcon and GPTBigCode; the larger Falcons have both settings, of which the first counts
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        key_heads = 1
    queries, keys = heads * size, key_heads * size
    gated = family in GATED or {"intermediate_size", "rms_norm_eps"} <= set(config)
    inner = get(
        "intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "dff", default=4 * width
    )
    learned = 0 if gated else get("n_positions", "max_position_embeddings", default=1024)
    biases = 0 if gated else queries + 2 * keys + width + inner + width
    if family == "qwen2":
        biases = queries + 2 * keys
    return Shape(
        family=family,
        layers=get("num_hidden_layers", "n_layer", "n_layers", "num_layers", default=12),
        width=width,
        heads=heads,
        keys=keys,
        queries=queries,
        inner=inner,
        gated=gated,
        vocabulary=get("vocab_size", default=GPT2_VOCABULARY),
        # OPT's table has two rows before the first position
        positions=learned + (2 if family == "opt" else 0),
        # published configurations of Gemma do not say it
        tied=get("tie_word_embeddings", default=not gated or family.startswith("gemma")),
        biases=biases,
        pretrained=pretrained_dtype(config),
    )


def of_scratch(shape: Mapping[str, Any], vocabulary: int) -> Shape:
    """Shape of a model trained from scratch, as given in the experiment."""
    return of_config(
        {
            "model_type": shape.get("architecture", "gpt2"),
            "n_embd": shape["width"],
            "n_layer": shape["layers"],
            "n_head": shape["heads"],
            "n_positions": shape["positions"],
            "vocab_size": vocabulary,
        }
    )


def estimated(parameters: int, vocabulary: int = GPT2_VOCABULARY, positions: int = 1024) -> Shape:
    """Shape of a GPT-2 with about this many parameters: the width, a multiple of 64, that comes nearest.

    GPT-2's own sizes are reproduced: 12, 24, 36 and 48 blocks of width 768, 1024, 1280 and 1600. Larger models get
    wider, not deeper.
    """

    def of_width(width: int) -> Shape:
        layers = max(width // 64, 12 * min(width - 512, 768) // 256, 12 * (width - 320) // 320)
        shape = {"width": width, "layers": min(48, layers), "heads": width // 64}
        return of_scratch({**shape, "positions": positions}, vocabulary)

    def distance(shape: Shape) -> float:
        return abs(math.log(shape.parameters / parameters))

    best = min(map(of_width, range(64, 32 * 1024, 64)), key=distance)
    return replace(best, estimated=True)


def config_of(folder: Path) -> Shape:
    """Shape of the model in a folder."""
    return of_config(read_json(folder / "config.json"))
