"""The questions that compared models answer (`takd.analysis.comparisons`), as headings and in sentences."""

from typing import NamedTuple


class Question(NamedTuple):
    """Texts of a question: heading of its differences, and what is compared as part of a sentence."""

    title: str
    what: str


QUESTIONS = {
    "direct": Question(
        "Does the assistant help? (through − direct)",
        "through assistants against straight from the teacher",
    ),
    "sft": Question("Gain over SFT of the same model", "against the SFT baseline"),
    "method": Question("Method against method on one chain", "method against method"),
    "given": Question("Training against a model as given", "against a model as given"),
    "teacher": Question("What needs the teacher (method − its control)", "method against control"),
    "control": Question(
        "Controls: gain over SFT of the same model", "control against the SFT baseline"
    ),
}
"""Questions in the order of pages and figures."""
