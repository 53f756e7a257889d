"""Budgets: the models of an experiment whose number of steps follows from what their chains may cost.

These are the ends of chains. What another model learns from or starts from (a teacher, an assistant, a supervised
start) keeps the steps of its own settings, and so does the chain whose cost is the budget.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from takd.experiment import controls, lineage
from takd.experiment.lineage import SUPERVISED, Hop
from takd.experiment.validation.common import given_models, lineages_of, training_settings


def labelled(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the lineages of the chains by label: one for each entry of `methods` and each value of a sweep."""
    found: dict[str, list[str]] = {}
    for chain in map(controls.expanded, settings["chains"]):
        label = chain["label"] or " → ".join(chain["models"])
        found.setdefault(label, []).extend(lineages_of(settings, chain))
    return found


def reference(settings: Mapping[str, Any]) -> str | None:
    """Return the lineage of the chain whose cost is the budget; None if there is no such chain."""
    label = (settings["budget"] or {}).get("chain")
    return labelled(settings)[label][0] if label in labelled(settings) else None


def ends(settings: Mapping[str, Any]) -> set[str]:
    """Return the lineages whose number of steps follows from the budget; none without a budget."""
    if settings["budget"] is None:
        return set()
    found = {name for names in labelled(settings).values() for name in names}
    needed = {reference(settings)}
    for name in found:
        *above, _ = lineage.prefixes(name)
        needed.update(above)
        needed.update(
            lineage.supervised(hop.model)
            for hop in lineage.split(name)[1:]
            if training_settings(settings, *hop).get("start") == SUPERVISED
        )
    return {name for name in found - needed if not lineage.is_given(name)}


def own_steps(settings: Mapping[str, Any]) -> set[Hop]:
    """Return the models with the methods whose settings give their number of steps."""
    given, chains, of_budget = given_models(settings), settings["chains"], ends(settings)
    lineages = [name for names in labelled(settings).values() for name in names]
    taught = {name for chain in chains for name in chain["models"][1:]}
    alone = {chain["models"][0] for chain in chains} - set(given)
    nodes = lineage.nodes(lineages, [0], taught | alone)
    hops = [lineage.split(node.lineage)[-1] for node in nodes if node.lineage not in of_budget]
    return {Hop(lineage.arm(hop.model), hop.method) for hop in hops}


def of_report(settings: Mapping[str, Any], lineages: Sequence[str]) -> dict[str, Any]:
    """Return what a report has to know of a budget: the chains of equal cost, and what it is; empty without one."""
    if not (arms := ends(settings)):
        return {}
    whole = reference(settings)
    arms.update([whole] if whole else [])
    names = [name for name in lineages if name in arms]
    flops = settings["budget"].get("flops")
    return {"equal_cost": {"flops": flops, "reference": whole, "lineages": names}}
