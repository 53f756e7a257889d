"""Stage: fetch the weights that a model starts from, and check them against the experiment.

Inputs: `tokenizer` (manifest). Outputs: `model` (folder in Hugging Face format), `manifest`. Where the settings name
a `lineage`, the model is taken as it is: the tokenizer lies beside the weights, and the manifest is one of a model.
Weights from the hub stay in its cache and weights of a local folder stay there; `model` then holds
links. Pickled weights and those of GGUF files are written there as safetensors. A model from scratch
is a `config.json` alone, and its weights are drawn with the training seed. This stage may need the
internet, so it runs on the login node.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from takd.models.hub import fetch_model, weight_files
from takd.models.layer_dropping import keep_layers
from takd.models.pickled import convert
from takd.models.precision import PRETRAINED
from takd.models.tokenizer_check import ALSO, FILES, check_same_tokenizer, has_tokenizer
from takd.models.weight_files import (
    ADAPTER,
    INDEX,
    PICKLE,
    PICKLE_INDEX,
    TOLERANCE,
    WHOLE,
    check_finite,
    copy_unwrapped,
    index_of,
    read_config,
    tensor_names,
    unwrapped,
)
from takd.runtime.digests import source_digest
from takd.runtime.errors import InputError, reason
from takd.runtime.files import AGAIN, check_unchanged, read_json, write_json
from takd.runtime.records import LAST_WRITTEN, DamagedError, read_record
from takd.runtime.stage import Stage

KNOWN_BY_CONTENT = ("weights", "parameters", "max_length")
"""Settings that the digests of the result identify already, or that are only checked."""


def run(stage: Stage) -> None:
    """Fetch, create or describe the weights, and check them.

    Raises:
        InputError: weights are missing, incomplete or damaged, or a pickle of more than tensors;
            weights are not finite; the model is of an unsupported kind; its parameter count or its
            tokenizer is not that of the experiment; or it has too few positions for the
            experiment's texts.
    """
    # otherwise DeepSpeed, which transformers imports, warns on the console about a missing GPU
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    name, weights = stage.spec["model"], stage.spec["weights"]
    target = stage.temporary(stage.outputs["model"])
    if "scratch" in weights:
        _from_scratch(weights["scratch"], read_json(stage.input("tokenizer")), target)
        facts: dict[str, Any] = {"parameters": stage.spec["parameters"]}
    else:
        facts = _from_source(stage, name, weights, target)
    facts |= {"kind": "base", "model": name}
    if "lineage" in stage.spec:
        tokenizer = stage.input("tokenizer").parent / "tokenizer"
        shutil.copytree(tokenizer, target, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
        facts |= {key: stage.spec[key] for key in ("lineage", "seed", "method")}
        facts |= {"kind": "model", "steps": 0, "best": {}, **_origin(weights)}
    stage.commit(stage.outputs["model"])
    stage.write_manifest(stage.outputs["manifest"], None, KNOWN_BY_CONTENT, **facts)


def _from_source(stage: Stage, name: str, weights: dict[str, Any], target: Path) -> dict[str, Any]:
    """Put weights from the hub, a folder or a GGUF file into `target`; return manifest facts."""
    if "hub" in weights:
        source = fetch_model(weights["hub"], weights["revision"])
    else:
        source = Path(weights.get("folder") or weights["gguf"])
    if not source.exists():
        raise InputError(f"model '{name}': {source} does not exist.")
    check_unchanged(weights)
    if (source / ADAPTER).is_file():
        raise InputError(
            f"model '{name}': its source holds an adapter ({ADAPTER}), which is not read; merge it into its model"
            " (merge_and_unload), and name the folder where that is saved."
        )
    tokenizer = stage.input("tokenizer").parent / "tokenizer"
    facts: dict[str, Any] = {"tokenizer": "none"}
    if has_tokenizer(source):
        unread = check_same_tokenizer(source, tokenizer, name)
        facts["tokenizer"] = "unread" if unread else "equal"
        if unread:
            stage.say(f"model '{name}': its own tokenizer was not compared, as {unread}")
    kept = weights.get("keep_layers")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        # where layers are dropped, the whole model goes into a temporary folder first
        whole = target if kept is None else Path(folder)
        files = weight_files(path.name for path in source.iterdir()) if source.is_dir() else []
        if "gguf" in weights:
            _from_gguf(source, whole, name)
        elif files and files[0] in (PICKLE, PICKLE_INDEX):
            read_config(source, name)  # before minutes of reading and writing
            converted = Path(folder) / "converted"
            stage.say(f"model '{name}': its weights are pickled; they are rewritten as safetensors")
            facts["pickled"] = convert(source, files, converted, name)
            _link(converted, whole, name, moved=True)
        else:
            _link(source, whole, name)
        if kept is not None:
            facts["layers"] = keep_layers(whole, target, kept, name)
    facts["parameters"] = _checked(target, tokenizer, stage.spec["max_length"], name)
    declared = stage.spec["parameters"]
    if abs(facts["parameters"] / declared - 1) > TOLERANCE:
        raise InputError(
            f"model '{name}' is declared with {declared:.3g} parameters, but its weights have"
            f" {facts['parameters']:.3g}; correct `parameters` or the source."
        )
    return facts


def weights_digests(folder: Path) -> list[list[str]]:
    """Return name and sha256 of each file of a model folder that this stage reads.

    Empty if there is no folder. For a folder that this workflow wrote, the digests are taken from
    its record.
    """
    wanted = ("config.json", "*.safetensors", INDEX, *FILES, *ALSO)
    files = {p.name: p for pattern in wanted for p in folder.glob(pattern) if p.is_file()}
    if not any(name.endswith(".safetensors") for name in files):
        files |= {p.name: p for p in folder.glob(f"{Path(PICKLE).stem}*.bin*") if p.is_file()}
    said = _recorded(folder)
    return [[name, said.get(name) or source_digest(files[name])] for name in sorted(files)]


def _recorded(folder: Path) -> dict[str, str]:
    """Digests by name of a folder's files in the record beside it; empty if that is damaged."""
    try:
        files = read_record(folder.parent / LAST_WRITTEN[0])["files"]
    except DamagedError:
        return {}
    return {name.removeprefix(f"{folder.name}/"): digest for name, digest in files.items()}


