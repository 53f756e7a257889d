"""Check that a model has the tokenizer of the experiment, before anything is trained.

Losses compare the distributions of two models token by token, so a token id must mean the same text
for teacher and student. Padding of their embeddings beyond the last token does not matter.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from takd.runtime.errors import InputError, reason

# a source with at least one of these files has a tokenizer
FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt", "spiece.model")
# other files that `AutoTokenizer` reads
ALSO = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# settings that `from_pretrained` adds, or that name custom code; a saved tokenizer must not hold
# them, as it is loaded elsewhere and without custom code
OF_THE_READING = ("local_files_only", "is_local", "auto_map")
# texts that tokenizers with equal vocabularies may split differently: words, numbers, blanks, code,
# other scripts
TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "  def f(x):\n\treturn x ** 2  # naïve\n\n\n",
    "Zażółć gęślą jaźń; 日本語のテキスト; Привет; 😀",
    "1234567890 3.14159 1,000,000 2024-01-31",
    "I don't know--they'd've said so!!! ANTIDISESTABLISHMENTARIANISM",
)
CHAT_TEMPLATE = "chat_template.jinja"  # where tokenizer_config.json does not hold it
GENERATION = "generation_config.json"  # may name several end tokens
# key of tokenizer_config.json: ids that end a response beside the tokenizer's own end token
ALSO_END = "also_end"
PAD = re.compile(r"[^\w\s]+(pad|padding)[^\w\s]+", re.IGNORECASE)  # [PAD], <pad>, <|pad|>


def entries(tokenizer: Any) -> int:
    """Return the largest token id + 1: the embedding rows of a model that has all tokens."""
    return int(max(tokenizer.get_vocab().values())) + 1


def used_entries(tokenizer: Any) -> int:
    """Return the embedding rows that a model needs: `entries` without pad tokens at the end.

    Pad tokens occur in no text.
    """
    kept = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    return 1 + max(
        number
        for token, number in tokenizer.get_vocab().items()
        if number in kept or not (number == tokenizer.pad_token_id or PAD.fullmatch(token))
    )


def end_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids of all tokens that end a response; the first, the tokenizer's own, ends labels."""
    return tuple(dict.fromkeys((tokenizer.eos_token_id, *tokenizer.init_kwargs.get(ALSO_END, ()))))


def texts_of(tokenizer: Any, responses: Iterable[Sequence[int]]) -> list[str]:
    """Decode responses, without special tokens.

    Blanks before punctuation stay, which some tokenizers would leave out: then no response equals a
    reference that has them.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return tokenizer.batch_decode(list(responses), **options)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer without the settings that `from_pretrained` added."""
    for key in OF_THE_READING:
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)


def has_tokenizer(source: Path) -> bool:
    """Return whether a model's source (a folder or a GGUF file) includes a tokenizer."""
    return source.is_file() or any((source / name).is_file() for name in FILES)


def check_same_tokenizer(source: Path, folder: Path, name: str) -> str | None:
    """Compare the tokenizer of a model's source with the experiment's in `folder`.

    Returns:
        None if they agree, or the reason why the source's tokenizer cannot be read.

    Raises:
        InputError: they differ; the message names the first difference.
    """
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    ours = AutoTokenizer.from_pretrained(folder, **options)
    place = source
    if source.is_file():
        place, options["gguf_file"] = source.parent, source.name
    try:
        own = AutoTokenizer.from_pretrained(place, **options)
        # without the expected files, transformers returns an empty tokenizer instead of an error
        if not own("a", add_special_tokens=False).input_ids:
            return "it cannot encode the letter a"
    except Exception as error:  # each kind of tokenizer raises its own exceptions
        return f"reading it fails ({reason(error)})"
    if difference := first_difference(own, ours):
        raise InputError(
            f"model '{name}' comes with another tokenizer than the experiment's: {difference}; all models of an"
            " experiment share one tokenizer, since teacher and student are compared token by token."
        )
    return None


def first_difference(own: Any, ours: Any) -> str | None:
    """Describe the first token in which two tokenizers differ; None if they agree.

    Special tokens that only one tokenizer adds, and pad tokens, may differ.
    """
    theirs, mine = (
        {number: token for token, number in tokenizer.get_vocab().items()}
        for tokenizer in (own, ours)
    )
    for number in sorted(theirs.keys() | mine.keys()):
        there, here = theirs.get(number), mine.get(number)
        more = own if here is None else ours
        if there == here or (None in (there, here) and number in more.added_tokens_decoder):
            continue
        if all(token is None or PAD.fullmatch(token) for token in (there, here)):
            continue
        words = [f"is {token!r}" if token is not None else "is missing" for token in (there, here)]
        return f"token {number} {words[0]} there and {words[1]} here"
    # equal vocabularies may still merge and split differently: encode the text of each token and
    # some examples
    special = {*own.added_tokens_decoder, *ours.added_tokens_decoder}
    special |= {number for number, token in theirs.items() if PAD.fullmatch(token)}
    texts = [*TEXTS, *(own.decode([number]) for number in sorted(theirs.keys() - special))]
    read = [tokenizer(texts, add_special_tokens=False).input_ids for tokenizer in (own, ours)]
    for text, *ids in zip(texts, *read, strict=True):
        if ids[0] == ids[1]:
            continue
        pieces = own.convert_ids_to_tokens(ids[0]), ours.convert_ids_to_tokens(ids[1])
        for at, (there, here) in enumerate(zip_longest(*pieces), start=1):
            if there != here:
                return f"token {at} of the text {text!r} is {there!r} there and {here!r} here"
    return None
