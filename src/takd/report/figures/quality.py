"""Figure: quality of a model against its accumulated cost, which includes the models it depends on."""

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from takd.analysis.comparisons import analyse
from takd.analysis.cumulative_costs import Accumulated, accumulate, unit
from takd.analysis.results import Results, Row
from takd.experiment.labels import chain_label, chain_text, full_text, methods_text
from takd.experiment.lineage import split
from takd.report.figures.layout import Sheet
from takd.report.figures.marks import GREY, heading, mark, point
from takd.report.figures.style import STYLE, WIDTH, Drawing, looks, to_svg
from takd.report.table import columns

TAG = 6
"""Most characters of a label that stands beside a point; longer ones give way to a number."""
FAR = 12
"""Costs that are this many times apart stand on a logarithmic axis."""
Point = tuple[float, float, str]


def quality(results: Results) -> Drawing:
    """Draw ROUGE-L against accumulated training cost: one row per set, hours on the left and tokens on the right."""
    costs = accumulate(results)
    look = looks(results)
    tags = _tags(results)
    # both x axes are treated alike
    log = any(min(at) > 0 and max(at) / min(at) > FAR for _, at in _panels(results, costs))
    written: list[tuple[Axes, list[Point]]] = []
    with matplotlib.rc_context(STYLE):
        sheet = Sheet(WIDTH, rows=0, height=3.2, below=0.65)
        for name in results.spec["sets"]:
            heading(sheet, results, name)
            sheet.add_row()
            first = None
            for place, (text, values) in enumerate(_panels(results, costs)):
                axis = sheet.panel(-1, place, 2, share=first)
                first = first or axis
                points = []
                for cost, at in zip(costs, values, strict=True):
                    score = analyse(results).scores[name, cost.lineage, "rougeL"]
                    point(axis, at, score, look[cost.lineage], faint=True)
                    points.append((at, score.mean, tags[cost.lineage]))
                _scale(axis, values, log)
                axis.set_xlabel(text)
                if place == 0:
                    axis.set_ylabel("ROUGE-L")
                written.append((axis, points))
        handles = [mark(look[cost.lineage]) for cost in costs]
        texts = [f"{tags[cost.lineage]}: {full_text(cost.lineage)}" for cost in costs]
        sheet.key(handles, texts)
        figure = sheet.finish()
        for axis, points in written:
            _write_tags(axis, points)
        return Drawing(to_svg(figure), _numbers(results, costs))


def _panels(results: Results, costs: Sequence[Accumulated]) -> list[tuple[str, list[float]]]:
    what = unit(results)
    hours = [cost.mean_hours for cost in costs]
    # demo runs cost fractions of an hour
    small = max(hours) < 1
    said = what.replace("hours", "minutes") if small else what
    return [
        (f"{said} of training, all that it needs", [h * 60 if small else h for h in hours]),
        ("tokens of training, all that it needs", [cost.mean_tokens for cost in costs]),
    ]


def _scale(axis: Axes, values: Sequence[float], log: bool) -> None:
    if log and min(values) > 0:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_xlim(0, (max(values) or 1) * 1.12)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.margins(x=0.12)


def short(value: float) -> str:
    """Format a number: `0.5`, `12`, `30k`, `1.2M`."""
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"


def _tags(results: Results) -> dict[str, str]:
    """Label of each point: that of the chain that ends there if it is short and unique, else a number."""
    labels = {chain["lineage"]: chain_label(chain) for chain in results.spec["chains"]}
    known = list(labels.values())
    found, count = {}, 0
    for lineage in results.lineages:
        label = labels.get(lineage, "")
        if label and len(label) <= TAG and known.count(label) == 1 and not label.isdigit():
            found[lineage] = label
        else:
            count += 1
            found[lineage] = str(count)
    return found


def _write_tags(axis: Axes, points: Sequence[Point]) -> None:
    """Write each label beside its point, at the first free position around it."""
    axis.autoscale_view()
    places = [axis.transData.transform((at, mean)) for at, mean, _ in points]
    covered = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in places]
    # Matplotlib's points equal pixels only at 72 dpi
    dots = axis.figure.dpi / 72
    for (x, y), (at, mean, tag) in zip(places, points, strict=True):
        wide, high = (4 + 5.2 * len(tag)) * dots, 9 * dots
        best = None
        for away in (5, 13, 21):
            for right, up in ((1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)):
                left = x + away * dots if right > 0 else x - away * dots - wide
                box = Bbox.from_bounds(left, y + up * 9 * dots - high / 2, wide, high)
                if best is None and not any(box.overlaps(other) for other in covered):
                    best = (box, right, up, away)
        box, right, up, away = best or (
            Bbox.from_bounds(x + 5 * dots, y - high / 2, wide, high), 1, 0, 5,
        )  # fmt: skip
        covered.append(box)
        axis.annotate(
            tag, (at, mean), (right * away, up * 9), textcoords="offset points", fontsize=9,
            ha="left" if right > 0 else "right", va="center", zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4},
            # a thin line connects a label that is not adjacent to its point
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": GREY, "shrinkA": 0, "shrinkB": 2}
            if up or away > 5 else None,
        )  # fmt: skip


def _numbers(results: Results, costs: Sequence[Accumulated]) -> list[Row]:
    """One row per set and lineage; costs are means over training seeds."""
    what = unit(results)
    tags = _tags(results)
    return [
        {
            "set": name,
            "tag": tags[cost.lineage],
            "lineage": cost.lineage,
            "chain": chain_text(cost.lineage),
            "methods": methods_text(cost.lineage),
            "student": split(cost.lineage)[-1].model,
            "method": split(cost.lineage)[-1].method,
            "n_training_seeds": len(cost.hours),
            "trainings": cost.trainings,
            "hours": float(cost.mean_hours),
            "hours_least": min(cost.hours.values()),
            "hours_most": max(cost.hours.values()),
            "unit": what,
            "tokens": float(cost.mean_tokens),
        }
        | columns("rougeL", analyse(results).scores[name, cost.lineage, "rougeL"])
        for name in results.spec["sets"]
        for cost in costs
    ]
