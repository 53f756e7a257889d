"""Foreign text in Markdown: read as it stands, whatever it holds."""

import html
import re

from takd.report.pages import visible


def plain(text: object) -> str:
    """Text within a line or a cell of a table, never at the start of a line: no mark-up, no HTML, no line breaks."""
    line = " ".join(visible(str(text)).split())
    # HTML first: its entities hold characters that Markdown knows
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(line, quote=False))


def code(text: object) -> str:
    """Text as code in a line or a cell of a table."""
    line = " ".join(visible(str(text)).split())
    ticks = "`" * (1 + _longest(line))
    # a bar ends a cell even in code, unless it is escaped
    line = line.replace("|", "\\|")
    return f"{ticks} {line} {ticks}" if "`" in line or not line else f"{ticks}{line}{ticks}"


def fence(text: str, language: str = "text") -> str:
    """Text as a block of code."""
    ticks = "`" * max(3, 1 + _longest(text))
    return f"{ticks}{language}\n{visible(text)}\n{ticks}"


def _longest(text: str) -> int:
    """Length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
