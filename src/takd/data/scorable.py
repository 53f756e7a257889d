"""Check that the measures can score the references of an evaluation set; docs/measures.md.

Each reference is scored against itself before a model is trained. One that scores 0, or that no answer can equal, does
not distinguish models; if all are like that, selecting weights by ROUGE-L is random.
"""

from collections.abc import Sequence
from typing import Any

from takd.data.row import Counts
from takd.metrics import words


class Scorable(Counts):
    """Counts of rows that ROUGE-L or exact match cannot score, with the numbers of the first ones.

    A row counts if this holds for all its references, since the score is the best over them.
    """

    def __init__(self) -> None:
        without = (f"scores_0_with_{name}" for name in words.TOKENIZERS)
        super().__init__("unseen_by_standard", *without, "changed")
        self.rows = 0

    def see(self, number: int, references: Sequence[str], rewritten: Sequence[str]) -> None:
        """Add a row.

        Args:
            number: of the row in its source.
            references: of the row.
            rewritten: each of them encoded and decoded, like a model's answers.
        """
        self.rows += 1
        if words.unseen(references):
            self.count("unseen_by_standard", number)
        for name in words.TOKENIZERS:
            if not any(words.has_token(text, name) for text in references):
                self.count(f"scores_0_with_{name}", number)
        if not any(a.strip() == b.strip() for a, b in zip(rewritten, references, strict=True)):
            self.count("changed", number)

    def choose(self, setting: str) -> str:
        """ROUGE-L tokenizer for the whole set: the setting, or for "auto" one chosen by the references."""
        if setting != words.AUTO:
            return setting
        return words.choose(self.counts["unseen_by_standard"], self.rows)

    def record(self) -> dict[str, Any]:
        """Entry for the manifest and the data report."""
        return {"rows": self.rows, "counts": dict(self.counts), "named": self.named}

    def sentences(self, tokenizer: str) -> list[str]:
        """Warnings for the user, with remedies, where ROUGE-L uses this tokenizer."""
        said = []
        if self.counts["unseen_by_standard"]:
            then = ", so that it tells little of them: set evaluation.rouge_tokenizer: unicode"
            if tokenizer == words.UNICODE:
                then = ": tokens are `unicode` for this set; its scores do not compare with standard ones"
            said.append(
                f"{self._some('unseen_by_standard')} are mostly of letters that the standard tokens of ROUGE-L (a to z,"
                f" 0 to 9) leave out{then}"
            )
        without = f"scores_0_with_{tokenizer}"
        if self.counts[without]:
            said.append(
                f"{self._some(without)} have no token, so that ROUGE-L is 0 even for the references themselves: write"
                " them in words, or go by exact match and loss"
            )
        if self.counts["changed"]:
            said.append(
                f"{self._some('changed')} are changed by the tokenizer, so that no answer matches them exactly: take a"
                " tokenizer that keeps text as it is, or go by ROUGE-L"
            )
        return said

    def _some(self, what: str) -> str:
        count, first = self.counts[what], ", ".join(map(str, self.named[what][:3]))
        rows = f"row{'s' if count > 1 else ''} {first}{' ...' if count > 3 else ''}"
        return f"the references of {count} of {self.rows} rows ({rows})"
