"""Decide after some training seeds whether more are needed: the stage of a look."""

from takd.analysis import comparisons, looks
from takd.analysis.results import read
from takd.runtime.errors import InputError
from takd.runtime.stage import Stage

KEPT = (
    *("set", "question", "lineage", "other", "measure", "value", "low", "high", "p", "verdict"),
)


def run(stage: Stage) -> None:
    """Write the decision as a record.

    Inputs: `models` and `evaluations`, the folders above the lineages. Raises InputError if nothing is compared.
    """
    until, seeds = stage.spec["until"], len(stage.spec["seeds"])
    results = read(stage.spec, stage.input("models"), stage.input("evaluations"))
    found = looks.decided(comparisons.tested(results), until)
    if not found:
        raise InputError(
            "seeds.until: no two models of this experiment are compared by these questions; name others under"
            " until.questions, or give a list of seeds."
        )
    open_ones = [row for row in found if not row["verdict"]]
    stage.write_record(
        stage.outputs["decision"],
        spec=stage.spec,
        decided=not open_ones,
        level=looks.level(until, seeds),
        differences=[{key: row[key] for key in KEPT} for row in found],
    )
    said = "more seeds are needed" if open_ones else "no more seeds are needed"
    stage.say(
        f"look after {seeds} training seeds: {len(found) - len(open_ones)} of {len(found)} differences decided, {said}"
    )
