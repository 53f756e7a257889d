"""Text to token ids, with the tokenizer that the tokenizer stage wrote.

Uses `tokenizers` alone: importing transformers would take longer than tokenising the demo's data.
"""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from takd.errors import InputError
from takd.stage import read_json


class Encoder:
    """A tokenizer that reads special tokens in the text as plain characters.

    Data may hold "<|endoftext|>" and the like. Only this class puts special tokens in: what the tokenizer sets
    before every text (for some families a begin token) before prompts, and the end token after responses.
    """

    def __init__(self, manifest: Path) -> None:
        """Read the tokenizer beside a manifest of the tokenizer stage."""
        described = read_json(manifest)
        self.end: int = described["end"]
        self.begin: list[int] = described["begin"]
        self._tokenizer = Tokenizer.from_file(str(manifest.parent / "tokenizer/tokenizer.json"))
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt."""
        return [[*self.begin, *ids] for ids in self._encode(texts)]

    def responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each response or document, with the end token."""
        return [[*ids, self.end] for ids in self._encode(texts)]

    def rewritten(self, texts: Sequence[str]) -> list[str]:
        """Each text as its tokens are read, which is how a model's answers are."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return self._tokenizer.decode_batch([encoding.ids for encoding in encodings])

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        found = [encoding.ids for encoding in encodings]
        for text, ids in zip(texts, found, strict=True):
            if self.end in ids:
                raise InputError(
                    f"this tokenizer reads its end token out of the text {text[:60]!r}...;"
                    " remove what spells it from the data."
                )
        return found
