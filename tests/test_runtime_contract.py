"""What `takd.runtime` may not decide: its code is in no stage's digest, so nothing in it may make a number."""

import ast
import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from takd.runtime import code_digest as code_digests
from takd.runtime.code_digest import SOURCE, code_digest

RUNTIME = sorted((SOURCE / "takd/runtime").glob("*.py"))
STAGES = sorted(
    {
        name
        for rules in (ROOT / "rules").glob("*.smk")
        for name in re.findall(r'parameters\(\s*"\w+",\s*"(takd[\w.]+)"', rules.read_text())
    }
)
MAKING_NUMBERS = ("losses", "methods", "decoding", "metrics")
HARMLESS = {
    "hide": "which libraries a process does not import",
    "InputError": "ends the stage",
    "reason": "words of a message",
    "Journal": "writes times and counts into a log",
    "write_text": "writes a text as it is, all of it or nothing",
    "Stage": "settings and paths as they were given; resources, which change no more than rounding",
    "Shard": "which pieces a process does; the result of a piece depends on the piece alone",
    "JsonlStore": "keeps results of pieces as text with a digest and gives back what was kept",
}


class Rewritten(ast.NodeTransformer):
    """Another text in place of each."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant(node.value + " rewritten") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Constant:
        return ast.Constant("rewritten")


def digests() -> dict[str, str]:
    code_digest.cache_clear()
    methods = (path.stem for path in (SOURCE / "takd/methods").glob("[!_]*.py"))
    entries = [(stage,) for stage in STAGES]
    entries += [("takd.training.train", f"takd.methods.{method}") for method in methods]
    return {" ".join(entry): code_digest(*entry) for entry in entries}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, of which digests are made."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCE / "takd", tmp_path / "takd", ignore=ignored)
    monkeypatch.setattr(code_digests, "SOURCE", tmp_path)
    yield tmp_path / "takd"
    code_digest.cache_clear()


def test_no_text_of_runtime_is_in_a_digest(source: Path) -> None:
    before = digests()
    assert len(before) > 15 and "takd.evaluation.evaluate" in before
    for module in RUNTIME:
        tree = Rewritten().visit(ast.parse(module.read_text()))
        changed = f"{ast.unparse(ast.fix_missing_locations(tree))}\nADDED = 'more'\n"
        (source / "runtime" / module.name).write_text(changed)
    (source / "__main__.py").write_text("")
    assert digests() == before
    for made in ("losses/divergences.py", "decoding/sampling.py"):
        path = source / made
        path.write_text(f"{path.read_text()}\nADDED = 1\n")
        after = digests()
        trainings = [name for name in before if name.startswith("takd.training.train")]
        assert all(after[name] != before[name] for name in trainings)
        assert after["takd.data.prepare"] == before["takd.data.prepare"]


def test_what_makes_numbers_takes_none_from_runtime() -> None:
    taken = set()
    for folder in MAKING_NUMBERS:
        for path in (SOURCE / "takd" / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):  # a whole module could not be judged by its names
                    assert not [a.name for a in node.names if a.name.startswith("takd.runtime")]
                elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("takd"):
                    assert node.module not in ("takd", "takd.runtime"), path
                    if (node.module or "").startswith("takd.runtime."):
                        taken |= {alias.name for alias in node.names}
    assert taken == HARMLESS.keys()
