"""Names of chains, methods and models as people read them."""

import re
from collections.abc import Mapping

from takd.experiment.lineage import SUPERVISED, split

_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def chain_text(lineage: str) -> str:
    """Format a chain: `teacher → assistant → student`."""
    return " → ".join(hop.model for hop in split(lineage))


def methods_text(lineage: str) -> str:
    """List the methods of the hops after the teacher, once if all are the same; `sft` for a supervised model."""
    methods = [hop.method for hop in split(lineage)[1:]] or [SUPERVISED]
    return methods[0] if len(set(methods)) == 1 else " → ".join(methods)


def full_text(lineage: str) -> str:
    """Format chain and methods: `teacher → student (minillm)`."""
    return f"{chain_text(lineage)} ({methods_text(lineage)})"


def chain_label(chain: Mapping[str, str]) -> str:
    """Label that the experiment gives a chain; empty if it only repeats the chain.

    Characters that are not allowed in XML, and so not in SVG, are replaced.
    """
    label = _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", chain.get("label") or "")
    return "" if label == chain_text(chain["lineage"]) else label
