"""The recipes are experiments: each, put into the demo's file, is read and plans what its text says."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from takd.experiment.experiment import Experiment, load

TEXT = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
RECIPES = {
    part.partition("\n")[0]: re.findall(r"```yaml\n(.*?)```", part, re.S)
    for part in TEXT.split("\n## ")
    if "```yaml" in part
}


def experiment(recipe: str, folder: Path) -> Experiment:
    """The demo with the keys of a recipe in place of its own; methods stand beside its own."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "config/experiments/demo.yaml").read_text())
    for block in RECIPES[recipe]:
        given = yaml.safe_load(block)
        methods = settings["training"] | given.pop("training", {})
        settings |= given | {"training": methods}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(settings))
    return load(path, folder, {})


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_an_experiment(recipe: str, tmp_path: Path) -> None:
    assert experiment(recipe, tmp_path).nodes


def test_recipes_plan_what_they_say(tmp_path: Path) -> None:
    teacher = experiment("Only a teacher", tmp_path)
    assert [tuple(node) for node in teacher.nodes] == [("teacher-sft", 1)]
    given = experiment("A model as it is", tmp_path)
    assert {node.lineage for node in given.trainings} == {
        *("student-sft", "teacher-given__student-minillm")
    }
    stored = experiment("KD from stored outputs", tmp_path)
    assert [(e.teacher, e.place) for e in stored.teacher_cache] == [
        ("teacher-sft", "outputs/train/top_k")
    ]
    variants = experiment("Variants", tmp_path)
    assert len(variants.lineages) == 5


def test_links_between_pages_lead_somewhere() -> None:
    for page in ("recipes", "glossary", "watching"):
        for target in re.findall(
            r"\]\((?!https?:)([^)#]+)", (ROOT / f"docs/{page}.md").read_text()
        ):
            assert (ROOT / "docs" / target).exists(), (page, target)
