"""docs/study.md says what the files of its reports say, and what these files promise of equal cost and of intervals."""

import importlib.util
from types import ModuleType

import pandas as pd
import pytest
from conftest import ROOT

from takd.analysis import statistics
from takd.experiment.experiment import load

FOLDERS = sorted(path.parent for path in (ROOT / "docs/study").glob("*/flops.csv"))
TEXT = (ROOT / "docs/study.md").read_text()


def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_tables", ROOT / "docs/study_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def differences(name: str) -> pd.DataFrame:
    found = pd.read_csv(ROOT / "docs/study" / name / "differences.csv")
    return found[(found.measure == "rougeL") & found.stratum.isna()]


def test_tables_are_those_of_the_reports() -> None:
    made = tables()
    for path in made.PAGES:
        assert made.page(path.read_text()) == path.read_text()
    assert TEXT.count("<!-- end -->") == 3 * len(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_chains_of_a_study_spent_the_same(folder) -> None:
    """Within a percent, in every training seed, and all of them: none is left out of the files."""
    spent = pd.read_csv(folder / "flops.csv").groupby(["lineage", "seed"]).flops.max().unstack()
    budget = spent.loc[tables().BUDGETS[folder.name]]
    results = pd.read_csv(folder / "results.csv")
    chains = results.dropna(subset="label").lineage.unique()
    name = {"small": "study", "smollm2": "study-smollm2"}[folder.name]
    experiment = load(ROOT / f"config/experiments/{name}.yaml", ROOT)
    assert set(chains) == {chain["lineage"] for chain in experiment.chains}
    assert list(spent.columns) == experiment.settings["seeds"]
    share = spent.loc[chains] / budget
    assert share.min().min() > 0.99 and share.max().max() < 1.01


def test_every_pair_is_told_apart_or_close() -> None:
    found = differences("small")
    near = (found.difference_high < 2) & (found.difference_low > -2)
    close = (found.difference_high - found.difference_low) < 4
    decided = found.significant.isin(["higher", "lower"])
    assert len(found) > 40 and (decided | near | close).all()


STUDENT = "teacher-sft__student-"
DIRECT = f"{STUDENT}minillm"
CLAIMS = {
    "one assistant": ("teacher-sft__large-minillm__student-minillm", DIRECT, "6.7 ROUGE-L (3.2 to 10.3) worse"),
    "two assistants": (
        "teacher-sft__large-minillm__small-minillm__student-minillm", DIRECT, "18.1 (14.3 to 21.9) worse"
    ),
    "constant advantage": (
        "teacher-sft__student+constant-minillm", "student-sft", "loses 3.3 (2.0 to 4.5)"
    ),
    "shuffled prompts": (
        "teacher-sft__student+shuffled-minillm", "student-sft", "37.7 (34.7 to 40.8)"
    ),
    "SFT of the same FLOPs": (DIRECT, "student+sft-sft", "16.0 (8.4 to 23.6) above"),
}  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS)
def test_prose_has_the_numbers_of_the_files(claim: str) -> None:
    """All of these are losses, which the page words without a sign."""
    ours, theirs, text = CLAIMS[claim]
    found = differences("small").set_index(["ours", "theirs"]).loc[(ours, theirs)]
    row = found.iloc[0] if isinstance(found, pd.DataFrame) else found
    low, middle, high = (
        statistics.number(-value)
        for value in (row.difference_high, row.difference, row.difference_low)
    )
    assert row.significant == "lower"
    assert (
        f"{middle} ({low} to {high})"
        == text[text.index(middle) :].replace(" ROUGE-L", "").partition(")")[0] + ")"
    )
    assert text in " ".join(TEXT.split())


def test_prose_has_the_numbers_of_the_chat_model() -> None:
    """One training seed: intervals and tests are those over prompts."""
    found = differences("smollm2")
    pairs = found[~found.question.isin(["sft", "control"])]
    dolly, other = (pairs[pairs.set == name].set_index("ours") for name in ("dolly", "self-inst"))
    assert other.significant_these_checkpoints.isna().all() and len(other) == 8
    longer = dolly[dolly.theirs == "99M+sft-sft"].sort_values("difference")
    assert (longer.significant_these_checkpoints == "lower").all() and len(longer) == 4
    texts = []
    for row in (longer.iloc[-1], longer.iloc[0]):
        ends = -row.difference, -row.difference_prompts_high, -row.difference_prompts_low
        texts.append("{} ({} to {})".format(*map(statistics.number, ends)))
    assert f"above all four**, by {texts[0]} to {texts[1]}" in " ".join(TEXT.split())
    rest = dolly[dolly.theirs != "99M+sft-sft"]
    assert rest.significant_these_checkpoints.isna().all() and len(rest) == 4
    assistant = rest.loc["135M-given__117M-minillm__99M-minillm"]
    assert (
        round(assistant.difference, 1) == 0.1
        and "difference that these prompts show**: +0.1" in TEXT
    )


def test_the_twin_reaches_its_optimum() -> None:
    """Zero, within 0.001 nats, for each method and in each training seed."""
    found = pd.read_csv(ROOT / "docs/study/enumerable/results.csv").set_index("lineage")
    seeds = found.filter(regex="^exact_first_reverse_kl_seed_")
    for method in ("kd", "minillm"):
        values = seeds.loc[f"small-sft__twin-{method}"]
        assert len(values) == 3 and values.min() > 0 and values.max() < 0.001
