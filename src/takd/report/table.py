"""The table of results: one row a lineage, grouped by teacher, supervised baselines, and chains."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from takd.lineage import SUPERVISED, Hop, join, prefixes, split, supervised
from takd.report.read import Results
from takd.report.statistics import Estimate, Gain, estimate, gain, standard_error


def chain_text(lineage: str) -> str:
    """`teacher → assistant → student`."""
    return " → ".join(hop.model for hop in split(lineage))


def methods_text(lineage: str) -> str:
    """Methods of the hops after the teacher, once if they are all the same; `sft` for a supervised model."""
    methods = [hop.method for hop in split(lineage)[1:]] or [SUPERVISED]
    return methods[0] if len(set(methods)) == 1 else " → ".join(methods)


def full_text(lineage: str) -> str:
    """Chain and methods: `teacher → student (minillm)`."""
    return f"{chain_text(lineage)} ({methods_text(lineage)})"


def chain_label(chain: Mapping[str, str]) -> str:
    """Label that the experiment gives a chain; empty if that says only what the chain is."""
    label = chain.get("label") or ""
    return "" if label == chain_text(chain["lineage"]) else label


def direct(lineage: str) -> str | None:
    """Lineage of the same student, distilled by the same method straight from the head of the chain.

    None for a lineage without an assistant.
    """
    head, *rest = split(lineage)
    return join([head, Hop(*rest[-1])]) if len(rest) > 1 else None


@dataclass(frozen=True)
class Published:
    """A published score beside ours."""

    source: str
    value: float
    difference: float


@dataclass(frozen=True)
class Cell:
    """One lineage on one evaluation set; scores x 100."""

    rougeL: Estimate
    exact_match: Estimate
    prompts: int
    error: float | None
    """Standard error over prompts of the mean ROUGE-L (each prompt averaged over all seeds)."""
    response_tokens: float
    cut_off: float
    over_sft: Gain | None
    over_direct: Gain | None
    published: list[Published]


@dataclass(frozen=True)
class Row:
    """One lineage of the table."""

    lineage: str
    role: str
    label: str
    parameters: int
    seeds: list[int]
    steps: float
    minutes: float
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return split(self.lineage)[-1].model

    @property
    def chain(self) -> str:
        return chain_text(self.lineage)

    @property
    def methods(self) -> str:
        return methods_text(self.lineage)


@dataclass(frozen=True)
class Group:
    """Rows under one heading."""

    title: str
    rows: list[Row]


def build(results: Results) -> list[Group]:
    """Group all lineages: teachers, supervised baselines, then one group for each chain of models.

    A lineage stands once: under the chain that it ends, else under the first chain that passes through it.
    """
    chains = [(chain_label(chain), chain["lineage"]) for chain in results.spec["chains"]]
    heads = list(dict.fromkeys(prefixes(lineage)[0] for _, lineage in chains))
    ends = {lineage for _, lineage in reversed(chains)}
    labels = {lineage: label for label, lineage in reversed(chains)}
    known = set(results.lineages)

    def row(lineage: str, role: str) -> Row:
        return _row(results, lineage, role, labels.get(lineage, ""))

    baselines = [
        lineage for lineage in results.lineages if len(split(lineage)) == 1 and lineage not in heads
    ]
    groups: dict[str, list[Row]] = {
        "Teacher": [row(lineage, "teacher") for lineage in heads if lineage in known],
        "Supervised baselines": [row(lineage, "baseline") for lineage in baselines],
    }
    shown: set[str] = set()
    for label, end in chains:
        title = f"{label}  {chain_text(end)}".strip()
        for lineage in prefixes(end)[1:]:
            elsewhere = lineage != end and lineage in ends
            if lineage in known and lineage not in shown and not elsewhere:
                shown.add(lineage)
                role = "student" if lineage == end else "assistant"
                groups.setdefault(title, []).append(row(lineage, role))
    return [Group(title, rows) for title, rows in groups.items() if rows]


def _row(results: Results, lineage: str, role: str, label: str) -> Row:
    models = results.of(lineage)
    return Row(
        lineage=lineage,
        role=role,
        label=label,
        parameters=models[0].parameters,
        seeds=results.seeds(lineage),
        steps=sum(model.manifest["steps"] for model in models) / len(models),
        minutes=sum(model.minutes for model in models) / len(models),
        cells={name: _cell(results, lineage, name) for name in results.spec["sets"]},
    )


def _cell(results: Results, lineage: str, name: str) -> Cell:
    found = [results.evaluations[model.node, name] for model in results.of(lineage)]
    scores = results.by_seed(lineage, name, "rougeL")
    rouge = estimate(scores.values())
    exact = estimate(results.by_seed(lineage, name, "exact_match").values())
    assert rouge is not None and exact is not None
    prompts = [
        sum(each.by_prompt[key] for each in found) / len(found) for key in found[0].by_prompt
    ]
    return Cell(
        rougeL=rouge,
        exact_match=exact,
        prompts=int(found[0].scores["n"]),
        error=standard_error(prompts),
        response_tokens=sum(e.scores["response_tokens"]["mean"] for e in found) / len(found),
        cut_off=sum(e.scores["cut_off"] for e in found) / len(found),
        over_sft=_gain(results, lineage, supervised(split(lineage)[-1].model), name),
        over_direct=_gain(results, lineage, direct(lineage), name),
        published=[
            Published(target["source"], float(value), rouge.mean - float(value))
            for target in results.spec["targets"] or []
            if (value := target["scores"].get(lineage, {}).get(name)) is not None
        ],
    )


def _gain(results: Results, lineage: str, other: str | None, name: str) -> Gain | None:
    if other is None or other == lineage or other not in results.lineages:
        return None
    return gain(results.by_seed(lineage, name, "rougeL"), results.by_seed(other, name, "rougeL"))


def findings(results: Results, groups: list[Group], name: str) -> list[str]:
    """What one evaluation set says, in sentences; verdicts only where a difference exceeds the spread."""
    sentences = []
    for row in (row for group in groups for row in group.rows):
        cell = row.cells[name]
        score = f"ROUGE-L {cell.rougeL.text()}"
        if row.role == "teacher":
            seeds = _count(len(row.seeds), "training seed")
            sentences.append(f"The teacher, {row.model}: {score} ({seeds}).")
        elif row.role == "student":
            title = " ".join(filter(None, [row.label, full_text(row.lineage)]))
            parts = [f"{title}: {score} ({_count(len(row.seeds), 'training seed')})"]
            for other, what in (
                (cell.over_sft, f"against {row.model} trained on labels alone"),
                (cell.over_direct, "against distillation straight from the teacher"),
            ):
                if other is not None:
                    verdict = "" if other.exceeds is None else f", {other.verdict}"
                    parts.append(f"{other.difference.text(signed=True)} {what}{verdict}")
            sentences.append("; ".join(parts) + ".")
    return sentences


def sources(groups: list[Group]) -> list[str]:
    """Where the published scores come from, each once."""
    return list(
        dict.fromkeys(
            published.source
            for group in groups
            for row in group.rows
            for cell in row.cells.values()
            for published in cell.published
        )
    )


def to_csv(results: Results, groups: list[Group]) -> str:
    """The table as CSV: one line a lineage and evaluation set, one column a variable."""
    cited = sources(groups)
    lines = []
    for group in groups:
        for row in group.rows:
            for name, cell in row.cells.items():
                lines.append(_csv_line(results, row, name, cell, cited))
    return write_csv(lines)


def _csv_line(
    results: Results, row: Row, name: str, cell: Cell, cited: list[str]
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "set": name,
        "role": row.role,
        "label": row.label,
        "lineage": row.lineage,
        "chain": row.chain,
        "methods": row.methods,
        "model": row.model,
        "parameters": row.parameters,
        "training_seeds": " ".join(map(str, row.seeds)),
        "n_training_seeds": len(row.seeds),
        "decoding_seeds": " ".join(map(str, results.spec["decoding_seeds"])),
        "prompts": cell.prompts,
        "rougeL": cell.rougeL.mean,
        "rougeL_sd": cell.rougeL.sd,
        "rougeL_se_prompts": cell.error,
        "exact_match": cell.exact_match.mean,
        "exact_match_sd": cell.exact_match.sd,
        "response_tokens": cell.response_tokens,
        "cut_off": cell.cut_off,
    }
    for key, found in (("gain_over_sft", cell.over_sft), ("gain_over_direct", cell.over_direct)):
        line[key] = found and found.difference.mean
        line[f"{key}_sd"] = found and found.difference.sd
        line[f"{key}_n"] = found and found.difference.n
        line[f"{key}_exceeds_spread"] = found and found.exceeds
    for number, source in enumerate(cited, 1):
        ours = next((p for p in cell.published if p.source == source), None)
        line[f"published_{number}"] = ours and ours.value
        line[f"published_{number}_difference"] = ours and ours.difference
        line[f"published_{number}_source"] = ours and ours.source
    return line | {"steps": row.steps, "training_minutes": row.minutes}


def write_csv(lines: list[dict[str, Any]]) -> str:
    """Rows as CSV; numbers with at most four decimals, nothing for None."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: _plain(value) for key, value in line.items()})
    return file.getvalue()


def _plain(value: Any) -> Any:
    # adding nothing makes a zero of what rounds to minus zero
    return (
        f"{round(value, 4) + 0.0:.4f}".rstrip("0").rstrip(".")
        if isinstance(value, float)
        else value
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
