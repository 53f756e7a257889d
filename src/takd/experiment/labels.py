"""Names of chains, methods and models as people read them."""

import re
from collections.abc import Mapping, Sequence

from takd.experiment import controls
from takd.experiment.lineage import ARM, GIVEN, arm, split
from takd.methods.registry import METHODS

SI = ("", "k", "M", "G", "T", "P", "E", "Z")
SIZES = ("", "K", "M", "B")
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def chain_text(lineage: str) -> str:
    """Format a chain: `teacher → assistant → student`, a model of a sweep as `student (learning_rate=1e-05)`."""
    return " → ".join(_model(arm(hop.model)) for hop in split(lineage))


def _model(name: str) -> str:
    first, *settings = name.split(ARM)
    return f"{first} ({', '.join(settings)})" if settings else first


def _methods(lineage: str) -> list[str]:
    """Methods of the hops after the teacher, once if all are the same; `sft` or `given` for a head alone."""
    head, *rest = split(lineage)
    methods = [hop.method for hop in rest or [head]]
    return methods[:1] if len(set(methods)) == 1 else methods


def methods_text(lineage: str) -> str:
    """List the methods of a chain: `kd → minillm`, or `minillm` where all hops have it; and which control it is."""
    return " → ".join(_methods(lineage)) + _control(lineage)


def full_text(lineage: str) -> str:
    """Name a model by its methods and chain: `MiniLLM: teacher → student`, `SFT: student`, `As given: teacher`.

    A control says which it is: `MiniLLM (self-taught): student → student`.
    """
    methods = " → ".join(map(method_title, _methods(lineage)))
    return f"{methods}{_control(lineage)}: {chain_text(lineage)}"


def _control(lineage: str) -> str:
    control = controls.of(lineage)
    return f" ({control.title})" if control else ""


def method_title(method: str) -> str:
    """Write a method's name as in running text: `KD`, `MiniLLM`; `As given` for a model that is not trained."""
    if method == GIVEN:
        return "As given"
    return METHODS[method].title if method in METHODS else method


def chain_label(chain: Mapping[str, str]) -> str:
    """Label that the experiment gives a chain; empty if it only repeats the chain.

    Characters that are not allowed in XML, and so not in SVG, are replaced.
    """
    label = _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", chain.get("label") or "")
    return "" if label == chain_text(chain["lineage"]) else label


def short_number(value: float, units: Sequence[str] = SI) -> str:
    """Format a number with three digits and a unit: `1.5G`."""
    *smaller, largest = units
    for unit in smaller:
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}{largest}"


def size_text(parameters: float) -> str:
    """Format a number of parameters as an experiment file has it: `13.6M`, `760M`, `1.5B`."""
    return short_number(parameters, SIZES)
