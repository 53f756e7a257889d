"""Read a folder of results without its experiment file: one that came from elsewhere, or that of one evaluation."""

from pathlib import Path
from typing import Any

from takd.analysis import result_files
from takd.analysis.result_files import folder_of
from takd.analysis.results import Results, read
from takd.experiment.lineage import Node, student_of
from takd.runtime.errors import InputError

EVALUATED = "evaluated"
"""Name of the experiment that `takd evaluate` runs in its output folder."""


def inner(folder: Path) -> Path:
    """Return the folder that holds the results where the output of `takd evaluate` is named."""
    results = folder / "results" / EVALUATED
    return results if results.is_dir() else folder


def read_folder(folder: Path) -> Results:
    """Read the evaluations of all models below a folder of results.

    Raises:
        InputError: it holds no evaluation; a file is damaged; or not every model was evaluated on every set.
    """
    folder = inner(folder)
    found: dict[Node, list[str]] = {}
    for path in sorted((folder / "evaluations").glob("*/seed*/*/scores.json")):
        lineage, seed, name = path.relative_to(folder).parts[1:-1]
        if seed.removeprefix("seed").isdecimal():
            found.setdefault(Node(lineage, int(seed.removeprefix("seed"))), []).append(name)
    if not found:
        raise InputError(
            f"{folder}: holds no evaluation (evaluations/LINEAGE/seedN/SET/scores.json); name the folder of an"
            " experiment below results/, or the output of takd evaluate."
        )
    sets = list(dict.fromkeys(name for names in found.values() for name in names))
    for node, names in found.items():
        if lacking := [name for name in sets if name not in names]:
            raise InputError(
                f"{folder}: {node.lineage} seed {node.seed} has no scores on {', '.join(lacking)}, which others have;"
                " finish the run, or name the experiment, whose file says which models and sets belong to it."
            )
    return read(_spec(folder, list(found), sets), folder / "models", folder / "evaluations")


def _spec(folder: Path, nodes: list[Node], sets: list[str]) -> dict[str, Any]:
    """Make of the records what an experiment file would say."""
    places = [folder_of(folder / "evaluations", node, name) for node in nodes for name in sets]
    record = result_files.record(places[0] / "scores.json", {})
    name = folder.resolve()
    of_output = name.name == EVALUATED and name.parent.name == "results"
    return {
        "experiment": (name.parents[1] if of_output else name).name,
        "nodes": [list(node) for node in nodes],
        "models": dict.fromkeys((student_of(node.lineage) for node in nodes), 0),
        "teacher_cache": [],
        "chains": [],
        "targets": None,
        "sets": sets,
        "decoding": record["decoding"],
        "decoding_seeds": record["decoding_seeds"],
        "samples": 0,
        "judge": all((place / "judge/judge.json").is_file() for place in places),
    }
