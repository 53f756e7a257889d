"""Accuracy of final answers, such as the numbers of GSM8K (Cobbe et al., arXiv 2110.14168), found by a pattern."""

import re
from collections.abc import Sequence
from decimal import Decimal

_NUMBER = re.compile(r"[+-]?(\d[\d,]*(\.\d*)?|\.\d+)")


def final_answer(text: str, pattern: str) -> str | Decimal | None:
    """Find the answer in a text: the group of the pattern's last match, without blanks and periods at its ends.

    A number is returned as such, so that `1,200.00` equals `1200`; other text in lower case. None without a match.
    """
    found = [match[1] for match in re.finditer(pattern, text) if match[1] is not None]
    if not found:
        return None
    answer = found[-1].strip().rstrip(".").rstrip()
    if _NUMBER.fullmatch(answer):
        return Decimal(answer.replace(",", ""))
    return answer.casefold()


def answer_accuracy(text: str, references: Sequence[str], pattern: str) -> float:
    """Return 100 if the text's final answer is that of a reference, else 0.

    Args:
        pattern: regular expression with one group, the answer.
    """
    answer = final_answer(text, pattern)
    right = [final_answer(reference, pattern) for reference in references]
    return 100.0 * (answer is not None and answer in right)
