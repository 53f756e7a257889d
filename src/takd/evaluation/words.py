"""Words of a text in any script.

The tokens of `rouge_score` are runs of a–z and 0–9: other letters separate them, and a text without any has no token.
Those here are the same for ASCII text; beyond it they are runs of letters, digits and marks of any script, single
characters of scripts that put no spaces between words, and symbols such as emoji.
"""

import unicodedata
from collections.abc import Sequence

import regex

TOKENIZERS = STANDARD, UNICODE = "standard", "unicode"
"""Names of the tokens of `rouge_score`, and of those here."""
AUTO = "auto"  # one of them, by the references
SHARE = 0.01  # of rows that the standard tokens tell little of, from which on the others are chosen

_UNSPACED = "".join(
    rf"\p{{Script={name}}}"
    for name in ("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar")
)
# the joiners U+200C and U+200D stand inside of words, of Persian and Hindi for two
_LETTERS = r"\p{L}\p{N}\p{M}\u200c\u200d"
_WORD = rf"[{_UNSPACED}]\p{{M}}*|[[{_LETTERS}]--[{_UNSPACED}]]+"
_TOKEN = regex.compile(rf"(?V1){_WORD}|[\p{{S}}--[\x00-\x7f]]")
_PIECE = regex.compile(
    rf"(?V1)[{_UNSPACED}]\p{{M}}*|[[{_LETTERS}_]--[{_UNSPACED}]]+|[^\s{_LETTERS}_]+"
)
_STANDARD = regex.compile("[a-z0-9]")


def tokens(text: str) -> list[str]:
    """Tokens of a text for ROUGE, in one case and one form of each character (NFKC)."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def pieces(text: str) -> list[str]:
    """Words and runs of punctuation as they stand; those of `nltk.wordpunct_tokenize` for ASCII text."""
    return _PIECE.findall(text)


def has_token(text: str, tokenizer: str) -> bool:
    """Whether a text has a token: one without scores 0 in ROUGE even against itself."""
    return bool(tokens(text) if tokenizer == UNICODE else _STANDARD.search(text.lower()))


def unseen(references: Sequence[str]) -> bool:
    """Whether the standard tokens tell little of a row: more than half of the tokens of each of its references hold
    none of a–z and 0–9. References without any token say nothing.
    """
    found = [of_text for text in references if (of_text := tokens(text))]
    return bool(found) and all(map(_mostly_unseen, found))


def choose(unseen_rows: int, rows: int) -> str:
    """The tokens for a set of so many rows, of which so many are `unseen`."""
    return UNICODE if unseen_rows and unseen_rows >= SHARE * rows else STANDARD


def suited(references: Sequence[str]) -> str:
    """The tokens for one row with these references."""
    return choose(int(unseen(references)), 1)


def _mostly_unseen(found: Sequence[str]) -> bool:
    return 2 * sum(not _STANDARD.search(token) for token in found) > len(found)
