"""Content of the generations page: prompts of each set, with the responses of all models and training seeds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from takd.analysis import table
from takd.analysis.results import Results, Row
from takd.analysis.text import visible
from takd.experiment.labels import full_text
from takd.experiment.lineage import Node, split, supervised
from takd.metrics.words import pieces
from takd.report import pages

RIGHT, WRONG = "right", "wrong"


@dataclass(frozen=True)
class Model:
    """A model on the page: its position in the table of results, its name and its training seeds."""

    place: int
    lineage: str
    name: str
    role: str
    seeds: list[int]


@dataclass(frozen=True)
class Response:
    """A model's response with the first decoding seed, and the scores of all; ROUGE-L and exact match x 100.

    Attributes:
        change: RIGHT if it matches a reference and that of the SFT baseline does not, WRONG the other way round.
        over_sft: mean ROUGE-L less that of the SFT baseline; None for a baseline.
    """

    model: Model
    seed: int
    parts: list[tuple[str, bool]]
    tokens: int
    finished: bool
    exact: bool
    by_seed: list[float]
    mean: float
    change: str
    over_sft: float | None


@dataclass(frozen=True)
class Prompt:
    """One prompt with the responses of all models; `anchor` is its name in a link, which more prompts do not change."""

    anchor: str
    row: Row
    responses: list[Response]


def page(results: Results) -> str:
    """Render the generations; models are in the order of the results table."""
    models = [
        Model(
            place,
            line.lineage,
            f"{line.label} {full_text(line.lineage)}".strip(),
            line.role,
            results.seeds(line.lineage),
        )
        for place, line in enumerate(table.lines(results))
    ]
    sets = {
        name: [
            _prompt(results, models, name, key, rows) for key, rows in results.samples[name].items()
        ]
        for name in results.spec["sets"]
    }
    rows = [prompt.row for prompts in sets.values() for prompt in prompts]
    return pages.render(
        "samples.html",
        results,
        "generations.html",
        models=models,
        sets=sets,
        seeds=results.spec["decoding_seeds"],
        strata=list(dict.fromkeys(row["stratum"] for row in rows if row.get("stratum"))),
    )


def _prompt(
    results: Results, models: list[Model], name: str, key: int, rows: dict[Node, Row]
) -> Prompt:
    def mean(node: Node) -> float:
        return results.evaluations[node, name].by_prompt[key]

    responses = []
    for model in models:
        base = supervised(split(model.lineage)[-1].model)
        for seed in model.seeds:
            node, start = Node(model.lineage, seed), Node(base, seed)
            outputs = rows[node]["outputs"]
            first, exact = outputs[0], _exact(rows[node])
            tested = start in rows and model.lineage != base
            before = _exact(rows[start]) if tested else exact
            responses.append(
                Response(
                    model,
                    seed,
                    list(differing(visible(first["text"]), rows[node]["references"])),
                    first["tokens"],
                    first["finished"],
                    exact,
                    [output["rougeL"] for output in outputs],
                    mean(node),
                    "" if exact == before else RIGHT if exact else WRONG,
                    mean(node) - mean(start) if tested else None,
                )
            )
    return Prompt(f"{name}-{key}", next(iter(rows.values())), responses)


def _exact(row: Row) -> bool:
    return bool(row["outputs"][0]["exact_match"] == 100)


def differing(text: str, references: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Split a response into parts, each with whether its words differ from the nearest reference.

    Words and punctuation are aligned with the reference to which most of them can be; capital letters do not count.
    """
    words = pieces(text)
    matchers = [
        SequenceMatcher(None, _folded(pieces(reference)), _folded(words), autojunk=False)
        for reference in references
    ]
    nearest = max(matchers, key=lambda matcher: matcher.ratio())
    same = {
        place
        for block in nearest.get_matching_blocks()
        for place in range(block.b, block.b + block.size)
    }
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
