"""Content of the generations page: some prompts of each set, with the answer of every model beside the references."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from takd.analysis.results import Results, Row
from takd.experiment.lineage import Node
from takd.report.table import Group, named

FIRST = 500
"""Characters of a text that are shown at once; the rest unfolds."""
WORD = 40
"""Characters that the first part may lose, so that it ends with a word."""


@dataclass(frozen=True)
class Model:
    """A model on the page: its position in the table of results, and its name."""

    place: int
    node: Node
    name: str
    role: str


@dataclass(frozen=True)
class Answer:
    """One model's answer with the first decoding seed, and the scores of all seeds; ROUGE-L and exact match x 100."""

    model: Model
    text: str
    tokens: int
    finished: bool
    exact: bool
    by_seed: list[float]
    mean: float


@dataclass(frozen=True)
class Prompt:
    """One prompt with the answers of all models."""

    anchor: str
    """Names the prompt in a link. It comes from its row, so it stays when more samples are shown."""
    id: int
    instruction: str
    input: str
    references: list[str]
    answers: list[Answer]

    @property
    def spread(self) -> float:
        """Highest minus lowest mean ROUGE-L of the models."""
        means = [answer.mean for answer in self.answers]
        return max(means) - min(means) if means else 0.0


def shown(results: Results, groups: list[Group]) -> dict[str, Any]:
    """Build the template's values: models in the order of the results table, prompts of each set, seeds.

    With several training seeds, the first is shown.
    """
    models = [
        Model(place, Node(row.lineage, row.seeds[0]), named(results, row.lineage), row.role)
        for place, row in enumerate(row for group in groups for row in group.rows)
    ]
    return {
        "models": models,
        "sets": {
            name: [
                _prompt(results, models, name, key, rows)
                for key, rows in results.samples[name].items()
            ]
            for name in results.spec["sets"]
        },
        "seeds": results.spec["decoding_seeds"],
    }


def _prompt(
    results: Results, models: list[Model], name: str, key: int, rows: dict[Node, Row]
) -> Prompt:
    asked = next(iter(rows.values()))
    return Prompt(
        anchor=f"{name}-{key}",
        id=key,
        instruction=asked["instruction"],
        input=asked["input"],
        references=asked["references"],
        answers=[
            _answer(model, rows[model.node], results.evaluations[model.node, name].by_prompt[key])
            for model in models
        ],
    )


def _answer(model: Model, row: Row, mean: float) -> Answer:
    first = row["outputs"][0]
    return Answer(
        model=model,
        text=first["text"],
        tokens=first["tokens"],
        finished=first["finished"],
        exact=first["exact_match"] == 100,
        by_seed=[output["rougeL"] for output in row["outputs"]],
        mean=mean,
    )


def folded(text: str) -> Iterator[str]:
    """Split a long text into its beginning and the rest; yield a short one whole.

    The split is after a word where one ends nearby, so that a search finds each word in one part.
    """
    if len(text) <= FIRST + WORD:
        yield text
        return
    gap = max(text.rfind(space, FIRST - WORD, FIRST) for space in " \n\t")
    end = FIRST if gap < 0 else gap + 1
    yield text[:end]
    yield text[end:]
