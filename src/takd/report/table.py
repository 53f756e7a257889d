"""Table of results: one row per lineage, grouped by teacher, supervised baselines, and chains."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from takd.analysis import csv_files
from takd.analysis.comparisons import Difference, Score, analyse
from takd.analysis.results import Results
from takd.analysis.statistics import number
from takd.experiment.labels import chain_label, chain_text, full_text, methods_text
from takd.experiment.lineage import prefixes, split


@dataclass(frozen=True)
class Published:
    """A published score to compare with ours. It has no published uncertainty: only our interval is used."""

    source: str
    value: float
    difference: float
    held: bool | None
    """Whether our interval holds it; None without an interval."""

    @property
    def words(self) -> str:
        if self.held is None:
            return f"{number(self.difference, signed=True)} against the published {self.value:.1f}"
        if self.held:
            return f"the interval holds the published {self.value:.1f}"
        return f"differs from the published {self.value:.1f} by more than our interval"


@dataclass(frozen=True)
class Cell:
    """One lineage on one evaluation set; scores x 100."""

    rougeL: Score
    exact_match: Score
    prompts: int
    response_tokens: float
    cut_off: float
    over_sft: Difference | None
    over_direct: Difference | None
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

    Each lineage appears once: under the chain that it ends, else under the first chain that contains it.
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
    analysis = analyse(results)
    rouge = analysis.scores[name, lineage, "rougeL"]
    return Cell(
        rougeL=rouge,
        exact_match=analysis.scores[name, lineage, "exact_match"],
        prompts=len(found[0].ids),
        response_tokens=sum(e.scores["response_tokens"]["mean"] for e in found) / len(found),
        cut_off=sum(e.scores["cut_off"] for e in found) / len(found),
        over_sft=analysis.difference(name, "sft", lineage),
        over_direct=analysis.difference(name, "direct", lineage),
        published=[
            Published(
                target["source"],
                float(value),
                rouge.mean - float(value),
                None if rouge.interval is None else rouge.interval.holds(float(value)),
            )
            for target in results.spec["targets"] or []
            if (value := target["scores"].get(lineage, {}).get(name)) is not None
        ],
    )


def labels(results: Results) -> dict[str, str]:
    """Map the lineages that chains end in to the labels of the chains."""
    return {chain["lineage"]: chain_label(chain) for chain in reversed(results.spec["chains"])}


def named(results: Results, lineage: str) -> str:
    """Name a lineage by chain and methods, with the label of its chain."""
    return " ".join(filter(None, [labels(results).get(lineage, ""), full_text(lineage)]))


def sources(groups: list[Group]) -> list[str]:
    """List the sources of the published scores, each once."""
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
    """Write the table as CSV: one line per lineage and evaluation set, one column per variable."""
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
        "rouge_tokenizer": results.evaluations[results.nodes[0], name].rouge_tokenizer,
    }
    for measure, score in (("rougeL", cell.rougeL), ("exact_match", cell.exact_match)):
        line |= columns(measure, score)
    line |= {"response_tokens": cell.response_tokens, "cut_off": cell.cut_off}
    for key, found in (("gain_over_sft", cell.over_sft), ("gain_over_direct", cell.over_direct)):
        line |= columns(key, found) | {
            f"{key}_n": found and found.trainings,
            f"{key}_p": found and found.p,
            f"{key}_prompts_p": found and found.p_prompts,
            f"{key}_verdict": found and found.verdict,
            f"{key}_verdict_as_trained": found and found.of_models,
        }
    for place, source in enumerate(cited, 1):
        ours = next((p for p in cell.published if p.source == source), None)
        line[f"published_{place}"] = ours and ours.value
        line[f"published_{place}_difference"] = ours and ours.difference
        line[f"published_{place}_in_interval"] = ours and ours.held
        line[f"published_{place}_source"] = ours and ours.source
    return line | {"steps": row.steps, "training_minutes": row.minutes}


def columns(key: str, score: Score | None) -> dict[str, float | None]:
    """Map a score, its 95 % confidence intervals and its standard errors to columns that start with `key`."""
    wide = score.interval if score else None
    over_prompts = score.over_prompts if score else None
    return {
        key: score.mean if score else None,
        f"{key}_low": wide.low if wide else None,
        f"{key}_high": wide.high if wide else None,
        f"{key}_prompts_low": over_prompts.low if over_prompts else None,
        f"{key}_prompts_high": over_prompts.high if over_prompts else None,
        f"{key}_se_prompts": score.se_prompts if score else None,
        f"{key}_se_training_seeds": score.se_trainings if score else None,
        f"{key}_se_decoding_seeds": score.se_draws if score else None,
    }


def differences_csv(results: Results) -> str:
    """Write the tested differences as CSV: one line per pair and evaluation set.

    p values are corrected within the family, which is one question on one set.
    """
    found = analyse(results)
    lines = []
    for (name, pair), difference in found.differences.items():
        lines.append(
            {
                "set": name,
                "question": pair.question,
                "ours": pair.ours,
                "theirs": pair.theirs,
                "n_training_seeds": difference.trainings,
                "family": len(found.of(name, pair.question)),
            }
            | columns("difference", difference)
            | {
                "p": difference.p,
                "prompts_p": difference.p_prompts,
                "verdict": difference.verdict,
                "verdict_as_trained": difference.of_models,
            }
        )
    return write_csv(lines) if lines else ""


def write_csv(lines: list[dict[str, Any]], names: Sequence[str] = ()) -> str:
    """Write rows as CSV, numbers with at most four decimals, None as an empty cell; without rows, only `names`."""
    return csv_files.to_csv(list(lines[0]) if lines else names, lines, _plain)


def _plain(value: Any) -> Any:
    # adding zero turns minus zero into zero
    return (
        f"{round(value, 4) + 0.0:.4f}".rstrip("0").rstrip(".")
        if isinstance(value, float)
        else value
    )
