"""Texts that pages and model cards share."""

import json
from collections.abc import Iterable
from typing import Any

from takd.methods.registry import METHODS, REPLICATED
from takd.runtime.digests import leaves


def listed(items: Iterable[Any]) -> str:
    """Join items: `a, b and c`."""
    *most, last = map(str, items)
    return f"{', '.join(most)} and {last}" if most else last


def counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def p_text(p: float | None) -> str:
    """Format a p value with no-break spaces: `p = 0.012`, `p < 0.001`."""
    if p is None:
        return "no p"
    text = "p < 0.001" if p < 0.001 else f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.3f}"
    return text.replace(" ", "\u00a0")


def flat(settings: dict[str, Any]) -> dict[str, str]:
    """Flatten nested settings: `{"a": {"b": 1}}` gives `{"a.b": "1"}`."""
    return {key: plain(value) for key, value in leaves(settings).items()}


def plain(value: Any) -> str:
    """Format a setting's value as in an experiment file."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


PAPERS = (
    f"{METHODS[REPLICATED].citation}\n"
    + """\
@inproceedings{mirzadeh2020improved,
  title         = {Improved Knowledge Distillation via Teacher Assistant},
  author        = {Mirzadeh, Seyed Iman and Farajtabar, Mehrdad and Li, Ang and Levine, Nir
                   and Matsukawa, Akihiro and Ghasemzadeh, Hassan},
  booktitle     = {AAAI Conference on Artificial Intelligence},
  volume        = {34},
  number        = {4},
  pages         = {5191--5198},
  year          = {2020},
  eprint        = {1902.03393},
  archiveprefix = {arXiv}
}
"""
)
"""BibTeX entries of the papers whose methods this is."""
