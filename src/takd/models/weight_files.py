"""Weight files and configurations that users provide: what their headers say, and checks.

Safetensors are read by their headers or tensor by tensor, so that models of any size can be
checked. Nothing here needs torch but the check of values.
"""

import json
import math
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from takd.runtime.errors import InputError, reason
from takd.runtime.files import AGAIN, foreign, read_json, read_json_object

WHOLE = "model.safetensors"
INDEX = f"{WHOLE}.index.json"
ADAPTER = "adapter_config.json"  # as peft writes it, beside weights of an adapter alone
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = f"{PICKLE}.index.json"
TOLERANCE = 0.25  # share by which the declared number of parameters may differ
LARGEST_HEADER = 100_000_000  # bytes, the limit of safetensors itself
VALUES_AT_ONCE = 2**24
# parts that DataParallel, torch.compile, FSDP and activation checkpointing add to tensor names
WRAPPERS = re.compile(
    r"^(?:module\.)+|(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# names in different model families of the longest text
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
# buffers (masks, tables) that older versions of GPT-2, GPT-NeoX and Llama saved with their weights
NO_WEIGHTS = (
    *(".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias"),
    ".inv_freq",
)
FITTING = "use a family such as gpt2, opt, llama, mistral or qwen2."


def safetensors_parameters(folder: Path) -> int | None:
    """Count the parameters in a model folder; None if its safetensors are missing or incomplete.

    Shared parameters count once, also where a tied output embedding was saved a second time.
    """
    try:
        config = read_json(folder / "config.json")
        files = {WHOLE}
        if not (folder / WHOLE).is_file():
            files = set(read_json(folder / INDEX)["weight_map"].values())
        shapes: dict[str, list[int]] = {}
        for name in files:
            with safe_open(folder / name, framework="np") as file:
                shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        if config.get("tie_word_embeddings", True) and len(shapes) > 1:
            shapes.pop("lm_head.weight", None)
        sizes = (math.prod(s) for key, s in shapes.items() if not key.endswith(NO_WEIGHTS))
        return sum(sizes) or None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, SafetensorError):
        return None  # the stage that reads the files reports the error


def positions(folder: Path) -> int | None:
    """Return the longest text that a model can read, by `config.json`; None without a limit."""
    try:
        config = read_json(folder / "config.json")
        config = config.get("text_config") or config
        return next((config[key] for key in POSITIONS if isinstance(config.get(key), int)), None)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def read_config(folder: Path, name: str) -> Any:
    """Read the configuration in a model's folder, and check that such a model is supported.

    Raises:
        InputError: `config.json` cannot be read, its type is unknown to transformers, or the model
            is quantised, has an encoder, or is no language model.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    path = folder / "config.json"
    settings = read_json_object(path, f"model '{name}'")
    kind = settings.get("model_type")
    if kind not in CONFIG_MAPPING:
        own = " and brings code of its own, which is not run" if "auto_map" in settings else ""
        raise InputError(
            f"model '{name}': {path} names the model_type {kind!r}, which the installed transformers does not"
            f" know{own}; {FITTING}"
        )
    if found := settings.get("quantization_config"):
        method = found.get("quant_method") if isinstance(found, dict) else None
        raise InputError(
            f"model '{name}': its weights are quantised ({method}), which training cannot start from; use the weights"
            " that they were made of, or dequantise them and save them again."
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each model family raises its own exceptions
        raise InputError(
            f"model '{name}': {path} is no configuration of a {kind} ({reason(error)}); {AGAIN}."
        ) from None
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        is_one = "does not continue a text token by token"
        if config.is_encoder_decoder:
            is_one = "has an encoder beside its decoder"
        raise InputError(
            f"model '{name}' is a {kind}, which {is_one}; use a decoder such as gpt2, opt, llama, mistral or qwen2."
        )
    return config


@contextmanager
def opened(path: Path, name: str) -> Iterator[Any]:
    """Open a safetensors file for reading.

    Raises:
        InputError: the file is incomplete or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"model '{name}': {path} {_damage(path, error)}.") from None


def index_of(folder: Path, index: str, name: str) -> tuple[dict[str, Any], list[str]]:
    """Read the index of a model's shards; return it and the names of the files that it lists.

    Raises:
        InputError: it cannot be read, or lists something that is no file beside it.
    """
    found = read_json_object(folder / index, f"model '{name}'")
    places = found.get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(shard, str) and shard == Path(shard).name for shard in places.values()
    ):
        raise InputError(
            f"model '{name}': {folder / index} has to give a file beside it for each tensor (weight_map); {AGAIN}."
        )
    return found, sorted(set(places.values()))


def tensor_names(files: Sequence[Path], name: str) -> list[str]:
    """Return the names of all tensors.

    Raises:
        InputError: as `opened`.
    """
    found: list[str] = []
    for path in files:
        with opened(path, name) as file:
            found += file.keys()
    return found


def check_finite(files: Sequence[Path], name: str, ignored: Collection[str] = ()) -> None:
    """Check that no weight is NaN or infinite.

    Tensors that the model does not use are `ignored`.

    Raises:
        InputError: as `opened`, and for the first tensor with such a value.
    """
    for path in files:
        with opened(path, name) as file:
            for key in sorted(set(file.keys()) - set(ignored)):
                tensor = file.get_tensor(key)
                if not tensor.is_floating_point():
                    continue
                pieces = tensor.reshape(-1).split(VALUES_AT_ONCE)
                if wrong := sum(int((~piece.float().isfinite()).sum()) for piece in pieces):
                    raise InputError(
                        f"model '{name}': {wrong} of {tensor.numel()} numbers of its tensor {key} are not finite (NaN"
                        f" or infinity; {path.resolve()}); fetch or export its weights again."
                    )


def unwrapped(key: str) -> str:
    """Remove prefixes that wrappers of a model add to tensor names: `module.`, `_orig_mod.`."""
    while (shorter := WRAPPERS.sub("", key)) != key:
        key = shorter
    return key


def copy_unwrapped(source: Path, target: Path) -> None:
    """Copy a safetensors file with `unwrapped` names; the data of the tensors stay unchanged.

    Only the header is made anew, so that no tensor has to fit into memory.
    """
    with open(source, "rb") as old, open(target, "wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        text = json.dumps({unwrapped(key): entry for key, entry in header.items()}).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8 bytes
        new.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(old, new, 2**24)


def _damage(path: Path, error: Exception) -> str:
    """Describe the damage of a file that is no valid safetensors file, and the remedy."""
    if isinstance(error, OSError) and not path.is_file():
        return f"is no file that can be read; {AGAIN}"
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(64)
        # the first 8 bytes, a length, may look like another format; byte 9 is the brace of the
        # header
        if start[8:9] != b"{" and (other := foreign(start)):
            return other
        length = int.from_bytes(start[:8], "little")
        if length + 8 > size or length > LARGEST_HEADER:
            return f"is no safetensors file, or has lost its end ({size} bytes are there); {AGAIN}"
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return f"has a header that is no safetensors header; {AGAIN}"
    if whole > size:
        return f"has {size} of its {whole} bytes; {AGAIN}"
    return f"is no valid safetensors file ({reason(error)}); {AGAIN}"
