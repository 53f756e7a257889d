"""Lineages: names of chains, shared prefixes, and which models there are to train."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from takd.experiment import lineage
from takd.experiment.lineage import Hop, Node


@pytest.mark.parametrize("assistants", range(5))
def test_a_chain_is_written_and_read_back(assistants: int) -> None:
    models = ["1.5B", *(f"a{index}" for index in range(assistants)), "120M"]
    methods = ["kd" if index % 2 else "minillm" for index in range(assistants + 1)]
    name = lineage.of_chain(models, methods)
    assert [hop.model for hop in lineage.split(name)] == models
    assert [hop.method for hop in lineage.split(name)] == ["sft", *methods]
    assert lineage.join(lineage.split(name)) == name
    assert len(lineage.prefixes(name)) == assistants + 2
    assert lineage.prefixes(name)[0] == "1.5B-sft"
    assert lineage.prefixes(name)[-1] == name
    assert lineage.teacher_of(name) == lineage.prefixes(name)[-2]


def test_a_method_a_hop() -> None:
    name = lineage.of_chain(["a", "b", "c"], ["kd", "minillm"])
    assert name == "a-sft__b-kd__c-minillm"
    assert lineage.split(name)[1] == Hop("b", "kd")
    with pytest.raises(ValueError):
        lineage.of_chain(["a", "b", "c"], ["kd"])


def test_a_supervised_model_has_no_teacher() -> None:
    assert lineage.supervised("a") == "a-sft"
    assert lineage.teacher_of("a-sft") is None


def test_a_model_that_is_given_has_one_node_for_all_seeds() -> None:
    name = lineage.of_chain(["L", "M", "S"], ["kd", "minillm"], given=["L"])
    assert name == "L-given__M-kd__S-minillm" and re.fullmatch(
        lineage.pattern(["kd", "minillm"]), name
    )
    assert not lineage.is_given(name) and lineage.is_given(lineage.prefixes(name)[0])
    nodes = lineage.nodes([name, "B-given"], [7, 5], ["S"])
    assert nodes[:2] == [Node("L-given", 0), Node("B-given", 0)]
    assert [node.seed for node in nodes[2:]] == [7, 5, 7, 5, 7, 5]
    assert {lineage.teacher_seed("L-given", seed, [7, 5]) for seed in (7, 5)} == {0}
    assert lineage.teacher_seed("L-given__M-kd", 5, [7, 5]) == 5


def test_shared_prefixes_are_trained_once() -> None:
    chains = [["L", "S"], ["L", "M", "S"], ["L", "M", "N", "S"]]
    lineages = [
        lineage.of_chain(chain, [method] * (len(chain) - 1))
        for chain in chains
        for method in ("kd", "minillm")
    ]

    def distilled(names: list[str]) -> set[str]:
        found = lineage.nodes(names, [1], [])
        assert len(found) == len(set(found))
        return {name for name, _ in found if lineage.teacher_of(name)}

    assert len(distilled(lineages)) == 10, "not 12: each method's L to M is shared"
    more = [lineage.of_chain(["L", "N", "S"], [method] * 2) for method in ("kd", "minillm")]
    assert len(distilled(lineages + more) - distilled(lineages)) == 4


def test_teachers_come_before_their_students() -> None:
    names = [lineage.of_chain(["L", "M", "S"], ["kd", "kd"]), lineage.of_chain(["L", "S"], ["kd"])]
    found = lineage.nodes(names, [3, 1], ["S"])
    for at, (name, seed) in enumerate(found):
        teacher = lineage.teacher_of(name)
        if teacher:
            taught_by = Node(teacher, lineage.teacher_seed(teacher, seed, [3, 1]))
            assert taught_by in found[:at]


def test_the_head_is_trained_with_the_first_seed_and_all_below_with_each() -> None:
    seeds = [7, 3]
    assert lineage.teacher_seed("L-sft", 3, seeds) == 7
    assert lineage.teacher_seed("L-sft__M-kd", 3, seeds) == 3
    name = lineage.of_chain(["L", "M", "S"], ["kd", "kd"])
    assert set(lineage.nodes([name], seeds, ["S"])) == {
        Node("L-sft", 7),
        Node("S-sft", 7),
        Node("S-sft", 3),
        *(Node(each, seed) for each in lineage.prefixes(name)[1:] for seed in seeds),
    }


def test_a_head_that_is_also_a_student_elsewhere_is_trained_with_every_seed() -> None:
    names = [lineage.of_chain(["L", "M"], ["kd"]), lineage.of_chain(["M", "S"], ["kd"])]
    found = lineage.nodes(names, [1, 2], ["M", "S"])
    assert {Node("M-sft", 1), Node("M-sft", 2)} < set(found)
    assert Node("L-sft", 2) not in found


@pytest.mark.parametrize(
    "text, right",
    [
        ("a-sft", True),
        ("1.5B-sft__760M-minillm__120M-kd", True),
        ("a-kd", False),
        ("a-sft__b-sft", False),
        ("a-sft__b-other", False),
        ("a-sft__", False),
        ("a-sft/b-kd", False),
        ("a_b-sft", False),
        ("a-sft__b-kd/seed1", False),
        ("", False),
    ],
)
def test_pattern_matches_lineages_and_nothing_else(text: str, right: bool) -> None:
    assert bool(re.fullmatch(lineage.pattern(["minillm", "kd"]), text)) is right


def test_pattern_does_not_depend_on_the_order_of_the_methods() -> None:
    assert lineage.pattern(["kd", "minillm"]) == lineage.pattern(["minillm", "kd"])


def test_importing_does_not_import_torch() -> None:
    source = Path(__file__).resolve().parents[1] / "src"
    script = f"import sys; sys.path.insert(0, {str(source)!r}); import takd.experiment.lineage;"
    script += "print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
