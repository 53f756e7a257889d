"""Figure: minutes of each model."""

from collections.abc import Sequence

import matplotlib

from takd.analysis.costs import Cost, lines
from takd.experiment.labels import full_text
from takd.report.figures.layout import Sheet
from takd.report.figures.style import STYLE, WIDTH, Drawing, to_svg


def costs(found: Sequence[Cost]) -> Drawing:
    """Draw the minutes of training, precomputing teacher outputs and evaluation of each lineage, over all seeds."""
    names = [full_text(cost.lineage) for cost in found]
    training = [cost.training_minutes for cost in found]
    writing = [cost.writing_minutes for cost in found]
    made = [sum(both) for both in zip(training, writing, strict=True)]
    evaluation = [cost.evaluation_minutes for cost in found]
    with matplotlib.rc_context(STYLE):
        margin = min(0.3 + 0.078 * max(map(len, names)), 0.6 * WIDTH)
        sheet = Sheet(WIDTH, rows=1, height=0.3 + 0.3 * len(found), below=0.5, margin=margin)
        axis = sheet.panel(0, 0, 1)
        axis.barh(names, training, color="#0072B2", label="training")
        if any(cost.writes for cost in found):
            axis.barh(
                names, writing, left=training, color="#56B4E9", edgecolor="#004B75", hatch="....",
                linewidth=0.5, label="for its students",
            )  # fmt: skip
        axis.barh(
            names, evaluation, left=made, color="#F3B95F", edgecolor="#7A5200", hatch="////",
            linewidth=0.5, label="evaluation",
        )  # fmt: skip
        for place, total in enumerate(map(sum, zip(made, evaluation, strict=True))):
            axis.annotate(
                f"{total:.1f}",
                (total, place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axis.invert_yaxis()
        axis.set_xlabel("minutes, all training seeds together")
        axis.margins(x=0.08)
        axis.grid(axis="y", visible=False)
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2)
        return Drawing(to_svg(sheet.finish()), lines(found))
