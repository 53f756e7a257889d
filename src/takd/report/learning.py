"""Page of the learning curves."""

from takd.analysis.results import Results
from takd.experiment.labels import full_text
from takd.experiment.lineage import split
from takd.report import pages
from takd.report.figures import marks
from takd.report.figures.curves import learning_curves, page_data
from takd.report.figures.scope import stroke
from takd.report.figures.style import looks


def page(results: Results) -> str:
    """Render the curves, which the page draws itself; without scripts it shows the figure of ROUGE-L on dev."""
    sizes = marks.by_size(results)
    return pages.render(
        "learning.html",
        results,
        "learning.html",
        curves=page_data(results),
        figure=pages.inline(learning_curves(results).svg),
        looks=looks(results),
        stroke=stroke,
        names={lineage: full_text(lineage) for lineage in results.lineages},
        models={
            marks.name_and_size(model, size): [
                lineage for lineage in results.lineages if split(lineage)[-1].model == model
            ]
            for model, size in sizes.items()
        },
    )
