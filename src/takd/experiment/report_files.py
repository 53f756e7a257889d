"""Parts of the report: the list that the rule, the stage and the tests share.

A part is a file in `results/<experiment>/report/` and an entry of Snakemake's report, where entries are told apart by
their labels and sorted by them within a category. Its caption is `workflow/report/<stem>.rst`.
"""

from typing import NamedTuple


class Part(NamedTuple):
    """A file of the report and its place in Snakemake's."""

    file: str
    category: str
    about: str
    form: str

    @property
    def stem(self) -> str:
        return self.file.partition(".")[0]


def _figure(stem: str, category: str, about: str) -> dict[str, Part]:
    """Parts of a figure: the drawing and its numbers."""
    return {
        stem: Part(f"{stem}.svg", category, about, "figure"),
        f"{stem}_csv": Part(f"{stem}.csv", category, about, "numbers (CSV)"),
    }


RESULTS, CURVES = "1. Results", "2. Learning curves"
PARTS = {
    "overview": Part("overview.html", RESULTS, "Abstract and overview", "page"),
    "results": Part("results.html", RESULTS, "Findings and scores", "page"),
    "results_csv": Part("results.csv", RESULTS, "Findings and scores", "table (CSV)"),
    "scores_csv": Part("scores.csv", RESULTS, "Every measure in long form", "means (CSV)"),
    "scores_parquet": Part(
        "scores.parquet", RESULTS, "Every measure in long form", "means and all scores (Parquet)"
    ),
    "differences_csv": Part("differences.csv", RESULTS, "Tests of all differences", "table (CSV)"),
    **_figure("chains", RESULTS, "ROUGE-L along the chains"),
    **_figure("gains", RESULTS, "Gain through assistants"),
    **_figure("teachers", RESULTS, "Students by size of teacher"),
    **_figure("lattice", RESULTS, "Lattice of all chains"),
    "learning_page": Part("learning.html", CURVES, "All curves, shown and hidden", "page"),
    **_figure("learning", CURVES, "Scores on dev"),
    **_figure("training", CURVES, "What the methods log"),
    "samples": Part("samples.html", "3. Generations", "Answers side by side", "page"),
    "data": Part("data.html", "4. Data", "Rows, lengths, leaks", "page"),
    "costs_page": Part("costs.html", "5. Costs", "Time and tokens", "page"),
    **_figure("costs", "5. Costs", "Minutes of each model"),
    **_figure("quality", "5. Costs", "Quality against cost"),
    "provenance": Part("provenance.html", "6. Provenance", "Settings, versions, digests", "page"),
}
"""Name of each part, as the stage takes it (`--output NAME=FILE`)."""
