"""Generations page: the same prompts with the responses of all models and training seeds."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from takd.analysis import table
from takd.analysis.results import JsonRow, Results
from takd.experiment.labels import full_text
from takd.experiment.lineage import Node, split, supervised
from takd.metrics.words import pieces
from takd.pages.environment import visible
from takd.report import pages


def page(results: Results) -> str:
    """Render the page; models are in the order of the results table."""
    lines = table.lines(results)
    sets = {
        name: [
            (next(iter(rows.values())), list(_responses(results, name, key, rows)))
            for key, rows in results.samples[name].items()
        ]
        for name in results.spec["sets"]
    }
    rows = [row for prompts in sets.values() for row, _ in prompts]
    return pages.render(
        "generations.html",
        results,
        names={line.lineage: full_text(line.lineage) for line in lines},
        labels=[line.label for line in lines],
        roles=[line.label or line.role for line in lines],
        many=[len(results.seeds(line.lineage)) > 1 for line in lines],
        sets=sets,
        seeds=results.spec["decoding_seeds"],
        strata=list(dict.fromkeys(row["stratum"] for row in rows if row.get("stratum"))),
    )


def _responses(
    results: Results, name: str, key: int, rows: Mapping[Node, JsonRow]
) -> Iterator[dict[str, Any]]:
    """Yield the responses to a prompt with the first decoding seed, model by model, and their scores with all.

    `model` is the place of the model in the table of results, `parts` are those of `differing`. `change` is `right` if
    the response equals a reference, or has its answer where the set has a pattern of it, and that of the SFT baseline
    does not, and `wrong` the other way round. `over_sft` is the mean less that of the baseline; None for a baseline.
    """

    def mean(node: Node) -> float:
        return results.evaluations[node, name].by_prompt[key]

    for place, line in enumerate(table.lines(results)):
        for seed in results.seeds(line.lineage):
            node = Node(line.lineage, seed)
            base = Node(supervised(split(line.lineage)[-1].model), seed)
            first, *_ = outputs = rows[node]["outputs"]
            right = _right(rows[node])
            compared = base in rows and base != node
            before = _right(rows[base]) if compared else right
            yield {
                "model": place,
                "seed": seed,
                "parts": list(differing(visible(first["text"]), rows[node]["references"])),
                "tokens": first["tokens"],
                "finished": first["finished"],
                "right": right,
                "by_seed": [output["rougeL"] for output in outputs],
                "mean": mean(node),
                "change": "" if right == before else "right" if right else "wrong",
                "over_sft": mean(node) - mean(base) if compared else None,
            }


def _right(row: JsonRow) -> bool:
    output = row["outputs"][0]
    return bool(output.get("answer_accuracy", output["exact_match"]) == 100)


def differing(text: str, references: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Split a response into parts, each with whether its words differ from the nearest reference.

    Words and punctuation are aligned with the reference to which most of them can be; capital letters do not count.
    """
    words = pieces(text)
    matchers = [
        SequenceMatcher(None, _folded(pieces(reference)), _folded(words), autojunk=False)
        for reference in references
    ]
    found = (matcher.get_matching_blocks() for matcher in matchers)
    blocks = max(found, key=lambda blocks: sum(block.size for block in blocks), default=[])
    same = {place for block in blocks for place in range(block.b, block.b + block.size)}
    start = end = 0
    before = False
    for place, word in enumerate(words):
        at = text.index(word, end)
        if (place not in same) != before:
            # space around a word that differs belongs to its neighbours
            cut = end if before else at
            if cut > start:
                yield text[start:cut], before
            start, before = cut, not before
        end = at + len(word)
    if text[start:]:
        yield text[start:], before


def _folded(words: Sequence[str]) -> list[str]:
    return [word.casefold() for word in words]
