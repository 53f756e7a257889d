"""What documentation, docstrings and captions say that can be checked: commands, and what figures draw."""

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from takd.__main__ import _parser

ROOT = Path(__file__).resolve().parents[1]
TEXTS = (".md", ".py", ".rst", ".smk", ".yaml", ".sh", ".jinja", "Makefile", "Snakefile")
MODULE = re.compile(r"python3? -m (takd[\w.]*)([^`#\n;|]*)")
# in backquotes, with a variable, or alone on its line but for a comment or a further command
TARGET = re.compile(
    r"`make ([a-z-]+)|\bmake ([a-z-]+) TARGET=(\w+)|^ *make ([a-z-]+)(?= *(?:$|#|&))", re.MULTILINE
)
PROGRAM = re.compile(r"python3? ((?:benchmarks|workflow|tests)/[\w/]+\.py)")


def texts():
    """Every tracked file in which a command may stand, but the tests."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.splitlines() or [
        str(path.relative_to(ROOT))
        for folder in ("docs", "src", "rules", "workflow", "benchmarks", "config", "profiles")
        for path in (ROOT / folder).rglob("*")
    ]
    for name in names:
        if name.endswith(TEXTS) and not name.startswith("tests/"):
            yield name, (ROOT / name).read_text(encoding="utf-8")


def found(pattern):
    return {(name, *match.groups()) for name, text in texts() for match in pattern.finditer(text)}


def parses(words):
    try:
        _parser().parse_args(words)
    except SystemExit as end:
        return not end.code
    return True


def test_each_module_that_is_to_be_run_can_be(capsys):
    asked = found(MODULE)
    assert len(asked) > 15
    for name, module, rest in sorted(asked):
        path = ROOT / "src" / module.replace(".", "/")
        file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert file.is_file(), f"{name}: python -m {module}"
        assert "__name__ ==" in file.read_text(encoding="utf-8"), f"{name}: {module} is no program"
        question = re.match(r"(\s+)([a-z]+)\b", rest)
        if module != "takd" or not question:
            continue
        within = r"(?:[^.,)\"\\]|(?<=\d)\.(?=\d))*"  # to the end of the sentence; 0.6 is no end
        options = re.match(within, rest.replace("profiles/<name>", "x"))[0]
        words = shlex.split(options.replace("[", " ").replace("]", " "))
        known = words[:1]
        for word, after in itertools.pairwise(words[1:]):
            if word.startswith("--"):
                known += [word, after]
        # with the word after the command where it needs one; a command alone is a mention
        asked_for = [known, [*known, *words[1:2]]] if words[1:] else [[*known, "--help"]]
        if not any(map(parses, asked_for)):
            pytest.fail(f"{name}: python -m takd{rest}: {capsys.readouterr().err}")


def test_each_target_of_make_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    (builds,) = re.findall(r"\[(cpu\|[a-z|]+)\]", (ROOT / "envs/create.sh").read_text())
    asked = found(TARGET)
    assert len(asked) > 8
    for name, quoted, varied, build, alone in asked:
        target = quoted or varied or alone
        assert target in targets, f"{name}: make {target}"
        assert not build or build in builds.split("|"), f"{name}: make {target} TARGET={build}"


def test_each_program_that_is_to_be_run_exists():
    asked = found(PROGRAM)
    assert len(asked) > 25
    missing = {entry for entry in asked if not (ROOT / entry[1]).is_file()}
    assert {path for _, path in missing} <= {"benchmarks/NAME.py"}, missing


@pytest.mark.parametrize(
    "path", sorted((ROOT / "workflow/report").glob("*.rst")), ids=lambda p: p.stem
)
def test_no_caption_calls_an_interval_a_deviation(path):
    """No figure or table of the report shows a spread of its own; standard errors stand in CSV files."""
    said = path.read_text(encoding="utf-8")
    assert "standard deviation" not in said
    assert ("95 %" in said) or ("interval" not in said) or "without intervals" in said
