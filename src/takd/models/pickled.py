"""Weights in pickled form, as older models on the Hub have them, rewritten as safetensors.

A pickle names functions that reading it calls. torch's `weights_only` calls none but those that
build tensors, and refuses any other; nothing else here opens a pickle.
"""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from takd.models.weight_files import INDEX, PICKLE_INDEX, WHOLE, index_of
from takd.runtime.digests import source_digest
from takd.runtime.errors import InputError, reason
from takd.runtime.files import AGAIN, foreign, write_json

CALLED = re.compile(r"GLOBAL ([\w.]+)")  # in torch's message


def convert(source: Path, files: Sequence[str], target: Path, name: str) -> dict[str, str]:
    """Write the pickled weights of a model as safetensors, one file at a time.

    Tensors keep their names and types. One that shares memory with another is written out itself,
    since safetensors holds no shared memory; the model's configuration says what is tied.

    Args:
        source: folder with the model.
        files: names of its weight files; the first may be their index.
        target: folder to make, with the configuration as a link.
        name: of the model, for messages.

    Returns:
        The sha256 of each pickled file by its name.

    Raises:
        InputError: a file is missing or damaged, asks for more than tensors, or holds anything else.
    """
    target.mkdir()
    if (source / "config.json").is_file():
        (target / "config.json").symlink_to((source / "config.json").resolve())
    in_shards = files[0] == PICKLE_INDEX
    shards = index_of(source, PICKLE_INDEX, name)[1] if in_shards else files
    read, places, size = {}, {}, 0
    for number, file in enumerate(shards, start=1):
        if not (source / file).is_file():
            raise InputError(f"model '{name}': its source lacks {file}; {AGAIN}.")
        written = f"model-{number:05}-of-{len(shards):05}.safetensors" if in_shards else WHOLE
        read[file] = source_digest(source / file)
        for key, tensor_size in _rewrite(source / file, target / written, name).items():
            if key in places:
                raise InputError(
                    f"model '{name}': {file} holds {key}, as a file before it does; {AGAIN}."
                )
            places[key] = written
            size += tensor_size
    if in_shards:
        write_json(target / INDEX, {"metadata": {"total_size": size}, "weight_map": places})
    return read


def _rewrite(source: Path, target: Path, name: str) -> dict[str, int]:
    """Write the tensors of one pickled file as safetensors; return the bytes of each."""
    from safetensors.torch import save_file

    tensors = _tensors(source, name)
    save_file(tensors, target, metadata={"format": "pt"})
    return {key: tensor.nbytes for key, tensor in tensors.items()}


def _tensors(path: Path, name: str) -> dict[str, Any]:
    """Read the tensors of one pickled file, contiguous and each with memory of its own."""
    import torch

    try:
        # files of torch before 1.6 are no archives and cannot be mapped into memory
        mapped = zipfile.is_zipfile(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # unpicklers raise anything
        if called := CALLED.search(str(error)):
            raise InputError(
                f"model '{name}': {path.resolve()} would call {called[1]} when it is read, which weights have no need"
                " for: it is refused and nothing of it was run; get these weights as safetensors, or from another"
                " source."
            ) from None
        with open(path, "rb") as file:
            start = file.read(64)
        what = "" if start.startswith((b"PK\x03\x04", b"\x80")) else foreign(start)
        what = what or f"is no file of weights that torch can read ({reason(error)}); {AGAIN}"
        raise InputError(f"model '{name}': {path.resolve()} {what}.") from None
    entries = found.items() if isinstance(found, dict) else [(type(found).__name__, None)]
    tensors: dict[str, Any] = {}
    seen = set()
    for key, value in entries:
        if not (isinstance(key, str) and isinstance(value, torch.Tensor) and _dense(value)):
            raise InputError(
                f"model '{name}': {path.resolve()} holds {key!r}, which is no dense tensor; save the model alone, with"
                " save_pretrained."
            )
        tensor = value.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[key] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return tensors


def _dense(tensor: Any) -> bool:
    import torch

    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
