"""The figures of the report, one line each.

A figure is a module that has a `Plot`. Its files, its place among the downloads and, where it names a page, its place
on that page follow from the line here.
"""

import functools

from takd.analysis.results import Results
from takd.report.figures import curves, exact, flops, forest, quality
from takd.report.figures.style import Drawing, Plot

PLOTS: tuple[Plot, ...] = (
    forest.DIFFERENCES,
    forest.SCORES,
    quality.PLOT,
    flops.PLOT,
    curves.PLOT,
    exact.PLOT,
)
"""In the order of the downloads, and of the pages that show several."""


@functools.lru_cache(maxsize=16)
def drawn(results: Results) -> dict[Plot, Drawing]:
    """Draw all figures, once for all that show them; those that have nothing to show are left out."""
    return {plot: found for plot in PLOTS if (found := plot.draw(results))}
