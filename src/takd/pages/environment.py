"""Templates of all pages, which have one style and load nothing external."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from takd.pages import svg

TEMPLATES = Path(__file__).parent / "templates"
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but for tab and new line, marks that turn the direction of writing, lone surrogates."""


def environment(templates: Path = TEMPLATES, autoescape: bool = True, **more: Any) -> Environment:
    """Return an environment, for HTML unless `autoescape` is off, with the filters that all pages use."""
    made = Environment(
        loader=FileSystemLoader(templates),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **more,
    )
    made.filters |= {"visible": visible, "inline": svg.inline, "thousands": thousands}
    return made


def visible(text: str) -> str:
    """Replace characters that HTML cannot hold (control characters, lone surrogates) by visible ones."""
    return HIDDEN.sub(lambda found: _visible(ord(found[0])), text)


def _visible(code: int) -> str:
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def thousands(value: float, digits: int = 0) -> str:
    """Format a number in groups of three digits."""
    return f"{value:,.{digits}f}".replace(",", "\u202f")
