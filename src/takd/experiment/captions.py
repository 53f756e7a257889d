"""Seeds and decoding in words, for captions and pages."""

import re
from typing import Any


def numbered(seeds: list[int], what: str) -> str:
    """Format a list of seeds with its length: `n = 2 training seeds (1, 2)`."""
    return f"n = {len(seeds)} {what}{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))})"


def decoding(settings: dict[str, Any]) -> str:
    """Describe the decoding settings in words."""
    words = ["greedy"]
    if settings["sample"]:
        words = [f"sampled at temperature {settings['temperature']}"]
        words.append(f"top-k {settings['top_k']}" if settings["top_k"] else "no top-k")
        words.append(f"top-p {settings['top_p']}" if settings["top_p"] < 1 else "no top-p")
    size = settings["no_repeat_ngram"]
    words.append(f"no {size}-gram twice" if size else "repeats allowed")
    if settings.get("max_new_tokens") is not None:
        words.append(f"at most {settings['max_new_tokens']} new tokens")
    return ", ".join(words)


def escape(text: str) -> str:
    """Escape the characters that reStructuredText reads as mark-up."""
    return re.sub(r"([\\*`_|<>])", r"\\\1", text)
