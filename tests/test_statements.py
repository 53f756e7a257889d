"""What documentation, docstrings and captions say that can be checked: commands, and what figures draw."""

import itertools
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from matplotlib.axes import Axes
from takd.experiment.report_files import PARTS
from takd.report.figures.chains import chains
from takd.report.figures.costs import costs as costs_figure
from takd.report.figures.gains import gains
from takd.report.figures.lattice import lattice
from takd.report.figures.panels import QUANTITIES
from takd.report.figures.teachers import teachers
from test_report import STUDY, make

from takd.__main__ import _parser
from takd.analysis import costs
from takd.analysis.comparisons import analyse
from takd.analysis.results import read
from takd.report.figures.curves import learning_curves, training_curves
from takd.report.figures.quality import quality

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
        options = re.match(r"[^.,)]*", rest.replace("profiles/<name>", "x"))[0]
        words = shlex.split(options.replace("[", " ").replace("]", " "))
        known = words[:1]
        for word, after in itertools.pairwise(words[1:]):
            if word.startswith("--"):
                known += [word, after]
        try:
            _parser().parse_args(known)
        except SystemExit:
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


# -- captions --------------------------------------------------------------------------------------

DRAWN = {
    "chains": chains,
    "gains": gains,
    "teachers": teachers,
    "lattice": lattice,
    "learning": learning_curves,
    "training": training_curves,
    "costs": lambda results: costs_figure(costs.by_lineage(results)),
    "quality": quality,
}
# what a caption names, and the text that the figure has for it
NAMED = {
    "chains": {"ROUGE-L": "ROUGE-L", "labels alone": "trained on labels alone", "prompts": "6 prompts"},
    "gains": {"A filled mark": "filled: above", "hollow": "hollow: no", "panel a student": "for 120M"},
    "teachers": {
        "number of parameters": "teacher and its parameters",
        "hollow marks are longer": "hollow: through more assistants",
        "labels alone": "trained on labels alone",
    },
    "lattice": {"A thick box": "thick box:", "labels alone": "labels alone:", "interval": " to "},
    "learning": {"ROUGE-L on the development set": "ROUGE-L on dev", "training step": "step"},
    "training": {"training batches": "loss", "one panel a quantity": "single step kl"},
    "costs": {"Wall time": "minutes", "evaluations": "evaluation"},
    "quality": {"minutes where": "minutes of training", "tokens": "tokens of training"},
}  # fmt: skip


def caption(stem):
    return " ".join((ROOT / f"workflow/report/{stem}.rst").read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    spec = make(root, STUDY, (1, 2), ("heldout",))
    return SimpleNamespace(results=read(spec, root / "models", root / "evaluations"))


def test_every_figure_is_looked_at():
    figures = {part.stem for part in PARTS.values() if part.file.endswith(".svg")}
    assert set(DRAWN) == set(NAMED) == figures


@pytest.mark.parametrize("stem", DRAWN)
def test_a_caption_names_what_its_figure_draws(stem, study, monkeypatch):
    bars = []

    def errorbar(axis, at, mean, yerr=None, **how):
        if yerr is not None:
            bars.append((mean - yerr[0][0], mean + yerr[1][0]))
        return plain(axis, at, mean, yerr=yerr, **how)

    plain = Axes.errorbar
    monkeypatch.setattr(Axes, "errorbar", errorbar)
    drawing = DRAWN[stem](study.results).svg
    shown = " ".join("".join(text.itertext()) for text in ElementTree.fromstring(drawing).iter())
    said = caption(stem)
    for words, text in NAMED[stem].items():
        assert words in said, (stem, words)
        assert text in shown, (stem, text)
    assert ("Bars are 95 % intervals" in said) == bool(bars)
    analysis = analyse(study.results)
    measured = [*analysis.scores.values()]
    for question in {pair.question for pair, _ in analysis.of("heldout", "direct")}:
        measured += [difference for _, difference in analysis.of("heldout", question)]
    intervals = [(i.low, i.high) for score in measured if (i := score.interval)]
    for bar in bars:
        assert any(bar == pytest.approx(interval) for interval in intervals), (stem, bar)


def test_the_caption_of_the_learning_curves_names_all_panels():
    said = caption("learning").lower()
    for quantity in QUANTITIES:
        assert quantity.title.lower() in said, quantity.title


@pytest.mark.parametrize(
    "path", sorted((ROOT / "workflow/report").glob("*.rst")), ids=lambda p: p.stem
)
def test_no_caption_calls_an_interval_a_deviation(path):
    """No figure or table of the report shows a spread of its own; standard errors stand in CSV files."""
    said = path.read_text(encoding="utf-8")
    assert "standard deviation" not in said
    assert ("95 %" in said) or ("interval" not in said) or "without intervals" in said
