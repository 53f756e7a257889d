"""Figure: minutes of each model."""

from collections.abc import Sequence

import matplotlib

from takd.analysis import costs
from takd.analysis.costs import EVALUATION, TRAINING, Run
from takd.analysis.results import Results, Row
from takd.experiment.labels import chain_text, full_text, methods_text
from takd.report.figures.layout import Sheet
from takd.report.figures.style import STYLE, WIDTH, Drawing, to_svg

LOOKS = {
    TRAINING: {"color": "#0072B2", "label": "training"},
    "teacher": {"color": "#56B4E9", "edgecolor": "#004B75", "hatch": "....", "label": "teacher cache"},
    "evaluation": {"color": "#F3B95F", "edgecolor": "#7A5200", "hatch": "////", "label": "evaluation"},
}  # fmt: skip
"""Bars by the first word of their stages; hatched, so that they are told apart in grey."""


def costs_figure(results: Results) -> Drawing:
    """Draw the minutes of training, teacher caches and evaluation of each lineage, over all training seeds."""
    names = [full_text(lineage) for lineage in results.lineages]
    runs = list(costs.runs(results))
    with matplotlib.rc_context(STYLE):
        margin = min(0.3 + 0.078 * max(map(len, names)), 0.6 * WIDTH)
        sheet = Sheet(WIDTH, rows=1, height=0.3 + 0.3 * len(names), below=0.5, margin=margin)
        axis = sheet.panel(0, 0, 1)
        ends = [0.0] * len(names)
        for kind, look in LOOKS.items():
            minutes = [
                sum(r.minutes for r in runs if r.lineage == lineage and r.stage.startswith(kind))
                for lineage in results.lineages
            ]
            if any(minutes):
                axis.barh(names, minutes, left=ends, linewidth=0.5, **look)
            ends = [end + more for end, more in zip(ends, minutes, strict=True)]
        for place, end in enumerate(ends):
            axis.annotate(
                f"{end:.1f}", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=9
            )  # fmt: skip
        axis.invert_yaxis()
        axis.set_xlabel("minutes, all training seeds together")
        axis.margins(x=0.08)
        axis.grid(axis="y", visible=False)
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2)
        return Drawing(to_svg(sheet.finish()), _numbers(results, runs))


def _numbers(results: Results, runs: Sequence[Run]) -> list[Row]:
    """One row per lineage and stage, over training seeds."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: results.lineages.index(run.lineage)):
        found.setdefault((run.lineage, run.stage), []).append(run)
    return [
        {
            "lineage": lineage,
            "chain": chain_text(lineage),
            "methods": methods_text(lineage),
            "stage": stage,
            "training_seeds": len({run.seed for run in of_stage}),
            "minutes": sum(run.minutes for run in of_stage),
            "hours": sum(run.hours for run in of_stage),
            "tokens": sum(run.tokens for run in of_stage),
            "steps": sum(run.steps or 0 for run in of_stage) if stage == TRAINING else None,
            "skipped": sum(run.skipped or 0 for run in of_stage) if stage == TRAINING else None,
            "device": None
            if stage in EVALUATION
            else ", ".join(sorted({r.device for r in of_stage})),
        }
        for (lineage, stage), of_stage in found.items()
    ]
