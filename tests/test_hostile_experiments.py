"""Experiment files that no person would write on purpose: each is refused in one sentence, at once."""

import itertools
import os
import re

import pytest
from conftest import ROOT

from takd.experiment import comparison, experiment
from takd.runtime.errors import InputError

DEMO = (ROOT / "config/experiments/demo.yaml").read_text()
LETTERS = "abcdefghi"


def edited(pattern, text):
    assert re.search(pattern, DEMO, re.M)
    return re.sub(pattern, lambda _: text, DEMO, count=1, flags=re.M)


def dev(path):
    return edited("^  dev: .*$", f"  dev: {{json: {path}}}")


SEEDS = "^seeds: .*$"
FILES = {
    "latin 1": (edited("^title: ", "title: é").encode("latin-1", "replace"), "line 6: is not a text in UTF-8"),
    "utf 16": (DEMO.encode("utf-16"), "line 1: is not a text in UTF-8"),
    "a null character": (edited("^title: ", "title: \0"), "has a character that YAML does not allow"),
    "large": ("title: " + "x" * 1_000_000, "has 1,000,007 bytes; an experiment has at most 1,000,000"),
    "digits": (edited(r"steps: \d+", f"steps: {'9' * 5000}"), "is a number of 5000 digits"),
    "lists": ("[" * 200_000, "line 1: has more than 50 lists or mappings in one another"),
    "mappings": ("{a: " * 60 + "1" + "}" * 60, "has more than 50 lists"),
    "indented": ("".join(" " * n + "a:\n" for n in range(99)), "has more than 50 lists"),
    "aliases": (
        "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n"
        + "".join(
            f"{name}: &{name} [{', '.join([f'*{last}'] * 10)}]\n"
            for last, name in itertools.pairwise(LETTERS)
        ),
        "exceeds 100,000 values",
    ),
    "merged aliases": (
        "a: &a {k0: 0}\n"
        + "".join(
            f"{name}: &{name} {{<<: [{', '.join([f'*{last}'] * 20)}]}}\n"
            for last, name in itertools.pairwise(LETTERS)
        ),
        "exceeds 100,000 values",
    ),
    "width": (
        edited(r"width: \d+", "width: 1000000000001"),
        "does not divide the width 1000000000001; it must be a divisor of 1000000000001",
    ),
    "rollouts": (
        edited("batch_size: 64", "batch_size: 64\n    rollouts_per_round: 1000000000001"),
        "it must be a divisor of 1000000000001",
    ),
    "seeds": (edited(SEEDS, f"seeds: {list(range(20_000))}"), "must be a list of at most 1000"),
    "a seed of 33 bits": (edited(SEEDS, "seeds: [4294967296]"), "must be at most 4294967295"),
    "a decoding seed of 33 bits": (
        edited("^  seeds: .*$", "  seeds: [10, 4294967306]"),  # draws the same as 10
        "evaluation.seeds[1] is 4294967306, but must be at most 4294967295",
    ),
    "a name with a line break": (
        edited("^    heldout:", '    "heldout\\n":'),
        r"evaluation.sets.'heldout\n' is no valid name",
    ),
    "no path": (dev('""'), "data.dev.json is '', but must be a path"),
    "a long path": (dev("x" * 300), "names of 1 to 255 bytes"),
    "a folder": (dev("src"), "is 'src', which is a folder, and not a file"),
    "a pipe": (dev("pipe"), "which is neither a file nor a folder"),
    "a device": (dev("/dev/zero"), "which is neither a file nor a folder"),
    "a file for a folder": (edited("^  dev: .*$", "  dev: {folder: README.md}"), "is a file, and not a folder"),
}  # fmt: skip


def refused(root, name):
    with pytest.raises(InputError) as caught:
        comparison.load_all(root, name, None, {})[0].require_files()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    return text


@pytest.fixture
def root(tmp_path):
    """A repository that holds experiments, a folder, a file and a pipe."""
    (tmp_path / "config/experiments/sub").mkdir(parents=True)
    (tmp_path / "src").mkdir()
    (tmp_path / "README.md").touch()
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_refused_in_one_sentence(root, name):
    content, words = FILES[name]
    content = content if isinstance(content, bytes) else content.encode()
    (root / "config/experiments/odd.yaml").write_bytes(content)
    text = refused(root, "odd")
    assert words in text and ("config/experiments/odd.yaml" in text or "'odd'" in text)


@pytest.mark.parametrize("name", ["sub/base", "../base", "n" * 300, "", "base\n", "-base"])
def test_a_name_is_refused_in_one_sentence(root, name):
    for folder in ("", "sub/"):
        (root / f"config/experiments/{folder}base.yaml").write_text(DEMO)
    assert "is no name of a file in config/experiments" in refused(root, name)


def test_the_same_file_without_harm_is_read(root):
    (root / "config/experiments/odd.yaml").write_bytes(
        b"\xef\xbb\xbf" + DEMO.encode()
    )  # Windows' mark
    (found,) = comparison.load_all(root, "odd", None, {})
    found.require_files()
    assert found.settings == experiment.load(ROOT / "config/experiments/demo.yaml", ROOT).settings


def test_what_is_not_shown_of_a_text_is_escaped():
    error = InputError("a\nb\x1b[31m\u2028c é 中 \u202e", "second")
    assert str(error) == "a\\nb\\x1b[31m\\u2028c é 中 \\u202e\nsecond"
