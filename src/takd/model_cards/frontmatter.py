"""Front matter of a model card: the metadata that the Hub reads."""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from takd.analysis.measures import measured
from takd.analysis.results import Results
from takd.experiment.lineage import GIVEN, SUPERVISED, is_given, own, split

COMMIT = re.compile(r"[0-9a-f]{40}")
TASK = "text-generation"
METRICS = {"rougeL": "rouge"}
"""Names that the hub has for our measures, where they differ."""


def front_matter(results: Results) -> ModelCardData:
    """Build tags, base model, data sets and evaluation results of the one model in `results`.

    Unknown fields are left out: experiment files hold no language, the licence only where one is set, and `base_model`
    and `datasets` are names on the Hub.
    """
    spec, (node,) = results.spec, results.nodes
    hop = split(node.lineage)[-1]
    base = spec["weights"][own(hop.model)].get("hub")
    given = is_given(node.lineage)
    trained_on = (spec["sources"].get(name) or {} for name in ("train", "corpus") if not given)
    datasets = list(dict.fromkeys(source["hub"] for source in trained_on if "hub" in source))
    return ModelCardData(
        license=spec.get("license") or None,
        library_name="transformers",
        pipeline_tag=TASK,
        **({"base_model": base, "base_model_relation": "finetune"} if base and not given else {}),
        datasets=datasets or None,
        tags=tags(node.lineage),
        model_name=node.lineage if given else f"{node.lineage}-seed{node.seed}",
        eval_results=eval_results(results),
    )


def tags(lineage: str) -> list[str]:
    """Tags of the model, and the methods of its chain."""
    hops = split(lineage)
    if len(hops) == 1:
        return ["takd"] if is_given(lineage) else ["takd", "supervised-fine-tuning"]
    methods = sorted({hop.method for hop in hops} - {SUPERVISED, GIVEN})
    assistants = ["teacher-assistant"] if len(hops) > 2 else []
    return ["takd", "knowledge-distillation", *assistants, *methods]


def eval_results(results: Results) -> list[EvalResult]:
    """List every measure of the model on every set."""
    spec, (node,) = results.spec, results.nodes
    seeds = ", ".join(map(str, spec["decoding_seeds"]))
    taken: list[dict[str, Any]] = []
    for name in spec["sets"]:
        place = _dataset(name, spec["sources"][name])
        # entries that look alike would be merged under one name
        taken.append(_dataset(name, {}) if place in taken else place)
    return [
        EvalResult(
            task_type=TASK,
            task_name="Text generation",
            dataset_name=name,
            **place,
            dataset_args={"prompts": results.evaluations[node, name].scores["n"]},
            metric_type=METRICS.get(measure.name, measure.name),
            metric_name=measure.title,
            metric_value=round(value, 4),
            metric_args={"decoding_seeds": seeds} if measure.name != "judge" else None,
        )
        for name, place in zip(spec["sets"], taken, strict=True)
        for measure in measured(results)
        if (value := measure.of(results.evaluations[node, name])) is not None
    ]


def commit_of(source: Mapping[str, Any]) -> str | None:
    """Return the commit that a source names; None for a branch, of which something else says the content."""
    revision = source.get("revision") or ""
    return revision if COMMIT.fullmatch(revision) else None


def _dataset(name: str, source: dict[str, Any]) -> dict[str, Any]:
    """Name of a set on the Hub; its own name where it is not there."""
    return {
        "dataset_type": source.get("hub", name),
        "dataset_config": source.get("config") or source.get("file"),
        "dataset_split": source.get("split") if "hub" in source else None,
        "dataset_revision": commit_of(source),
    }
