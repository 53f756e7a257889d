"""Page of the learning curves, which draws them itself: the data are below, the drawing is templates/curves.js."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from takd.analysis.results import Model, Results
from takd.experiment.labels import full_text, size_text
from takd.experiment.lineage import is_given, student_of
from takd.report import pages
from takd.report.figures.curves import PLOT, numbers
from takd.report.figures.registry import drawn
from takd.report.figures.style import by_size, looks, stroke

MOST = 300
"""Points of a training; longer logs are thinned evenly. The CSV files have all points."""


class Quantity(NamedTuple):
    """A number to draw: its log "train" or "dev", and its name in a model's log (None: not logged).

    Panels of one `part` stand together, below it as a heading, and those of one `scale` have the same y axis.
    """

    title: str
    about: str
    log: str
    name: Callable[[Model], str | None]
    part: str = ""
    scale: str = ""


def reverse_kl(model: Model) -> str:
    """Name under which a method logs the reverse KL to its teacher.

    This is the single-step term of MiniLLM (Gu et al., 2024, section 2.2), or the divergence of a method that is set
    to reverse KL.
    """
    settings = model.manifest["spec"].get("settings", {})
    return "divergence" if settings.get("divergence") == "reverse_kl" else "single_step_kl"


def _always(name: str) -> Callable[[Model], str]:
    return lambda _: name


FIRST = (
    Quantity("ROUGE-L", "on dev", "dev", _always("rougeL")),
    Quantity("Loss", "on the references of dev, nats a token", "dev", _always("loss")),
    Quantity("Reverse KL", "to the teacher, training batches, nats a token", "train", reverse_kl),
    Quantity("Response length", "on dev, tokens", "dev", _always("response_length")),
    Quantity("Reward", "a token: log p − log q on training rollouts", "train", _always("reward")),
    Quantity("Training loss", "on batches", "train", _always("loss")),
)
"""Panels that come first; all other quantities of the training logs follow by name."""


OWN_RESPONSES = "Student and teacher on the student's own responses"
_OWN = [
    ("overlap", "Overlap", "share of the 16 likeliest tokens that the two have in common", ""),
    ("disagreement", "Disagreement", "share of tokens where the likeliest one differs", ""),
    ("overlap_student_mass", "Mass of the student", "on the overlap", "mass"),
    ("overlap_teacher_mass", "Mass of the teacher", "on the overlap", "mass"),
    ("student_entropy", "Entropy of the student", "nats a token", "entropy"),
    ("teacher_entropy", "Entropy of the teacher", "nats a token", "entropy"),
    ("reverse_kl", "Reverse KL on dev", "to the teacher, nats a token", ""),
    ("length_ratio", "Length", "mean of the responses by that of the references", ""),
    *((f"reverse_kl_quarter_{n}", f"Reverse KL, quarter {n}", "of a response, nats a token", "kl")
      for n in range(1, 5)),
]  # fmt: skip
OWN = tuple(
    Quantity(title, about, "dev", _always(name), OWN_RESPONSES, scale)
    for name, title, about, scale in _OWN
)
"""Diagnostics (`takd.training.diagnostics`), the last panels."""


def page(results: Results) -> str:
    """Render the curves; without scripts the page shows the figure of ROUGE-L on dev."""
    sizes = by_size(results)
    trained = [lineage for lineage in results.lineages if not is_given(lineage)]
    by_model: dict[str, list[str]] = {}
    for lineage in sorted(trained, key=lambda each: list(sizes).index(student_of(each))):
        model = student_of(lineage)
        by_model.setdefault(f"{model} ({size_text(sizes[model])})", []).append(lineage)
    return pages.render(
        "learning.html",
        results,
        curves=data(results),
        figure=drawn(results).get(PLOT),
        looks=looks(results),
        stroke=stroke,
        names={lineage: full_text(lineage) for lineage in trained},
        models=by_model,
    )


def data(results: Results) -> dict[str, Any]:
    """Build the data of the page: quantities that are logged, and their values in each training.

    `runs` have `lineage`, `seed`, `kept` (the exported step) and, by title of the quantity, columns `step`, `tokens`,
    `minutes` and `value`.
    """
    models = list(results.trained_here.values())
    known = sorted({row["quantity"] for row in numbers(results, "train")})
    others = [each for each in map(_other, known) if any(map(each.name, models))]
    every = [*FIRST, *others, *OWN]
    runs: list[dict[str, Any]] = [
        {
            "lineage": model.node.lineage,
            "seed": model.node.seed,
            "kept": model.kept_step,
            "values": {each.title: found for each in every if (found := _columns(model, each))},
        }
        for model in models
    ]
    titles = {title for run in runs for title in run["values"]}
    quantities = [
        {"title": each.title, "about": each.about, "dev": each.log == "dev"}
        | {"part": each.part, "scale": each.scale}
        for each in every
        if each.title in titles
    ]
    return {"quantities": quantities, "runs": runs}


def _other(name: str) -> Quantity:
    """A quantity of the training log, for the models in which it is none of the first."""

    def known(model: Model) -> str | None:
        first = {each.name(model) for each in FIRST if each.log == "train"}
        return None if name in first else name

    words = name.replace("_", " ")
    if words.capitalize() in {each.title for each in FIRST}:
        return Quantity(f"Training {words}", "on batches", "train", known)
    return Quantity(words.capitalize(), "on training batches", "train", known)


def _columns(model: Model, quantity: Quantity) -> dict[str, list[float]]:
    """Values of a quantity in a training, with their steps, tokens and minutes; empty if it is not logged."""
    name = quantity.name(model) or ""
    found = [row for row in getattr(model, quantity.log) if row.get(name) is not None]
    if not found:
        return {}
    found = found[:: math.ceil(len(found) / MOST)]
    return {
        "step": [row["step"] for row in found],
        "tokens": [row.get("tokens", 0) for row in found],
        "minutes": [round(row.get("seconds", 0) / 60, 3) for row in found],
        "value": [float(f"{row[name]:.5g}") for row in found],
    }
