"""Stage: fetch the weights that a model starts from.

Inputs: `tokenizer` (manifest). Outputs: `model` (folder in Hugging Face format), `manifest`. Weights of the hub stay
in its cache and those of a folder where they are; `model` then holds links. A model from scratch is a `config.json`
alone, whose weights the training seed draws. This stage may need the internet: it runs on the login node.
"""

from pathlib import Path
from typing import Any

from takd.errors import InputError
from takd.provenance import file_digest
from takd.stage import Stage, read_json

FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json")
TOLERANCE = 0.25


def run(stage: Stage) -> None:
    """Fetch or describe the weights and check that they are what the experiment says.

    Raises:
        InputError: no safetensors in the source, or another number of parameters than declared.
    """
    name, weights = stage.spec["model"], stage.spec["weights"]
    target = stage.temporary(stage.outputs["model"])
    if "scratch" in weights:
        _from_scratch(weights["scratch"], read_json(stage.input("tokenizer")), target)
        facts = {"parameters": stage.spec["parameters"]}
    else:
        if "gguf" in weights:
            _from_gguf(Path(weights["gguf"]), target)
        elif "hub" in weights:
            _link(_from_hub(weights), target)
        else:
            _link(Path(weights["folder"]), target)
        if not any(target.glob("*.safetensors")):
            raise InputError(
                f"model '{name}': its source holds no model*.safetensors; convert its weights"
                " (save_pretrained does so), since other formats run code when they are read."
            )
        facts = {"parameters": _parameters(target)}
        declared = stage.spec["parameters"]
        if abs(facts["parameters"] / declared - 1) > TOLERANCE:
            raise InputError(
                f"model '{name}' is declared with {declared:.3g} parameters, but its weights have"
                f" {facts['parameters']:.3g}; correct `parameters` or the source."
            )
    stage.commit(stage.outputs["model"])
    files = sorted(stage.outputs["model"].iterdir())
    stage.write_manifest(
        stage.outputs["manifest"],
        kind="base",
        model=name,
        files={path.name: file_digest(path) for path in files},
        **facts,
    )


def _link(source: Path, target: Path) -> None:
    """Links to a model's files; the weights are too large to copy."""
    for pattern in FILES:
        for file in sorted(source.glob(pattern)):
            (target / file.name).symlink_to(file.resolve())


def _from_hub(weights: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(weights["hub"], revision=weights["revision"], allow_patterns=list(FILES))
    )


def _from_gguf(path: Path, target: Path) -> None:
    """Dequantise a GGUF file; the model that transformers makes of it cannot be saved itself."""
    from transformers import AutoModelForCausalLM

    source = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    config = source.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
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


def _parameters(folder: Path) -> int:
    """Number of parameters, without loading them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())
