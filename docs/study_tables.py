"""Write the tables of docs/study.md and docs/enumerable.md from the reports' files in docs/study.

PYTHONPATH=src python docs/study_tables.py
"""

import re
from pathlib import Path

import pandas as pd

from takd.analysis.text import p_text
from takd.experiment.labels import full_text

PAGES = [Path(__file__).with_name(name) for name in ("study.md", "enumerable.md")]
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


def exact(folder: Path) -> str:
    """Return a row per model: its exact reverse KL to the head teacher and to the truth."""
    found = pd.read_csv(folder / "results.csv")
    lines = []
    for _, row in found.iterrows():
        cells = [full_text(row.lineage), str(row.n_training_seeds)]
        for measure in ("exact_first_reverse_kl", "exact_truth_reverse_kl"):
            cells.append(number(row, measure, ("low", "high"), signed=False, digits=4))
        lines.append(cells)
    return table(["model", "n", "to the head teacher", "to the truth"], lines)


def through(folder: Path) -> str:
    """Return a row per chain through an assistant: its exact reverse KL less that of the direct chain."""
    found = pd.read_csv(folder / "exact.csv").dropna(subset="minus_direct")
    lines = []
    for lineage, rows in found.groupby("lineage", sort=False):
        values = rows.set_index("measure")
        cells = [
            number(values.loc[measure], "minus_direct", ("low", "high"), digits=3)
            for measure in ("exact_first_reverse_kl", "exact_truth_reverse_kl")
        ]
        lines.append([full_text(str(lineage)), *cells])
    return table(["chain less the direct one", "to the head teacher", "to the truth"], lines)


def number(
    row: pd.Series, name: str, ends: tuple[str, str], signed: bool = True, digits: int = 1
) -> str:
    """Format `+1.2 (0.3 to 2.1)`; empty where there is none, without an interval where there is none of that."""
    if pd.isna(row[name]):
        return ""
    sign = "+" if signed else ""
    values = [row[name], *(row[f"{name}_{end}"] for end in ends)]
    texts = [format(value, f"{sign}.{digits}f").replace("-", "−") for value in values]
    return texts[0] if pd.isna(values[1]) else f"{texts[0]} ({texts[1]} to {texts[2]})"


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


TABLES = {
    "scores": scores,
    "differences": differences,
    "spent": spent,
    "exact": exact,
    "through": through,
}


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(page(path.read_text()))
