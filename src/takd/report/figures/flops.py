"""Figure: ROUGE-L on dev against the FLOPs spent so far, teachers, starts and teacher caches included."""

from statistics import fmean

import matplotlib
import numpy as np

from takd.analysis import costs
from takd.analysis.results import Model, Results
from takd.experiment.labels import full_text, size_text
from takd.experiment.lineage import split, student_of, supervised
from takd.report.figures import style
from takd.report.figures.style import Drawing, Plot

Curves = dict[str, dict[int, list[tuple[float, float]]]]
"""Lineage -> training seed -> FLOPs and ROUGE-L at each dev evaluation."""


def curves(results: Results) -> Drawing | None:
    """Draw the dev curve of every chain, a panel for each size of its last model; None where FLOPs were not counted."""
    chains = [chain["lineage"] for chain in results.spec["chains"]]
    last = {supervised(split(chain)[-1].model) for chain in chains}
    found: Curves = {}
    for lineage in results.lineages:
        runs = {model.node.seed: _points(results, model) for model in results.of(lineage)}
        if any(runs.values()) and (lineage in chains or lineage in last):
            found[lineage] = {seed: run for seed, run in runs.items() if run}
    if not found:
        return None
    numbers = [
        {"lineage": lineage, "seed": seed, "flops": flops, "rougeL": value}
        for lineage, runs in found.items()
        for seed, run in runs.items()
        for flops, value in run
    ]
    budget = " The dashed line is the budget of each chain." if costs.budgets(results) else ""
    note = (
        "A curve begins where the teachers and starts of its chain are paid, each once and in full. Lines are means"
        f" over training seeds, bands reach from the lowest seed to the highest.{budget}"
    )
    return Drawing(_draw(results, found), numbers, note=note)


PLOT = Plot("flops", "ROUGE-L on dev against FLOPs", curves, "costs.html", "Quality against FLOPs")


def _points(results: Results, model: Model) -> list[tuple[float, float]]:
    """List FLOPs, with all that the model needs, and ROUGE-L at each dev evaluation."""
    whole = costs.spent(results, model.node.lineage)
    if not whole or not model.dev:
        return []
    before = whole[model.node.seed] - model.manifest["flops"]
    dev = [row for row in model.dev if row["rougeL"] is not None]
    return [(before + row["flops"], float(row["rougeL"])) for row in dev]


def _draw(results: Results, found: Curves) -> str:
    look, budget = style.looks(results), costs.budgets(results)
    sizes: dict[int, list[str]] = {}
    for lineage in found:
        sizes.setdefault(results.of(lineage)[0].parameters, []).append(lineage)
    key = {full_text(name): style.handle(look[name]) for names in sizes.values() for name in names}
    with matplotlib.rc_context(style.STYLE):
        figure, axes = style.panels(
            len(sizes), min(len(sizes), 2), len(sizes), 3.2, key, "ROUGE-L on dev"
        )
        for axis, (size, names) in zip(axes, sizes.items(), strict=True):
            for name in names:
                # the first evaluations that all seeds have, and the last of each
                count = min(map(len, found[name].values()))
                xy = np.array([[*run[: count - 1], run[-1]] for run in found[name].values()])
                style.mean_and_band(axis, xy[:, :, 0].mean(0), xy[:, :, 1], look[name])
            if budget:
                axis.axvline(fmean(budget.values()), color="#888888", linewidth=1, linestyle="--")
            models = ", ".join(dict.fromkeys(map(student_of, names)))
            axis.set_title(f"{models} ({size_text(size)})", fontsize=9)
            axis.set_xlabel("FLOPs, in total")
            style.round_ticks(axis.xaxis)
        return style.to_svg(figure)
