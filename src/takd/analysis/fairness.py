"""Which settings of two compared models differ besides the method, from the manifests of their trainings.

A difference between methods is only that where both arms had the same data and the same start.
"""

from typing import Any, NamedTuple

from takd.analysis.comparisons import Pair, shared
from takd.analysis.results import Results
from takd.analysis.text import flat
from takd.experiment.lineage import is_given, node_of
from takd.methods.registry import METHODS

DATA_OR_START = ("training rows", "training data", "responses", "start")
"""What makes a comparison one of more than methods."""
IN_SETTINGS = ("rows", "responses", "start", "steps", "epochs")
"""Settings that `facts` says in words."""


class Unequal(NamedTuple):
    """A setting in which the two models of a comparison differ, as text."""

    what: str
    ours: str
    theirs: str

    @property
    def of_data_or_start(self) -> bool:
        return self.what in DATA_OR_START


def facts(results: Results, lineage: str, seed: int) -> dict[str, str]:
    """What a training had: rows, start, responses, steps, tokens seen, and its settings; empty where there is none."""
    if is_given(lineage):
        return {}
    model = results.models[node_of(lineage, seed)]
    manifest: dict[str, Any] = model.manifest
    settings, inputs = manifest["spec"].get("settings", {}), manifest["inputs"]
    kept = results.training_rows
    rows = min(settings.get("rows") or kept, kept) if kept else settings.get("rows")
    drawn = "rollouts" if METHODS[manifest["method"]].rollouts else "labels"
    found = {
        "training rows": f"{rows:,}" if rows else "all",
        "training data": " ".join(digest[:12] for digest in inputs.get("train", [])),
        "responses": settings.get("responses", drawn),
        "start": "SFT" if "init" in inputs else "starting weights",
        "steps": f"{manifest['steps']:,}",
        "tokens seen": f"{int(model.end.get('tokens', 0)):,}",
    }
    return found | flat({k: v for k, v in settings.items() if k not in IN_SETTINGS})


def unequal(results: Results, pair: Pair) -> list[Unequal]:
    """List what differs between the arms of a comparison, data and start first, of the first seed that both have.

    Settings that only one of the two has belong to its method and are left out.
    """
    seed = shared(results, pair)[0]
    ours, theirs = facts(results, pair.ours, seed), facts(results, pair.theirs, seed)
    return [
        Unequal(key, value, theirs[key])
        for key, value in ours.items()
        if key in theirs and value != theirs[key]
    ]


def warning(results: Results, pair: Pair) -> str:
    """First line of a comparison whose arms differ in data or start; else empty."""
    found = [
        f"{one.what} {one.ours} against {one.theirs}"
        for one in unequal(results, pair)
        if one.of_data_or_start
    ]
    return f"Arms differ in data or start: {', '.join(found)}." if found else ""
