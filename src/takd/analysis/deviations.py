"""Limits of a report, and departures of its experiment from the one published with a method.

Only departures that settings, manifests or the data report show are listed.
"""

import json
import re
from typing import Any

from takd.analysis.comparisons import QUESTIONS, pairs
from takd.analysis.results import Results
from takd.analysis.text import counted
from takd.experiment.lineage import Hop, control_of, split
from takd.methods.registry import METHODS, REPLICATED

METHOD = METHODS[REPLICATED]
PAPER = f"{METHOD.title} as published (arXiv {METHOD.paper})"
SETS = 5
"""Dolly, SelfInst, Vicuna, S-NI and UnNI: section 3.1 of the paper."""
DECODING_SEEDS = 5
"""10 to 50: section 3.1."""
LONGEST = 256
"""Tokens of an answer, in the authors' code: 512 less a prompt of 256."""
FEW = {
    1: "With one training seed, tests and intervals are of these checkpoints, not of what another training would"
    " give; that takes three seeds, better five.",
    2: "With two training seeds, intervals across training seeds are wide (12.7 standard errors to each side);"
    " three seeds make that 4.3, five 2.8.",
}
STARTS = {
    "scratch": "random weights, not pretrained ones",
    "gguf": "a GGUF file, which may be quantised",
    "keep_layers": "some of the layers of a larger model",
}


def limits(results: Results, data_report: dict[str, Any]) -> list[str]:
    """List the limits: few seeds, unanswered questions, leaks, departures."""
    few = FEW.get(len(results.spec["seeds"]))
    found = "; ".join(departures(results, data_report))
    none = (
        f"Of what is looked at (sets, seeds, decoding, devices, starts, {METHOD.title}’s settings), nothing"
        f" departs from {PAPER}."
    )
    last = f"The run departs from {PAPER}: {found}." if found else none
    return [*filter(None, [few]), *unasked(results), *leaks(data_report), last]


def unasked(results: Results) -> list[str]:
    """List the questions that no two of the models answer."""
    asked = {pair.question for pair in pairs(results)}
    asked |= {"given", "control", "teacher"}  # no design needs such models
    missing = [title for question, title in QUESTIONS.items() if question not in asked]
    return [f"No two models here answer: {'; '.join(missing)}."] if missing else []


def leaks(data_report: dict[str, Any]) -> list[str]:
    """List prompts of an evaluation set that the models were trained on."""
    train = data_report["splits"].get("train", {"counts": {}})
    if train["counts"].get("dropped_leaks"):
        return []
    found = [
        f"{leak['other_rows']} prompts of {leak['other']}"
        for leak in data_report.get("leaks", [])
        if leak["split"] == "train" and leak["other"] != "dev" and leak["other_rows"]
    ]
    said = f"Models were trained on some prompts that they answer: {', '.join(found)}."
    return [said] if found else []


def departures(results: Results, data_report: dict[str, Any]) -> list[str]:
    """List the departures, each in a few words."""
    spec = results.spec
    source = data_report["splits"].get("train", {"source": ""})["source"]
    hops = dict.fromkeys(split(name)[-1] for name in results.lineages if not control_of(name))
    replicated = [hop for hop in hops if hop.method == REPLICATED]
    sets, draws = len(spec["sets"]), len(spec["decoding_seeds"])
    lora = [f"{hop.model} by {hop.method}" for hop in hops if _settings(results, hop).get("lora")]
    unicode_sets = ", ".join(results.unicode_sets)
    no_corpus = replicated and "corpus" not in data_report["splits"]
    found = {
        f"{counted(sets, 'evaluation set')}, not {SETS}": sets < SETS,
        f"{counted(draws, 'decoding seed')}, not {DECODING_SEEDS}": draws < DECODING_SEEDS,
        **_decoding(spec["decoding"]),
        f"ROUGE-L with unicode tokens on {unicode_sets}": unicode_sets,
        "trained on synthetic data, not on Dolly": re.match(
            r"demo (train|dev|test) \(seed", source
        ),
        **dict.fromkeys(_starts(spec["weights"]), True),
        "trained on a CPU": any(
            str(model.end.get("device")) == "cpu" for model in results.trained_here.values()
        ),
        f"LoRA, not all weights, for {', '.join(lora)}": lora,
        f"{METHOD.title} without its language-modelling term, as there is no corpus": no_corpus,
    }
    if changed := _of_the_method(results, replicated):
        found[f"{METHOD.title} with {', '.join(changed)}"] = True
    return [text for text, holds in found.items() if holds]


def _decoding(settings: dict[str, Any]) -> dict[str, Any]:
    """Departures of the decoding, each with whether it holds."""
    sample, size, top_k = settings["sample"], settings["no_repeat_ngram"], settings["top_k"]
    temperature, top_p = settings["temperature"], settings["top_p"]
    longest = settings.get("max_new_tokens") or LONGEST
    return {
        "greedy decoding, not sampling": not sample,
        f"temperature {temperature:g}, not 1": sample and temperature != 1,
        f"top-k {top_k}, not all tokens": sample and top_k,
        f"top-p {top_p:g}, not 1": sample and top_p < 1,
        "6-grams may repeat, which the authors’ code blocks": size == 0,
        f"{size}-grams may not repeat; the authors’ code blocks 6-grams": size not in (0, 6),
        f"answers of at most {longest} tokens, not {LONGEST}": longest < LONGEST,
    }


def _starts(weights: dict[str, dict[str, Any]]) -> list[str]:
    found = []
    for kind, words in STARTS.items():
        models = [model for model, settings in weights.items() if settings.get(kind) is not None]
        if models:
            start = "starts" if len(models) == 1 else "start"
            who = "all models" if len(models) == len(weights) > 1 else ", ".join(models)
            found.append(f"{who} {start} from {words}")
    return found


def _of_the_method(results: Results, hops: list[Hop]) -> list[str]:
    """Settings of the method that differ from the paper's, with the affected models unless all are."""
    found = []
    replaced = {"steps"} if results.spec.get("equal_cost") else set()  # by the budget
    for key, paper in METHOD.published.items():
        by_value: dict[str, list[str]] = {}
        for hop in hops:
            value = _settings(results, hop).get(key)
            if value is not None and value != paper and key not in replaced:
                by_value.setdefault(json.dumps(value), []).append(hop.model)
        for value, whose in by_value.items():
            of = "" if len(whose) == len(hops) else f" for {', '.join(whose)}"
            found.append(f"{key} {value}{of} (not {json.dumps(paper)})")
    return found


def _settings(results: Results, hop: Hop) -> dict[str, Any]:
    spec = results.spec
    changed = (spec["overrides"] or {}).get(hop.model) or {}
    return {**(spec["training"].get(hop.method) or {}), **(changed.get(hop.method) or {})}
