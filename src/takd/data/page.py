"""Page of the data report, alone and as a page of an experiment's report."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from takd.pages.environment import environment
from takd.pages.tables import simple

SCORABLE = {
    "unseen_by_standard": "mostly of letters other than a to z",
    "scores_0_with_standard": "no standard token",
    "scores_0_with_unicode": "no unicode token",
    "changed": "changed by the tokenizer",
}
LABELS = {
    "dropped_prompt_too_long": "dropped: prompt too long",
    "empty_output": "dropped: empty output",
    "dropped_duplicates": "dropped: repeats an earlier row",
    "dropped_leaks": "dropped: also in an evaluation set",
    "dropped_response_length": "dropped: response too short or too long",
    "duplicates": "repeat an earlier row",
    "shortened_prompts": "prompt shortened",
    "cut_responses": "response cut",
    "blank_input": "input of white space alone",
    "blank_instruction": "empty instruction",
    "blank_references": "empty references taken off",
    "without_answer": "prompts without an answer",
}
Rows = list[list[Any]]


class Section(NamedTuple):
    """A table of the page, as of `takd.pages.tables.simple`."""

    id: str
    title: str
    heads: Sequence[str]
    rows: Rows
    note: str


def render(report: dict[str, Any], **site: Any) -> str:
    """Render the page of a data report.

    Args:
        report: the report's JSON.
        site: values of the pages of an experiment's report (`spec`, `file`, `nav`); without them the page stands alone.
    """
    alone = {"spec": {"title": "Data report"}, "file": "", "nav": {}, "root": "", "plots": []}
    splits = {name: split for name, split in report["splits"].items() if name != "corpus"}
    sections = _sections(splits, report["leaks"])
    return (
        environment()
        .get_template("data.html")
        .render(
            corpus=report["splits"].get("corpus"),
            sections=[
                (each, simple(each.heads, each.rows, each.id)) for each in sections if each.rows
            ],
            **alone | site,
        )
    )


def _sections(splits: dict[str, Any], leaks: Sequence[dict[str, Any]]) -> Iterator[Section]:
    """Yield the tables in the order of the page."""
    counts = {name: split["counts"] for name, split in splits.items()}
    yield Section(
        "rows",
        "Rows",
        ("Split", "#Rows", "#Kept", "#Dropped", "#Repeats", "#Without input", "Source"),
        [
            [
                *(name, found["rows"], found["kept"], splits[name]["dropped"]),
                *(found["duplicates"], found["without_input"], splits[name]["source"]),
            ]
            for name, found in counts.items()
        ],
        "A repeat has the instruction and the input of an earlier row, whatever its response.",
    )
    unused = [
        [name, key, of_key["rows"], of_key["row"], of_key["example"]]
        for name, split in splits.items()
        for key, of_key in split["unused"]["keys"].items()
    ]
    files = [
        [name, file, "", "", "a file of the folder"]
        for name, split in splits.items()
        for file in split["unused"]["files"]
    ]
    yield Section(
        "unused",
        "Not read",
        ("Split", "Key or file", "#Rows", "#First row", "Example"),
        unused + files,
        "Keys of the source that the experiment does not read, in rows where they hold something. If one is the"
        " instruction, the input or the response, name it under columns (docs/data.md).",
    )
    yield Section(
        "leaks",
        "The same question in two splits",
        ("Of", "Also in", "#Rows", "#Rows there", "First pairs, row → row"),
        [
            [leak["split"], leak["other"], leak["rows"], leak["other_rows"], _pairs(leak)]
            for leak in leaks
        ],
        "Instruction and input are equal, character by character; counted in the sources, before rows are dropped."
        " Rows are counted from 0.",
    )
    yield Section(
        "scorable",
        "What the measures can see",
        ("Split", "Tokens of ROUGE-L", "References", "#Rows", "First rows"),
        [
            [
                *(name, split["rouge_tokenizer"], label, split["scorable"]["counts"][what]),
                _listed(split["scorable"]["named"].get(what, [])),
            ]
            for name, split in splits.items()
            if "scorable" in split
            for what, label in SCORABLE.items()
        ],
        "Kept rows for all of whose references it holds. Without a token, ROUGE-L is 0 even for the reference itself;"
        " where the tokenizer changes a reference, no response matches it exactly (docs/measures.md).",
    )
    cut = {"prompt": "shortened_prompts", "response": "cut_responses"}
    yield Section(
        "lengths",
        "Lengths in tokens",
        ("Split", "Part", "#Median", "#95 %", "#Longest", "#Cut"),
        [
            [name, part, length["median"], length["p95"], length["max"], counts[name][cut[part]]]
            for name, split in splits.items()
            for part, length in split["lengths"].items()
        ],
        "Of the kept rows; a prompt with its template, the first reference with its end token.",
    )
    yield Section(
        "named",
        "Rows to look at",
        ("Split", "What", "#Rows", "First rows"),
        [
            [name, LABELS[what], counts[name][what], _listed(numbers)]
            for name, split in splits.items()
            for what, numbers in split["named"].items()
        ],
        "",
    )


def _pairs(leak: dict[str, Any]) -> str:
    return ", ".join(f"{pair['row']} → {pair['other_row']}" for pair in leak["examples"])


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
