"""The tokenizer stage: one tokenizer for all models of an experiment, as a folder.

Inputs: none. Outputs: `tokenizer` (folder for `AutoTokenizer.from_pretrained`), `manifest`.
"""

from pathlib import Path
from typing import Any

from takd.data import sources
from takd.data.template import fill
from takd.errors import InputError
from takd.provenance import folder_digest
from takd.stage import Stage, write_json
from takd.vocabulary import ALSO, FILES, entries
from takd.weight_files import read_json_object, reason

END, PAD = "<|endoftext|>", "<|pad|>"


def run(stage: Stage) -> None:
    """Read or train the tokenizer, write it, and say what it is in the manifest.

    The manifest has `vocabulary` (the largest id + 1), `end` and `pad` (ids; a tokenizer without a pad token gets
    its end token as such, since masks go by length), and `begin` (ids that it sets before a text of its own).

    Raises:
        InputError: a tokenizer that cannot be read, is empty, or has no end token or no fast implementation; another
            vocabulary than declared; a training text too small for it.
    """
    source = stage.spec["source"]
    folder = stage.temporary(stage.outputs["tokenizer"])
    facts = _train(stage.spec, folder) if "train" in source else _convert(source, folder)
    digest = folder_digest(folder)
    stage.commit(stage.outputs["tokenizer"])
    stage.write_manifest(stage.outputs["manifest"], kind="tokenizer", sha256=digest, **facts)
    stage.say(f"tokenizer: {facts['vocabulary']} tokens")


def _train(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A byte-level BPE of the training rows, prompts in their template and answers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    wanted = spec["source"]["train"]["vocabulary"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=wanted,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rows = sources.rows(spec["text"])
    parts = (
        text
        for row in rows
        for text in (fill(spec["template"], row.instruction, row.input), *row.references)
    )
    tokenizer.train_from_iterator(parts, trainer)
    size = tokenizer.get_vocab_size()
    if size != wanted:
        raise InputError(
            f"tokenizer.train.vocabulary is {wanted}, but the training rows give {size} tokens;"
            f" set a number from 258 to {size}."
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    # what transformers reads beside it; written by hand, since importing transformers takes seconds
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
    end, pad = (tokenizer.token_to_id(token) for token in (END, PAD))
    return {"vocabulary": size, "end": end, "pad": pad, "begin": []}


def _convert(source: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A tokenizer of the hub, a folder or a GGUF file, in the format of a folder."""
    from transformers import AutoTokenizer

    place, options = _place(source)
    name = source.get("gguf", place)
    for file in (*FILES, *ALSO):
        if "folder" in source and file.endswith(".json") and (Path(place) / file).exists():
            read_json_object(Path(place) / file, f"tokenizer {name}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
    except ImportError as error:
        package = error.name or "a package that transformers names in its message"
        raise InputError(f"tokenizer {name}: reading it needs {package}; install it.") from error
    except Exception as error:  # the hub, parsers and each kind of tokenizer: no base of their own
        raise InputError(
            f"tokenizer {name} cannot be read ({reason(error)}); see that its name is right and its files are whole."
        ) from error
    if not tokenizer.is_fast:
        raise InputError(f"tokenizer {name} has no fast implementation (tokenizer.json).")
    plain = tokenizer("a", add_special_tokens=False).input_ids
    # transformers gives an empty tokenizer, not an error, where it does not find the files it expects
    if not plain or str(tokenizer.decode(plain)).strip() != "a":
        raise InputError(
            f"tokenizer {name} is empty: it cannot encode the letter a; the folder has to hold tokenizer.json,"
            " or vocab.json and merges.txt beside a config.json with the model's type."
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"tokenizer {name} has no end-of-text token; name it as eos_token in tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    vocabulary, declared = entries(tokenizer), source.get("vocabulary")
    if declared not in (None, vocabulary):
        raise InputError(
            f"tokenizer.vocabulary is {declared}, but the largest id of tokenizer {name} is {vocabulary - 1}, counted"
            f" from 0; set {vocabulary}, or leave it out where no model starts from scratch."
        )
    marked = tokenizer("a", add_special_tokens=True).input_ids
    starts = [i for i in range(len(marked)) if marked[i : i + len(plain)] == plain]
    if not starts:
        raise InputError(
            f"tokenizer {name} splits a text otherwise when it adds its special tokens; correct its tokenizer.json."
        )
    tokenizer.save_pretrained(folder)
    return {
        "vocabulary": vocabulary,
        "end": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "begin": marked[: starts[0]],
    }


def _place(source: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes: a name on the hub or a folder, and options."""
    if "hub" in source:
        return source["hub"], {"revision": source.get("revision")}
    sources.check_unchanged(source)
    path = Path(source.get("folder") or source["gguf"])
    if not path.exists():
        raise InputError(f"tokenizer {path}: no such file or folder.")
    if "gguf" in source:
        return str(path.parent), {"gguf_file": path.name, "local_files_only": True}
    return str(path), {"local_files_only": True}
