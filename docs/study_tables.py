"""Write the tables of docs/study.md from the numbers in docs/study, which are files of the reports.

PYTHONPATH=src python docs/study_tables.py
"""

import re
from pathlib import Path

import pandas as pd

from takd.analysis.comparisons import p_text
from takd.experiment.labels import full_text

PAGE = Path(__file__).with_name("study.md")
FOLDER = Path(__file__).with_name("study")
BUDGETS = {
    "small": "teacher-sft__large-minillm__small-minillm__student-minillm",
    "smollm2": "135M-given__117M-minillm__99M-minillm",
}
"""The chain of each study whose cost is the budget of the others."""
MARK = re.compile(r"(<!-- (\w+) of (\w+) -->\n).*?(<!-- end -->)", re.S)


def page(text: str) -> str:
    """Return the page with what stands between its marks regenerated."""
    return MARK.sub(
        lambda found: f"{found[1]}\n{TABLES[found[2]](FOLDER / found[3])}\n{found[4]}", text
    )


def scores(folder: Path) -> str:
    """Return a row per model: scores on each evaluation set, gain over its SFT baseline, steps."""
    found = pd.read_csv(folder / "results.csv")
    several = found.n_training_seeds.max() > 1
    ends = ("low", "high") if several else ("prompts_low", "prompts_high")
    lines, sets = [], list(dict.fromkeys(found.set))
    for lineage, rows in found.groupby("lineage", sort=False):
        first = rows.iloc[0]
        cells = [full_text(str(lineage))]
        cells += [number(row, "rougeL", ends, signed=False) for _, row in rows.iterrows()]
        gains = [number(row, "gain_over_sft", ends) for _, row in rows.iterrows()]
        lines.append([*cells, *gains, f"{first.steps:,.0f}" if first.steps > 0 else ""])
    many = len(sets) > 1
    head = ["model"]
    head += [f"ROUGE-L, {name}" if many else "ROUGE-L" for name in sets]
    head += [f"gain over SFT, {name}" if many else "gain over SFT" for name in sets]
    return table([*head, "steps"], lines)


def differences(folder: Path) -> str:
    """Return a row per pair of models that a question compares."""
    found = pd.read_csv(folder / "differences.csv")
    found = found[(found.measure == "rougeL") & found.stratum.isna()]
    several = found.n_training_seeds.max() > 1
    ends = ("low", "high") if several else ("prompts_low", "prompts_high")
    lines = []
    for _, row in found.iterrows():
        if row.question in ("sft", "control"):
            continue
        ours, theirs = full_text(row.ours), full_text(row.theirs)
        lines.append(
            [row.set, ours, theirs, number(row, "difference", ends), verdict(row, several)]
        )
    if found.set.nunique() == 1:
        lines = [line[1:] for line in lines]
    head = ["set"] * (found.set.nunique() > 1) + [
        "model",
        "against",
        "difference of ROUGE-L",
        "p (Holm)",
    ]
    return table(head, lines)


def spent(folder: Path) -> str:
    """Return one sentence: how far from the budget the FLOPs of the chains are, by what their trainings counted."""
    found = (
        pd.read_csv(folder / "flops.csv").groupby(["lineage", "seed"]).flops.max().unstack("seed")
    )
    chains = pd.read_csv(folder / "results.csv").dropna(subset="label").lineage.unique()
    budget = found.loc[BUDGETS[folder.name]]
    share = 100 * found.loc[chains] / budget
    return (
        f"Budget: {budget.mean() / 1e12:.2f} TFLOP. In each training seed, each of the {len(chains)} chains spent"
        f" {share.min().min():.2f} to {share.max().max():.2f} % of it."
    )


def number(row: pd.Series, name: str, ends: tuple[str, str], signed: bool = True) -> str:
    """Format `+1.2 (0.3 to 2.1)`; empty where there is none."""
    if pd.isna(row[name]):
        return ""
    sign = "+" if signed else ""
    values = [row[name], *(row[f"{name}_{end}"] for end in ends)]
    middle, low, high = (format(value, f"{sign}.1f").replace("-", "−") for value in values)
    return f"{middle} ({low} to {high})"


def verdict(row: pd.Series, several: bool) -> str:
    """Format `p = 0.012, higher`; with one training seed the test is over prompts."""
    p, way = (
        ("p (Holm)", "significant") if several else ("prompts_p", "significant_these_checkpoints")
    )
    return f"{p_text(row[p])}, {row[way] if isinstance(row[way], str) else 'n.s.'}"


def table(head: list[str], lines: list[list[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


TABLES = {"scores": scores, "differences": differences, "spent": spent}


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
