"""Put the numbers of benchmarks into docs/performance.md: python benchmarks/table.py FILE.json …

The page is made, not typed: of what stands between `<!-- results -->` and `<!-- /results -->`, the sections of these
benchmarks are replaced; those of others stay, with the machine that they ran on.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Comparison, rows

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
HEADING = "### "


def section(result: dict[str, Any]) -> str:
    """What a benchmark found, under its title."""
    cases = {case: Comparison(**content) for case, content in result["cases"].items()}
    header, *body = rows(cases)
    table = [header, ["---"] * len(header), *body]
    parts = [
        f"{HEADING}{result['title']}",
        f"`{result['command']}` on {described(result['machine'])}.",
        "\n".join(f"| {' | '.join(row)} |" for row in table),
        *result["notes"],
    ]
    return "\n\n".join(parts)


def described(machine: dict[str, Any]) -> str:
    """One line about a machine."""
    gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; Python"
        f" {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}"
    )


def fill(page: str, sections: Sequence[str]) -> str:
    """The page with these sections in the place of those with the same title, or behind the others."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.json")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    results = [json.loads(file.read_text()) for file in arguments.files]
    for file, result in zip(arguments.files, results, strict=True):
        if result["quick"]:
            raise SystemExit(f"{file} was made with --quick: its sizes show nothing")
    arguments.page.write_text(fill(arguments.page.read_text(), list(map(section, results))))


if __name__ == "__main__":
    main()
