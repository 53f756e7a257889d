"""Words of a text in any script.

The tokens of `rouge_score` are runs of a–z and 0–9; other letters separate them, so a text without
any has no tokens. The tokens here are the same for ASCII text. Beyond it they are runs of letters,
digits and marks of any script, single characters of scripts without spaces between words, and
symbols such as emoji.
"""

import unicodedata
from collections.abc import Sequence

import regex

TOKENIZERS = STANDARD, UNICODE = "standard", "unicode"  # tokens of `rouge_score`, and those here
AUTO = "auto"  # chooses one of them by the references
SHARE = 0.01  # share of `unseen` rows from which on the unicode tokenizer is chosen

_UNSPACED = "".join(
    rf"\p{{Script={name}}}"
    for name in ("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar")
)
# the joiners U+200C and U+200D are part of words, for example in Persian and Hindi
_LETTERS = r"\p{L}\p{N}\p{M}\u200c\u200d"
_WORD = rf"[{_UNSPACED}]\p{{M}}*|[[{_LETTERS}]--[{_UNSPACED}]]+"
_TOKEN = regex.compile(rf"(?V1){_WORD}|[\p{{S}}--[\x00-\x7f]]")
_PIECE = regex.compile(
    rf"(?V1)[{_UNSPACED}]\p{{M}}*|[[{_LETTERS}_]--[{_UNSPACED}]]+|[^\s{_LETTERS}_]+"
)
_STANDARD = regex.compile("[a-z0-9]")


def tokens(text: str) -> list[str]:
    """Split a text into tokens for ROUGE, in lower case and normalised with NFKC."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def pieces(text: str) -> list[str]:
    """Split a text into words and punctuation; for ASCII text as `nltk.wordpunct_tokenize`."""
    return _PIECE.findall(text)


def has_token(text: str, tokenizer: str) -> bool:
    """Return whether a text has a token; texts without one score 0 even against themselves."""
    return bool(tokens(text) if tokenizer == UNICODE else _STANDARD.search(text.lower()))


def unseen(references: Sequence[str]) -> bool:
    """Return whether the standard tokenizer ignores more than half of the tokens of each reference.

    Tokens without any of a–z and 0–9 count as ignored. References without tokens are left out.
    """
    found = [of_text for text in references if (of_text := tokens(text))]
    return bool(found) and all(map(_mostly_unseen, found))


def choose(unseen_rows: int, rows: int) -> str:
    """Choose the tokenizer for a set, from its number of rows and of `unseen` rows."""
    return UNICODE if unseen_rows and unseen_rows >= SHARE * rows else STANDARD


def suited(references: Sequence[str]) -> str:
    """Choose the tokenizer for one row with these references."""
    return choose(int(unseen(references)), 1)


def _mostly_unseen(found: Sequence[str]) -> bool:
    return 2 * sum(not _STANDARD.search(token) for token in found) > len(found)
