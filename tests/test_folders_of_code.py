"""The folders of the package: nothing lies beside them, and their imports have one direction."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter

from takd.runtime.code_digest import SOURCE

PACKAGE = SOURCE / "takd"


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
        graph.setdefault(own, set()).add(other)
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, with the circle
    assert {"runtime", "experiment", "models", "report"} <= set(order)
    assert "runtime" not in graph  # it imports no other folder


def test_what_makes_numbers_does_not_depend_on_pages() -> None:
    numbers = {"losses", "decoding", "methods", "training", "metrics", "evaluation", "models"}
    pages = {"report", "model_cards", "preflight", "analysis", "pages"}
    assert not [found for found in imports() if found[0] in numbers and found[1] in pages]
