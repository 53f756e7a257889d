"""What a report cannot say: few training seeds, questions that no two models answer, prompts that were trained on."""

from typing import Any

from takd.analysis.comparisons import pairs
from takd.analysis.questions import QUESTIONS
from takd.analysis.results import Results

FEW = {
    1: "With one training seed, tests and intervals are of these checkpoints, not of what another training would"
    " give; that takes three seeds, better five.",
    2: "With two training seeds, intervals across training seeds are wide (12.7 standard errors to each side);"
    " three seeds make that 4.3, five 2.8.",
}


def limits(results: Results, data_report: dict[str, Any]) -> list[str]:
    """List the limits of a report, a sentence each."""
    few = FEW.get(len(results.spec["seeds"]))
    return [*filter(None, [few]), *unasked(results), *leaks(data_report)]


def unasked(results: Results) -> list[str]:
    """List the questions that no two of the models answer."""
    asked = {pair.question for pair in pairs(results)}
    asked |= {"given", "control", "teacher"}  # no design needs such models
    missing = [found.what for question, found in QUESTIONS.items() if question not in asked]
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
