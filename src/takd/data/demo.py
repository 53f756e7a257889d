"""Demonstration data: instructions with one correct answer, generated from a seed.

Two topics, and others on request. `facts` asks for the town, job, age and so on of invented people, each in four
phrasings; a held-out row is a phrasing of a fact whose other phrasings are in the training part. `lists` asks for
simple operations on lists of words; a held-out row is an operation on a list that is not in the training part in any
phrasing. `sums` are word problems of two steps, whose answers end in `#### 12`, as those of GSM8K do. `letters` are
draws from a known distribution (`takd.data.letters`).

The part of a row is determined by a hash of it, so parts of one seed never overlap, however many rows are drawn, but
for `letters`. The only random function used is `Random.random`, whose sequence is stable across Python versions.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from takd.data import letters
from takd.runtime.errors import InputError

T = TypeVar("T")
Task = tuple[str, str, str]  # instruction, input, answer

PARTS = ("train", "dev", "test")
TOPICS = ("facts", "lists")  # by default
SUMS = "sums"
ALONE = (SUMS, letters.TOPIC)
PEOPLE = 80
FACTS_SHARE = 0.1
HELD_OUT_FACTS = 0.2  # share of the facts with one phrasing in dev; the same share for test
HELD_OUT_LISTS = 0.1  # likewise for word lists and sums


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


class Fact(NamedTuple):
    """An attribute of a person: four phrasings of the question, the answer, and the possible values."""

    questions: tuple[str, ...]
    answer: str
    values: tuple[str, ...]


def _fact(answer: str, values: str, *questions: str) -> Fact:
    return Fact(questions, answer, _words(values))


STARTS = _words("Bar Cal Dor El Fen Gar Hel Jor Kal Lor Mar Nor Per Ros Sel Tam Ul Ven Wil Zor")
ENDS = _words("an bert da ek fin go ia lis mon na ora pin rik sa to")
FACTS = {
    "town": _fact(
        "{} lives in the town of {}.",
        "Ashford Brill Corby Dunmere Elton Farley Grenfield Holt Irvale Kelso",
        *("Where does {} live?", "Which town is the home of {}?"),
        *("Name the town of {}.", "In what town can I find {}?"),
    ),
    "job": _fact(
        "{} works as a {}.",
        "baker carpenter dancer doctor farmer gardener judge miner nurse painter",
        *("What is the job of {}?", "What does {} do for a living?"),
        *("How does {} earn money?", "Name the job of {}."),
    ),
    "age": _fact(
        "{} is {} years old.",
        "20 25 30 35 40 45 50 55 60 65",
        *("How old is {}?", "What is the age of {}?", "Tell me the age of {}.", "{} is how old?"),
    ),
    "pet": _fact(
        "The pet of {} is a {}.",
        "cat crow dog donkey duck ferret frog goat goose hamster",
        *("What pet does {} have?", "Which animal lives with {}?"),
        *("Name the pet of {}.", "What animal does {} keep?"),
    ),
    "colour": _fact(
        "{} likes {} best.",
        "amber black blue brown crimson gold green grey indigo ivory",
        *("What colour does {} like best?", "Which colour is dear to {}?"),
        *("Name the colour that {} loves.", "Of all colours, what does {} prefer?"),
    ),
    "music": _fact(
        "{} plays the {}.",
        "accordion banjo bassoon bugle cello clarinet cornet drum fiddle flute",
        *("What instrument does {} play?", "On what does {} make music?"),
        *("Name the instrument of {}.", "What can {} play?"),
    ),
}

WORDS = _words(
    "apple boat bread candle chair cloud coin door field fire flower glass hill house key lamp leaf"
    " moon paper rain river road rose ship snow star stone tree water window"
)
LENGTHS = (2, 3, 4)
NUMBERS = {2: "two", 3: "three", 4: "four"}
JOINS = ("and", "or", "then", "with")


class Operation(NamedTuple):
    """An operation on a list of words: name, phrasings (`{}`: the joining word), and the answer."""

    name: str
    phrasings: tuple[str, ...]
    answer: Callable[[Sequence[str], str], str]


OPERATIONS = (
    Operation(
        "repeat",
        ("Repeat the words", "Say the words again", "Copy the list"),
        lambda w, _: " ".join(w),
    ),
    Operation(
        "reverse",
        ("Reverse the words", "Say the words backwards", "Turn the list around"),
        lambda w, _: " ".join(reversed(w)),
    ),
    Operation(
        "first word",
        ("Name the first word", "Which word comes first", "How does the list begin"),
        lambda w, _: f"The first word is {w[0]}.",
    ),
    Operation(
        "last word",
        ("Name the last word", "Which word comes last", "How does the list end"),
        lambda w, _: f"The last word is {w[-1]}.",
    ),
    Operation(
        "drop first",
        ("Drop the first word", "Leave out the first word", "Say all but the first word"),
        lambda w, _: " ".join(w[1:]),
    ),
    Operation(
        "count",
        ("Count the words", "How many words are there", "How long is the list"),
        lambda w, _: f"There are {NUMBERS[len(w)]} words.",
    ),
    Operation(
        "join",
        ("Join the words with {}", "Put {} between the words", "Link the list by {}"),
        lambda w, join: f" {join} ".join(w),
    ),
)


PROBLEMS: tuple[tuple[str, Callable[[int, int, int], tuple[str, int]]], ...] = (
    (
        "{0} has {1} coins and finds {2} bags with {3} coins each. How many coins does {0} have now?",
        lambda a, b, c: (f"The bags hold {b} * {c} = {b * c} coins. {a} + {b * c} =", a + b * c),
    ),
    (
        "{0} plants {1} rows of {2} trees, and {3} trees more by the door. How many trees does {0} plant?",
        lambda a, b, c: (f"The rows have {a} * {b} = {a * b} trees. {a * b} + {c} =", a * b + c),
    ),
    (
        "{0} reads {1} pages on Monday, {2} on Tuesday and {3} on Friday. How many pages does {0} read?",
        lambda a, b, c: (f"On the first two days {a} + {b} = {a + b}. {a + b} + {c} =", a + b + c),
    ),
)


def rows(part: str, rows: int, seed: int = 1, topics: Sequence[str] = TOPICS) -> Iterator[Task]:
    """Draw distinct rows (instruction, input, answer) of a part, topics mixed evenly.

    The same arguments give the same rows on every machine. By default one row in ten is a fact, or fewer if the part
    has no more facts.

    Args:
        part: "train", "dev" or "test".
        rows: number of rows.
        seed: of the invented people and lists; parts with the same seed belong together.
        topics: "facts", "lists", both, or one of `ALONE`.

    Raises:
        InputError: an unknown part or topic, or more rows than the part has.
    """
    _check(part, topics)
    if topics[0] in ALONE:
        if topics[0] == SUMS:
            yield from _sums(part, rows, seed)
        else:
            yield from ((asked, "", said) for asked, said in letters.rows(part, rows, seed))
        return
    asked = [row for belongs, row in _facts(seed) if belongs == part] if "facts" in topics else []
    share = FACTS_SHARE if "lists" in topics else 1.0
    found = _shuffled(asked, seed, part, "facts")[: round(rows * share)]
    if "lists" in topics:
        found += _lists(part, rows - len(found), seed)
    if len(found) < rows:
        raise InputError(f"demo: part '{part}' has {len(found)} facts, fewer than rows = {rows}.")
    yield from _shuffled(found, seed, part, "all")


def task(instruction: str) -> str:
    """Name the operation that a row asks for; `sums`, `letters`, or `facts` for one that asks for a fact."""
    phrasing = instruction.partition(":")[0].removesuffix(".")
    for operation in OPERATIONS:
        for join in JOINS:
            if phrasing in (each.format(join) for each in operation.phrasings):
                return operation.name
    if set(instruction.split()) <= set(letters.LETTERS):
        return letters.TOPIC
    return SUMS if "How many" in instruction else "facts"


def _check(part: str, topics: Sequence[str]) -> None:
    if part not in PARTS:
        raise InputError(f"demo: no part '{part}'; there are {', '.join(PARTS)}.")
    unknown = [topic for topic in topics if topic not in (*TOPICS, *ALONE)]
    if unknown or not topics or (set(ALONE) & set(topics) and len(topics) > 1):
        known = f"{', '.join(TOPICS)}, and {' or '.join(ALONE)} alone"
        raise InputError(f"demo: topics are {list(topics)}; there are {known}.")


def _facts(seed: int) -> Iterator[tuple[str, Task]]:
    """All facts of a seed in all phrasings, with the part of each."""
    names = [start + end for start in STARTS for end in ENDS]
    people = sorted(names, key=lambda name: _share(seed, "person", name))[:PEOPLE]
    for person in people:
        for topic, fact in FACTS.items():
            value = _pick(fact.values, _share(seed, "fact", person, topic))
            answer = fact.answer.format(person, value)
            held_out = _pick(range(4), _share(seed, "phrasing", person, topic))
            part = _part(HELD_OUT_FACTS, seed, "part", person, topic)
            for number, question in enumerate(fact.questions):
                yield part if number == held_out else "train", (question.format(person), "", answer)


def _lists(part: str, count: int, seed: int) -> list[Task]:
    random = Random(int(_digest(seed, part, "lists"), 16))

    def pick(options: Sequence[T]) -> T:
        return _pick(options, random.random())

    found: dict[Task, None] = {}
    failures = 0
    while len(found) < count:
        operation, join = pick(OPERATIONS), pick(JOINS)
        words = _distinct(pick(LENGTHS), random)
        phrasing, apart = pick(operation.phrasings).format(join), pick((True, False))
        answer = operation.answer(words, join)
        text = " ".join(words)
        row = (f"{phrasing}.", text, answer) if apart else (f"{phrasing}: {text}", "", answer)
        # the part depends on list and answer, so that no phrasing of a held-out task is in train
        if row in found or _part(HELD_OUT_LISTS, seed, text, answer) != part:
            failures += 1
            if failures > 100 * count + 1000:
                raise InputError(f"demo: part '{part}' has fewer than {count} rows on lists.")
            continue
        found[row] = None
    return list(found)


def _sums(part: str, count: int, seed: int) -> Iterator[Task]:
    random = Random(int(_digest(seed, part, SUMS), 16))
    found: set[str] = set()
    for _ in range(100 * count + 1000):
        if len(found) == count:
            return
        name = _pick(STARTS, random.random()) + _pick(ENDS, random.random())
        numbers = [2 + int(random.random() * 9) for _ in range(3)]
        problem, solve = _pick(PROBLEMS, random.random())
        question, (steps, answer) = problem.format(name, *numbers), solve(*numbers)
        # the part depends on the calculation, so that no other name makes a held-out one known
        if question not in found and _part(HELD_OUT_LISTS, seed, problem, *numbers) == part:
            found.add(question)
            yield question, "", f"{steps} {answer}.\n#### {answer}"
    if len(found) < count:
        raise InputError(f"demo: part '{part}' has fewer than {count} sums.")


def _distinct(count: int, random: Random) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[_pick(WORDS, random.random())] = None
    return list(found)


def _part(held_out: float, *key: object) -> str:
    share = _share(*key)
    return "test" if share < held_out else "dev" if share < 2 * held_out else "train"


def _shuffled(found: Sequence[Task], *key: object) -> list[Task]:
    random = Random(int(_digest(*key, "order"), 16))
    order = sorted((random.random(), number) for number in range(len(found)))
    return [found[number] for _, number in order]


def _pick(options: Sequence[T], share: float) -> T:
    return options[int(share * len(options))]


def _share(*key: object) -> float:
    """Pseudo-random number in [0, 1), the same for the same key on every machine."""
    return int(_digest(*key)[:13], 16) / 16**13


def _digest(*key: object) -> str:
    return hashlib.sha256("\0".join(map(str, key)).encode()).hexdigest()
