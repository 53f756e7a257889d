"""Figure: scores along the chains."""

import math

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from takd.analysis.comparisons import analyse
from takd.analysis.results import Results, Row
from takd.experiment.labels import chain_label, full_text
from takd.experiment.lineage import SUPERVISED, prefixes, split, supervised
from takd.report.figures.layout import Sheet
from takd.report.figures.marks import n_text
from takd.report.figures.style import STYLE, WIDTH, Drawing, handle, looks, size_text, to_svg
from takd.report.table import columns


def chains(results: Results) -> Drawing:
    """Draw ROUGE-L along each chain, one panel per evaluation set; bars are 95 % confidence intervals."""
    sizes = {split(m.node.lineage)[-1].model: m.parameters for m in results.models.values()}
    order = sorted(sizes, key=lambda model: (-sizes[model], list(sizes).index(model)))
    ends = list(dict.fromkeys(chain["lineage"] for chain in results.spec["chains"]))
    labels = {chain["lineage"]: chain_label(chain) for chain in reversed(results.spec["chains"])}
    look = looks(results)
    sets = results.spec["sets"]
    with matplotlib.rc_context(STYLE):
        sheet = Sheet(WIDTH, rows=math.ceil(len(sets) / 2), height=2.7, below=0.55)
        axes = [sheet.panel(place // 2, place % 2, min(len(sets), 2)) for place in range(len(sets))]
        for axis, name in zip(axes, sets, strict=True):
            for place, model in enumerate(order):
                _point(axis, results, supervised(model), name, place, "#555555", "_")
            for number, end in enumerate(ends):
                # lines are slightly offset, so that their bars do not overlap
                shift = 0.06 * (number - (len(ends) - 1) / 2) * min(1, 9 / len(ends))
                points = []
                for lineage in prefixes(end):
                    head = len(split(lineage)) == 1
                    at = order.index(split(lineage)[-1].model) + (0 if head else shift)
                    marker = None if head else look[end].marker
                    points.append(
                        (at, _point(axis, results, lineage, name, at, look[end].colour, marker))
                    )
                axis.plot(
                    *zip(*points, strict=True),
                    color=look[end].colour,
                    linestyle=look[end].dashes,
                    zorder=2,
                )
            axis.set_xticks(range(len(order)), [f"{m}\n{size_text(sizes[m])}" for m in order])
            axis.set_xlim(-0.4, len(order) - 0.6)
            axis.set_ylabel("ROUGE-L")
            axis.grid(axis="x", visible=False)
            axis.set_title(f"{name}, {n_text(results, name)}", fontsize=9)
        handles = [handle(look[end], size=6) for end in ends]
        texts = [" ".join(filter(None, [labels[end], full_text(end)])) for end in ends]
        handles.append(Line2D([], [], color="#555555", marker="_", markersize=12, linestyle="none"))
        texts.append("trained on labels alone (sft)")
        sheet.key(handles, texts)
        return Drawing(to_svg(sheet.finish()), _numbers(results, ends))


def _point(
    axis: Axes,
    results: Results,
    lineage: str,
    name: str,
    at: float,
    colour: str,
    marker: str | None,
) -> float | None:
    """Draw the mean score of a lineage with its bar; returns the mean, None if the lineage was not trained."""
    if lineage not in results.lineages:
        return None
    found = analyse(results).scores[name, lineage, "rougeL"]
    ends = found.interval
    bar = None if ends is None else [[found.mean - ends.low], [ends.high - found.mean]]
    size = 14 if marker == "_" else 6
    axis.errorbar(
        at, found.mean, yerr=bar, color=colour, marker=marker, markersize=size,
        markeredgewidth=2 if marker == "_" else 0.5, linestyle="none", elinewidth=1.2, zorder=3,
    )  # fmt: skip
    return found.mean


def _numbers(results: Results, ends: list[str]) -> list[Row]:
    """One row per set, chain and model of the chain; the chain "sft" means trained on labels alone."""
    known = [*results.spec["models"]]
    lines = [(SUPERVISED, supervised(model)) for model in known]
    lines += [(full_text(end), lineage) for end in ends for lineage in prefixes(end)]
    return [
        {"set": name, "chain": chain, "lineage": lineage, "model": split(lineage)[-1].model}
        | {"parameters": results.of(lineage)[0].parameters}
        | columns("rougeL", analyse(results).scores[name, lineage, "rougeL"])
        for name in results.spec["sets"]
        for chain, lineage in lines
        if lineage in results.lineages
    ]
