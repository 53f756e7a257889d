"""Escaping of arbitrary text for Markdown."""

import html
import re

from takd.pages.environment import visible


def plain(text: object) -> str:
    """Escape text within a line or table cell (not at the start of a line): no mark-up, HTML or line breaks."""
    line = " ".join(visible(str(text)).split())
    # HTML first: its entities contain characters that have a meaning in Markdown
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(line, quote=False))


def code(text: object) -> str:
    """Format text as code in a line or a table cell."""
    line = " ".join(visible(str(text)).split())
    ticks = "`" * (1 + _longest(line))
    # an unescaped bar ends a cell even inside code
    line = line.replace("|", "\\|")
    return f"{ticks} {line} {ticks}" if "`" in line or not line else f"{ticks}{line}{ticks}"


def fence(text: str, language: str = "text") -> str:
    """Format text as a code block."""
    ticks = "`" * max(3, 1 + _longest(text))
    return f"{ticks}{language}\n{visible(text)}\n{ticks}"


def _longest(text: str) -> int:
    """Length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
