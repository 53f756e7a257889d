"""The built-in data: always the same, never overlapping, and right."""

import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from takd.data import demo
from takd.runtime.code_digest import SOURCE
from takd.runtime.errors import InputError


@pytest.fixture(scope="module")
def parts():
    """The parts as a demo of full size uses them, and more of the held-out ones."""
    return {
        part: list(demo.rows(part, count, 1))
        for part, count in (("train", 20_000), ("dev", 900), ("test", 900))
    }


def digest(rows):
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def test_rows_are_the_same_on_every_machine_and_python(parts):
    # pinned: other rows make another demo, whose numbers in the documentation then have to be measured anew
    assert {part: digest(rows) for part, rows in parts.items()} == {
        "train": "2ff6fb82decda351",
        "dev": "caa90a6dc8c4a6c7",
        "test": "08a777fe35681926",
    }
    code = "import sys, json, hashlib; from takd.data import demo;"
    code += (
        "print(hashlib.sha256(json.dumps(list(demo.rows('test', 900, 1))).encode()).hexdigest())"
    )
    environment = {"PYTHONHASHSEED": "77", "PYTHONPATH": str(SOURCE)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(digest(parts["test"]))


def test_parts_are_distinct_rows_and_never_overlap(parts):
    questions = {part: {row[:2] for row in rows} for part, rows in parts.items()}
    assert {part: len(found) for part, found in questions.items()} == {
        "train": 20_000,
        "dev": 900,
        "test": 900,
    }
    assert not questions["train"] & questions["dev"]
    assert not questions["train"] & questions["test"]
    assert not questions["dev"] & questions["test"]


def test_another_number_of_rows_draws_from_the_same_part(parts):
    few = {row[:2] for row in demo.rows("train", 1000, 1)}
    assert not few & {row[:2] for row in parts["dev"] + parts["test"]}


@pytest.mark.parametrize("part", ["dev", "test"])
def test_a_held_out_fact_stands_in_train_in_its_other_phrasings(parts, part):
    known = defaultdict(set)
    for instruction, _, answer in parts["train"]:
        known[answer].add(instruction)
    facts = list(demo.rows(part, 80, 1, topics=["facts"]))
    assert len(facts) == 80
    for instruction, _, answer in facts:
        assert len(known[answer]) == 3
        assert instruction not in known[answer]


@pytest.mark.parametrize("part", ["dev", "test"])
def test_a_held_out_list_task_stands_in_train_in_no_phrasing(parts, part):
    def task(row):
        instruction, words, answer = row
        return (words or instruction.partition(": ")[2], answer)

    def tasks(rows):
        return {task(row) for row in rows if row[1] or ": " in row[0]}

    assert len(tasks(parts[part])) > 500
    assert not tasks(parts[part]) & tasks(parts["train"])


def expected(instruction, words):
    """The answers, found in another way than the generator's."""
    if instruction.startswith(("Repeat", "Say the words again", "Copy")):
        return " ".join(words)
    if instruction.startswith(("Reverse", "Say the words backwards", "Turn")):
        return " ".join(words[::-1])
    if instruction.startswith(
        ("Name the first", "Which word comes first", "How does the list begin")
    ):
        return f"The first word is {words[0]}."
    if instruction.startswith(("Name the last", "Which word comes last", "How does the list end")):
        return f"The last word is {words[len(words) - 1]}."
    if instruction.startswith(("Drop", "Leave out", "Say all but")):
        return " ".join(words[1:])
    if instruction.startswith(("Count", "How many", "How long")):
        return f"There are {['zero', 'one', 'two', 'three', 'four', 'five'][len(words)]} words."
    head = instruction.removesuffix(".").split()
    join = head[1] if head[0] == "Put" else head[-1]
    return f" {join} ".join(words)


def test_answers_on_lists_are_right_and_every_operation_occurs(parts):
    starts = Counter()
    for instruction, context, answer in parts["test"]:
        head, separator, inline = instruction.partition(": ")
        if not context and not separator:
            continue
        words = (context or inline).split()
        assert answer == expected(head if separator else instruction, words), instruction
        starts[head.split()[0]] += 1
    assert {"Repeat", "Reverse", "Drop", "Count", "Join", "Put", "Name", "Which"} <= set(starts)


def test_a_question_has_one_answer(parts):
    answers = defaultdict(set)
    for rows in parts.values():
        for instruction, context, answer in rows:
            answers[instruction, context].add(answer)
    assert max(map(len, answers.values())) == 1


def test_topics_are_mixed_from_the_first_row_on(parts):
    def facts(rows):
        return sum(not row[1] and ": " not in row[0] for row in rows) / len(rows)

    assert facts(parts["train"]) == pytest.approx(0.09, abs=0.01)
    assert facts(parts["train"][:1000]) == pytest.approx(0.09, abs=0.03)
    assert facts(list(demo.rows("train", 500, 1, topics=["lists"]))) == 0
    # some rows carry their words in `input`, some in the instruction
    assert 0.4 < sum(bool(row[1]) for row in parts["train"]) / 20_000 < 0.5


def test_another_seed_is_another_world():
    worlds = [dict.fromkeys(demo.rows("train", 500, seed, topics=["facts"])) for seed in (1, 2)]
    assert len(worlds[0].keys() & worlds[1].keys()) < 50


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"part": "validation", "rows": 3}, "no part 'validation'; there are train, dev, test"),
        ({"part": "train", "rows": 3, "topics": ["riddles"]}, "topics are ['riddles']"),
        ({"part": "train", "rows": 3, "topics": []}, "topics are []"),
        ({"part": "dev", "rows": 5000, "topics": ["facts"]}, "facts, fewer than rows = 5000"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(InputError) as refusal:
        list(demo.rows(**arguments))
    assert words in str(refusal.value)


def test_a_task_is_known_by_its_row(parts):
    """Scores are broken down by it."""
    tasks = Counter(demo.task(instruction) for instruction, _, _ in parts["test"])
    assert set(tasks) == {operation.name for operation in demo.OPERATIONS} | {"facts"}
    for instruction, _, answer in parts["test"]:
        if demo.task(instruction) in ("first word", "last word"):
            assert answer.startswith(f"The {demo.task(instruction)} is ")
