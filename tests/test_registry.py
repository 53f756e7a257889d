"""What is said of each method stands in one place, and holds of its module."""

import ast
import importlib
import re
from collections.abc import Iterator

import pytest
import yaml
from conftest import ROOT

from takd.experiment.lineage import SUPERVISED
from takd.experiment.schema import follow, load_schema
from takd.experiment.validation.common import distillation_methods
from takd.methods.base import Method
from takd.methods.on_policy import OnPolicyMethod
from takd.methods.registry import METHODS
from takd.preflight.tensors import LOGITS
from takd.runtime import code_digest

SETTINGS = {
    name: {key: follow(value) for key, value in follow(part)["properties"].items()}
    for name, part in load_schema()["$defs"]["methods"]["properties"].items()
}
PACKAGE = ROOT / "src/takd"


def test_schema_registry_docs_and_profiles_name_the_same_methods() -> None:
    """The lines of `distill_<method>` in the profiles are tested in tests/test_profiles.py."""
    assert set(SETTINGS) == set(METHODS) == {SUPERVISED, *distillation_methods()}
    table = (ROOT / "docs/methods.md").read_text().split("Every hop of a chain")[0]
    assert re.findall(r"^\| `(\w+)` ", table, re.M) == list(METHODS)
    for path in (ROOT / "profiles").glob("slurm*/config.yaml"):
        rules = yaml.safe_load(path.read_text())["set-resources"]
        named = {rule.removeprefix("distill_") for rule in rules if rule.startswith("distill_")}
        assert named == set(distillation_methods())


@pytest.mark.parametrize("name", METHODS)
def test_facts_hold_of_the_module_and_its_settings(name: str) -> None:
    facts, settings = METHODS[name], SETTINGS[name]
    kind = importlib.import_module(f"takd.methods.{name}").METHOD
    assert issubclass(kind, Method)
    assert facts.on_policy == issubclass(kind, OnPolicyMethod) == ("on_policy" in settings)
    assert facts.rollouts == ("rollouts_per_round" in settings)
    losses = [facts.loss] if facts.loss else settings["divergence"]["enum"]
    assert set(losses) <= set(LOGITS)
    text = (PACKAGE / f"methods/{name}.py").read_text(encoding="utf-8")
    assert facts.paper in text


def test_the_teacher_is_loaded_unless_its_stored_outputs_are_enough() -> None:
    asks = {name: facts.asks_teacher({}) for name, facts in METHODS.items()}
    assert [name for name in asks if not asks[name]] == ["sft", "seqkd"]
    for outputs in SETTINGS["kd"]["teacher_outputs"]["enum"]:
        assert METHODS["kd"].asks_teacher({"teacher_outputs": outputs}) == (outputs != "top_k")


def test_a_new_entry_reruns_no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest of a training reads every module that it depends on."""
    read = []
    module_file = code_digest._module_file
    monkeypatch.setattr(
        code_digest, "_module_file", lambda module: read.append(module) or module_file(module)
    )
    code_digest.code_digest.__wrapped__(
        "takd.training.train", *(f"takd.methods.{name}" for name in METHODS)
    )
    assert "takd.methods.base" in read
    assert "takd.methods.registry" not in read


def named() -> Iterator[str]:
    """Find strings that name a method outside of `methods`, docstrings apart.

    Supervised fine-tuning is a role too, whose name stands in `lineage`: nothing may compare with another copy of it.
    """
    others = [name for name in METHODS if name != SUPERVISED]
    word = re.compile(rf"(?<![a-z])({'|'.join(others)})(?![a-z])", re.IGNORECASE)
    for path in PACKAGE.rglob("*.py"):
        if PACKAGE / "methods" in path.parents:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = list(ast.walk(tree))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        compared = {
            id(part)
            for node in nodes
            if isinstance(node, ast.Compare)
            for part in (node.left, *node.comparators)
        }
        for node in nodes:
            if isinstance(node, ast.Constant) and id(node) not in docstrings:
                text = str(node.value)
                if word.search(text) or (text == SUPERVISED and id(node) in compared):
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}: {text}"


def test_no_other_module_names_a_method() -> None:
    assert not list(named())
