"""Tokenizers that are made here: trained on the training rows, or of given words."""

from pathlib import Path
from typing import Any

from takd.data import sources
from takd.data import template as templates
from takd.data.template import Template, fill
from takd.runtime.errors import InputError
from takd.runtime.files import write_json

END, PAD = "<|endoftext|>", "<|pad|>"


def train(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train a byte-level BPE tokenizer on the training rows, prompts in their template and answers."""
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
    filled = ([fill(spec["template"], row.instruction, row.input), *row.references] for row in rows)
    tokenizer.train_from_iterator(filled, trainer)
    size = tokenizer.get_vocab_size()
    if size != wanted:
        raise InputError(
            f"tokenizer.train.vocabulary is {wanted}, but the training rows give {size} tokens;"
            f" set a number from 258 to {size}."
        )
    return _saved(tokenizer, folder, PAD, spec["template"])


def of_words(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make a tokenizer of words between blanks.

    Other words become the end token, so that data with them is refused.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokens = [*spec["source"]["words"], END]
    numbers = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([END])
    return _saved(tokenizer, folder, END, spec["template"])


def _saved(tokenizer: Any, folder: Path, pad: str, template: Template) -> dict[str, Any]:
    """Save a tokenizer that was made here; return its facts for the manifest."""
    tokenizer.save(str(folder / "tokenizer.json"))
    # read by transformers; written by hand, since importing transformers takes seconds
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": pad,
        "clean_up_tokenization_spaces": False,
        "chat_template": templates.as_chat_template(template, ""),
    }
    write_json(folder / "tokenizer_config.json", settings)
    ids = {"end": tokenizer.token_to_id(END), "pad": tokenizer.token_to_id(pad)}
    return {"vocabulary": tokenizer.get_vocab_size(), **ids, "begin": []}


MADE = {"train": train, "words": of_words}
"""By the key of the experiment's `tokenizer`: functions of the stage's settings and a folder, which return facts."""
