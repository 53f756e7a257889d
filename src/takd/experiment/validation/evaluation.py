"""Checks of `evaluation`, and of the published results that `report` compares with."""

from typing import Any

from takd.experiment import lineage
from takd.experiment.schema import suggest
from takd.experiment.validation.common import by_hop
from takd.experiment.yaml12 import Key, YamlFile


def check_evaluation(file: YamlFile, settings: dict[str, Any], complete: bool) -> None:
    """Check evaluation settings and published results.

    Args:
        file: the experiment file, which collects errors.
        settings: its content with defaults.
        complete: whether all chains are valid, so that all lineages are known.
    """
    evaluation = settings["evaluation"]
    with file.each():
        if not evaluation["decoding"]["sample"] and len(evaluation["seeds"]) > 1:
            raise file.error(
                ("evaluation", "seeds"),
                f"has {len(evaluation['seeds'])} entries, but greedy decoding"
                " (evaluation.decoding.sample is false) gives the same text for each; keep one, such as"
                f" [{evaluation['seeds'][0]}].",
            )
    for at, seed in enumerate((evaluation["judge"] or {}).get("seeds") or []):
        with file.each():
            if seed not in evaluation["seeds"]:
                raise file.error(
                    ("evaluation", "judge", "seeds", at),
                    f"is {seed}, which is not in evaluation.seeds; there are: {evaluation['seeds']}.",
                )
    if complete:
        _check_targets(file, settings)


def _check_targets(file: YamlFile, settings: dict[str, Any]) -> None:
    evaluation = settings["evaluation"]
    names: dict[str, None] = {}
    for chain in settings["chains"]:
        names.update((lineage.supervised(name), None) for name in chain["models"])
        for methods in by_hop(chain):
            names.update(
                (name, None)
                for name in lineage.prefixes(lineage.of_chain(chain["models"], methods))
            )
    for index, target in enumerate(settings["report"]["targets"]):
        for name, scores in target["scores"].items():
            key: Key = ("report", "targets", index, "scores", name)
            with file.each():
                if name not in names:
                    raise file.error(
                        key, f"is not a lineage of this experiment; {suggest(name, names)}"
                    )
            for evaluation_set in scores:
                with file.each():
                    if evaluation_set not in evaluation["sets"]:
                        raise file.error(
                            (*key, evaluation_set),
                            f"is not an evaluation set; {suggest(evaluation_set, evaluation['sets'])}",
                        )
