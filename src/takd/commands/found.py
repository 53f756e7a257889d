"""Results that a command reads: those of an experiment of this repository, or of any folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from takd.analysis.folder import inner, read_folder
from takd.analysis.results import Results, read
from takd.experiment import specs
from takd.experiment.experiment import NAME, Experiment, file_of
from takd.experiment.looks import asked_for
from takd.preflight.collect import read_experiment
from takd.runtime.errors import InputError

SCORED = ("scores.json", "generations.jsonl", "likelihoods/likelihoods.json")


def results_of(
    root: Path, name: str, variables: Mapping[str, str], partial: bool = False
) -> tuple[Results, Path]:
    """Read the results of an experiment, or below a folder; return them with their folder.

    Args:
        variables: of the experiment, as `--config` gives them.
        partial: whether models without results are left out, instead of being an error.

    Raises:
        InputError: there are no such results, or they are unfinished or damaged; or variables for a folder.
    """
    if NAME.fullmatch(name) and file_of(root, name).is_file():
        folder = root / "results" / name
        experiment = read_experiment(root, name, variables)
        spec = specs.report(experiment if partial else asked_for(experiment))
        if partial:
            spec |= {"nodes": _scored(experiment, folder), "teacher_cache": []}
        if not spec["nodes"] or not folder.is_dir():
            raise InputError(f"experiment '{name}' has no results yet ({folder}); run it first.")
        parts = (folder / part for part in ("models", "evaluations", "teachers"))
        return read(spec, *parts), folder
    if variables:
        raise InputError(f"--config goes with an experiment, and {name} is none; remove it.")
    folder = inner(Path(name))
    return read_folder(folder), folder


def _scored(experiment: Experiment, folder: Path) -> Sequence[list[object]]:
    """Models that are scored on all sets."""
    files = [f"{name}/{file}" for name in experiment.sets for file in SCORED]
    places = {node: folder / "evaluations" / node.folder for node in experiment.nodes}
    return [
        list(node) for node, at in places.items() if all((at / file).is_file() for file in files)
    ]