def _origin(weights: dict[str, Any]) -> dict[str, Any]:
    """Say which training of this workflow made the weights; empty if none is recorded beside them."""
    try:
        record = read_record(Path(weights["folder"]).parent / LAST_WRITTEN[0])
        return {"origin": {key: record[key] for key in ("lineage", "seed", "digest")}}
    except (DamagedError, KeyError):
        return {}


def relink(model: Path, weights: Mapping[str, Any]) -> bool:
    """Point the links of a finished base model at the new location of its weights.

    Moving weights reruns no stage, so links to the old location must be replaced here: those in the
    folder `model`, by its settings `weights`. Return whether any link was changed.
    """
    # an unfinished or damaged record has no files: the stage or its readers report that
    files, known = _recorded(model), dict(map(tuple, weights["sha256"]))
    changed = False
    for link in model.iterdir() if model.is_dir() else ():
        target = (Path(weights["folder"]) / link.name).resolve()
        equal = files.get(link.name) == known.get(link.name, "")
        if link.is_symlink() and link.resolve() != target and equal:
            partial = link.with_name(f".{link.name}.partial")
            partial.unlink(missing_ok=True)
            partial.symlink_to(target)
            partial.replace(link)
            changed = True
    return changed


def _link(source: Path, target: Path, name: str, moved: bool = False) -> None:
    """Link to a model's files, too large to copy; copy those whose tensors must be renamed.

    Files of a temporary `source` are `moved` instead.
    """
    index: dict[str, Any] = {}
    if (source / WHOLE).is_file():
        files = [source / WHOLE]
    elif (source / INDEX).is_file():
        index, shards = index_of(source, INDEX, name)
        files = [source / shard for shard in shards]
    else:
        raise InputError(
            f"model '{name}': its source holds neither {WHOLE} nor {INDEX}, nor the same in pickled form ({PICKLE});"
            " convert its weights (save_pretrained does so)."
        )
    config = source / "config.json"
    if lacking := next((file for file in (config, *files) if not file.is_file()), None):
        raise InputError(f"model '{name}': its source lacks {lacking.name}; {AGAIN}.")
    read_config(source, name)
    keys = tensor_names(files, name)
    names: dict[str, str] = {}
    for key in keys:
        if (other := names.setdefault(unwrapped(key), key)) != key:
            raise InputError(
                f"model '{name}': its source holds the same tensor as {other} and as {key}; save it again without the"
                " wrapper that names it so."
            )
    (target / config.name).symlink_to(config.resolve())
    wrapped = names.keys() != set(keys)
    for file in files:
        if wrapped:
            copy_unwrapped(file, target / file.name)
        elif moved:
            file.replace(target / file.name)
        else:
            (target / file.name).symlink_to(file.resolve())
    if index and wrapped:
        places = {unwrapped(key): shard for key, shard in index["weight_map"].items()}
        write_json(target / INDEX, {**index, "weight_map": places})
    elif index and moved:
        (source / INDEX).replace(target / INDEX)
    elif index:
        (target / INDEX).symlink_to((source / INDEX).resolve())


