"""Write the numbers of benchmarks into docs/performance.md: python benchmarks/table.py [FILE.json …]

The page is made, not typed: of what stands between `<!-- results -->` and `<!-- /results -->`, the sections of these
benchmarks are replaced; those of others stay, with the machine that they ran on. Between `<!-- card -->` and
`<!-- /card -->` stands the newest result of `gpu_check.py` in `benchmarks/results/gpu/`, whatever files are given.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import Comparison, figures, rows

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
CARD_BEGIN, CARD_END = "<!-- card -->", "<!-- /card -->"
CARDS = Path(__file__).parent / "results" / "gpu"
HEADING = "### "
NO_CARD = """No result of a card is here yet: the tables above are of CPUs, and what these documents say of GPUs comes
from data sheets, from half precision on a CPU and from a pretended card (`tests/pretended_cuda.py`). On a machine with
a GPU, run `python benchmarks/gpu_check.py`, then `python benchmarks/table.py`, and commit both."""


def section(result: dict[str, Any]) -> str:
    """Format the results of a benchmark as a section."""
    cases = {case: Comparison(**content) for case, content in result["cases"].items()}
    header, *body = rows(cases)
    table = [header, ["---"] * len(header), *body]
    parts = [
        f"{HEADING}{result['title']}",
        made(result),
        "\n".join(f"| {' | '.join(row)} |" for row in table),
        *result["notes"],
    ]
    return "\n\n".join(parts)


def made(result: dict[str, Any]) -> str:
    """Describe in one line what made the numbers: command, machine, date and commit."""
    command, machine = result["command"], described(result["machine"])
    return f"`{command}` on {machine}; {result['date']}, commit {result['commit']}."


def described(machine: dict[str, Any]) -> str:
    """Describe a machine in one line."""
    gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; Python"
        f" {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}"
    )


def fill(page: str, sections: Sequence[str]) -> str:
    """Replace the sections of the page that have the same titles, and append the others."""
    before, begin, rest = page.partition(BEGIN)
    content, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"the page has no '{BEGIN}' … '{END}'")
    _, *present = content.split(f"\n{HEADING}")
    found = {
        _title(text): text.strip() for text in (*(HEADING + text for text in present), *sections)
    }
    return "\n\n".join([before + begin, *found.values(), end + after])


def _title(text: str) -> str:
    return text.partition("\n")[0]


def newest(folder: Path) -> dict[str, Any] | None:
    """Return the latest result of a GPU in a folder, by the date within the file; None if there is none."""
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    return max(found, key=lambda result: result["date"], default=None)


def card_section(result: dict[str, Any] | None) -> str:
    """Format the results of a run of `gpu_check.py`, stage by stage."""
    if result is None:
        return NO_CARD
    lines = [
        made(result),
        "| stage | | |\n| --- | --- | --- |",
    ]
    for name, stage in result["stages"].items():
        head = f"{name} ({stage['seconds']:.0f} s)"
        lines[-1] += f"\n| {head} | | **{stage['ended']}** |"
        for what, value in _flat(stage.get("found", {})):
            lines[-1] += f"\n| | {what} | {_cell(value)} |"
    for name, stage in result["stages"].items():
        missed = [
            *stage.get("missed", []),
            *(_last(text) for text in stage.get("failed", {}).values()),
        ]
        lines += [f"{name}: {sentence}." for sentence in missed]
    return "\n\n".join(lines)


def _flat(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in found.items():
        if isinstance(value, dict):
            yield from ((f"{name}: {part}", each) for part, each in value.items())
        else:
            yield name, value


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return figures(value)
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _last(traceback: str) -> str:
    return traceback.strip().splitlines()[-1]


def fill_card(page: str, result: dict[str, Any] | None) -> str:
    """Replace or append the section of a GPU in the page."""
    before, begin, rest = page.partition(CARD_BEGIN)
    _, end, after = rest.partition(CARD_END)
    if not (begin and end):
        raise SystemExit(f"the page has no '{CARD_BEGIN}' … '{CARD_END}'")
    return "\n\n".join([before + begin, card_section(result), end + after])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE.json")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    results = [json.loads(file.read_text()) for file in arguments.files]
    for file, result in zip(arguments.files, results, strict=True):
        if result["quick"]:
            raise SystemExit(f"{file} was made with --quick: its sizes show nothing")
    page = fill(arguments.page.read_text(), list(map(section, results)))
    arguments.page.write_text(fill_card(page, newest(CARDS)))


if __name__ == "__main__":
    main()
