"""Put the numbers of all benchmarks into docs/performance.md: python benchmarks/table.py FILE.json …

The page is made, not typed: everything between `<!-- results -->` and `<!-- /results -->` is replaced.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Comparison, rows

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """A section for each benchmark; the machine once where all ran on the same."""
    machines = [described(result["machine"]) for result in results]
    shared = machines[0] if len(set(machines)) == 1 else None
    parts = [f"Measured on {shared}."] if shared else []
    for result, machine in zip(results, machines, strict=True):
        cases = {case: Comparison(**content) for case, content in result["cases"].items()}
        header, *body = rows(cases)
        table = [header, ["---"] * len(header), *body]
        parts += [f"### {result['title']}", f"`{result['command']}`"]
        parts += [] if shared else [f"Measured on {machine}."]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in table))
        parts += result["notes"]
    return "\n\n".join(parts)


def described(machine: dict[str, Any]) -> str:
    """One line about a machine."""
    gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; Python"
        f" {machine['python']}, torch {machine['torch']}, transformers {machine['transformers']}"
    )


def fill(page: str, content: str) -> str:
    """The page with new content between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"the page has no '{BEGIN}' … '{END}'")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.json")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    results = [json.loads(file.read_text()) for file in arguments.files]
    for file, result in zip(arguments.files, results, strict=True):
        if result["quick"]:
            raise SystemExit(f"{file} was made with --quick: its sizes show nothing")
    arguments.page.write_text(fill(arguments.page.read_text(), markdown(results)))


if __name__ == "__main__":
    main()
