"""Checks of `budget`: a chain that exists and costs something, and an end of a chain that it applies to."""

from typing import Any

from takd.experiment import budget, lineage
from takd.experiment.schema import suggest
from takd.experiment.yaml12 import YamlFile


def check_budget(file: YamlFile, settings: dict[str, Any]) -> None:
    """Check the budget, once all chains are valid."""
    if settings["budget"] is None:
        return
    if (label := settings["budget"].get("chain")) is not None:
        known = budget.labelled(settings)
        if label not in known:
            text = f"is '{label}', which is the label of no chain; {suggest(label, known)}"
            file.fault(("budget", "chain"), text)
            return
        if len(known[label]) > 1:
            times = f"{len(known[label])} times, for methods or values of a sweep"
            text = f"is '{label}', which is run {times}; name a chain that is run once."
            file.fault(("budget", "chain"), text)
        elif all(lineage.is_given(name) for name in known[label]):
            text = f"is '{label}', a model that is taken as it is, which costs nothing; name a chain that is trained."
            file.fault(("budget", "chain"), text)
    if not budget.ends(settings):
        text = (
            "has no effect, as every chain is the teacher or the start of another one or is taken as it is; add a chain"
            " whose last model is an end, or remove the key."
        )
        file.fault(("budget",), text)