def _from_gguf(path: Path, target: Path, name: str) -> None:
    """Dequantise a GGUF file and write its weights as safetensors."""
    from transformers import AutoModelForCausalLM

    try:
        source = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # libraries raise errors without a common base
        raise InputError(
            f"model '{name}': {path} cannot be read as GGUF ({reason(error)}); fetch it again, or use safetensors of"
            " the same model."
        ) from None
    config = source.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    # a GGUF file does not record the pretraining dtype; bfloat16 is the most common, and the safe
    # choice, as `resolve` then uses fp32 on GPUs without bfloat16
    setattr(config, PRETRAINED, "bfloat16")
    model.load_state_dict(source.state_dict())
    model.tie_weights()
    model.save_pretrained(target)


def _from_scratch(shape: dict[str, Any], tokenizer: dict[str, Any], target: Path) -> None:
    from transformers import GPT2Config

    config = GPT2Config(
        architectures=["GPT2LMHeadModel"],
        vocab_size=tokenizer["vocabulary"],
        n_layer=shape["layers"],
        n_embd=shape["width"],
        n_head=shape["heads"],
        n_positions=shape["positions"],
        bos_token_id=tokenizer["end"],
        eos_token_id=tokenizer["end"],
        pad_token_id=tokenizer["pad"],
    )
    config.save_pretrained(target)


def _checked(folder: Path, tokenizer: Path, max_length: int, name: str) -> int:
    """Check names, shapes, sizes and values, tensor by tensor; return the parameter count."""
    from transformers import AutoModelForCausalLM

    from takd.models.causal_lm import LOCAL, check_vocabulary, load_tokenizer

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,
            **LOCAL,
        )
    except Exception as error:  # each model family raises its own exceptions
        raise InputError(
            f"model '{name}' cannot be built from its config.json ({reason(error)}); {AGAIN}, weights and config.json"
            " of one model."
        ) from None
    model, found = loaded
    wrong = sorted(str(key) for key in found["mismatched_keys"]) or sorted(found["missing_keys"])
    if wrong:
        raise InputError(
            f"model '{name}': its safetensors lack {wrong[0]}, or have it in another shape, and"
            f" {len(wrong) - 1} others that a {model.config.model_type} of its config.json has; fetch or convert it"
            " again."
        )
    check_vocabulary(model, load_tokenizer(tokenizer), name)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and positions < max_length:
        raise InputError(
            f"model '{name}' has {positions} positions, but data.max_length is {max_length}; set at most {positions}."
        )
    check_finite(sorted(folder.glob("*.safetensors")), name, ignored=found["unexpected_keys"])
    # a tied output embedding that was saved a second time counts once; loading ties it, if it is equal
    model.tie_weights()
    return model.num_parameters()
