"""The folders of the package: nothing lies beside them, and their imports have one direction."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter

from takd.runtime.digests import SOURCE

PACKAGE = SOURCE / "takd"
# `runtime` knows how a lineage is written; nothing else of it depends on another folder
KNOWN = {("runtime", "experiment")}


def imports() -> Iterator[tuple[str, str, str]]:
    """Yield folder, imported folder and file of each import from one folder of the package into another."""
    for file in PACKAGE.rglob("*.py"):
        own = file.relative_to(PACKAGE).parts[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("takd."):
                other = (node.module or "").split(".")[1]
                if other != own and own != "__main__.py":
                    yield own, other, file.name


def test_no_module_lies_beside_the_folders() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_folders_import_in_one_direction() -> None:
    graph: dict[str, set[str]] = {}
    for own, other, _ in imports():
        if (own, other) not in KNOWN:
            graph.setdefault(own, set()).add(other)
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, with the circle
    assert {"runtime", "experiment", "models", "report"} <= set(order)
    assert {(own, other) for own, other, _ in imports()} >= KNOWN
    assert {file for own, other, file in imports() if (own, other) in KNOWN} == {"input_check.py"}


def test_what_makes_numbers_does_not_depend_on_pages() -> None:
    numbers = {"losses", "decoding", "methods", "training", "metrics", "evaluation", "models"}
    pages = {"report", "model_cards", "preflight", "analysis"}
    assert not [found for found in imports() if found[0] in numbers and found[1] in pages]
